"""Fuzzing of what is typed: a config's string, `--config.x=`, the grid of an
ablation."""

from hypothesis import example, given
from hypothesis import strategies as st

from pomp_jax.config import (
  ConfigError,
  base,
  defaults,
  fields_of,
  unpack,
  validate,
  with_argument,
)
from pomp_jax.config.command_line import parse
from pomp_jax.errors import InputError
from tests.support.fuzzing import allowed_errors, awkward_text
from tests.support.processes import ROOT

DEMO = ROOT / "configs" / "demo.py"

DEFAULTS = defaults().flat()
NAMES = list(fields_of())
KINDS = {name: type(value) for name, value in DEFAULTS.items()}
# Also such as stand for another field's values.
_USUAL = sorted(
  {str(value) for value in DEFAULTS.values()} | {"all", "coop", "tfds", "stored"}
)
names = st.sampled_from(NAMES) | st.sampled_from(
  ["optim", "lr", "repeat.seeds[0]", "k.k"]
)
values = (
  st.sampled_from(_USUAL)
  | st.sampled_from(
    ["nan", "inf", "-1", "0", "9" * 5000, "1e999", "1_0", "٣", "1+2", "0x1", "(1,)"]
  )
  | awkward_text
)


def well_typed(config):
  return all(type(value) is KINDS[name] for name, value in config.flat().items())


@given(
  st.lists(st.tuples(names, values).map("=".join) | awkward_text, max_size=4).map(
    ",".join
  )
)
@example("a\nb=1")
@example("k=\ud800")
def test_the_string_behind_a_configs_colon(argument):
  config = base()
  with allowed_errors(ConfigError, within=[ROOT]):
    with_argument(config, argument, variants={"fast": {"k": 3}}, n="data.n_classes")
    settings = unpack(config)
    assert well_typed(settings)
    validate(settings)


@given(
  st.lists(
    st.tuples(names | awkward_text, values).map(
      lambda pair: "--config.{}={}".format(*pair)
    )
    | st.tuples(st.sampled_from(NAMES)).map(lambda name: f"--config.{name[0]}")
    | awkward_text.map(lambda text: f"--config{text}"),
    max_size=3,
  )
)
def test_overrides_on_the_command_line(arguments):
  with allowed_errors(InputError, within=[ROOT]):
    settings = parse([f"--config={DEMO}", "--workdir=x", *arguments]).settings
    assert well_typed(settings)
    validate(settings)
