"""The table of fields: typed and frozen."""

import math
import pathlib
import pickle
import re

from ml_collections import ConfigDict
import pytest

from docs.generators.config_page import page
from pomp_jax.config import (
  JOBS,
  ConfigError,
  base,
  defaults,
  fields_of,
  unpack,
  validate,
  with_argument,
  with_jobs,
)
from pomp_jax.config.command_line import help_text, parse
from pomp_jax.config.errors import UnknownFieldError
from pomp_jax.config.every_job import flatten, value_of_text
from pomp_jax.errors import InputError
from tests.support.small_run import small_config


def test_defaults_are_valid_and_survive_the_config_file():
  validate(defaults())
  for job in JOBS:
    assert (
      unpack(base(job)) == pickle.loads(pickle.dumps(defaults(job))) == defaults(job)
    )
    assert list(flatten(defaults(job).to_dict())) == list(defaults(job).flat())
    assert {*defaults(job).flat()} == {*fields_of(job)} <= {*fields_of()}


def test_a_job_has_its_own_fields_alone():
  assert "tip.beta_max" in fields_of("pretrain") and "tip.beta_max" not in fields_of(
    "segment"
  )
  named = "unknown field config.tip.beta_max of job 'segment': it is a field of pretrain, repeat"
  for change in (
    lambda: defaults("segment").replace({"tip.beta_max": 1.0}),
    lambda: with_argument(base("segment"), "tip.beta_max=1"),
    lambda: defaults().replace({"job": "segment", "tip.beta_max": 1.0}),
  ):
    with pytest.raises(UnknownFieldError, match=named):
      change()
  assert not hasattr(defaults("segment"), "optim") and hasattr(defaults(), "optim")


def test_another_job_keeps_the_fields_that_it_reads_too():
  changes = {"data.upright": True, "k": 5, "clip.memory_gib": 7.0}
  found = defaults().replace(changes).replace({"job": "segment", "segment.pamr": 2})
  kept = {"data.upright": True, "clip.memory_gib": 7.0, "segment.pamr": 2}
  assert found == defaults("segment").replace(kept)
  config = with_jobs(base(), "repeat", "evaluate")
  assert config.job == "repeat" and config.evaluate.suite == "none"
  assert unpack(config) == defaults("repeat")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("optim.lrr", 1),
    ("seed", 1.0),
    ("seed", True),
    ("optim", 3),
    ("profile_steps", ("a",)),
  ],
)
def test_unknown_fields_and_other_types_are_refused(field, value):
  with pytest.raises(ConfigError, match=rf"config\.{field}"):
    defaults().replace({field: value})


@pytest.mark.parametrize("steps", [(), (3, 3), (1, 9)])
def test_a_pair_of_steps_is_accepted(steps):
  validate(defaults().replace({"profile_steps": steps}))


@pytest.mark.parametrize("steps", [(4, 3), (0, 3), (-1, 3), (2,), (1, 2, 3)])
def test_no_pair_of_steps_is_refused(steps):
  with pytest.raises(
    ConfigError, match=r"profile_steps: got .*, expected two integers from 1 on"
  ):
    validate(defaults().replace({"profile_steps": steps}))


DTD = {"export.names": "dtd"}


@pytest.mark.parametrize(
  ("fields", "accepted"),
  [
    (
      {"job": "export", "export.format": "open_clip", "export.prompt": "{}."} | DTD,
      True,
    ),
    ({"job": "evaluate", "evaluate.prompts": "{}."}, False),
    ({"job": "predict", "predict.prompt": "{}."}, False),
    ({"job": "pretrain"}, False),
  ],
)
def test_a_clip_without_its_image_tower_is_for_jobs_without_images(fields, accepted):
  config = small_config(**{"clip.image_tower": False} | fields)
  if accepted:
    validate(config)
  else:
    with pytest.raises(
      ConfigError, match=r"clip\.image_tower: got False, expected True where im"
    ):
      validate(config)


# Values that no check of a number accepts both of, and a word that is no choice.
BEYOND = {int: (-2, 2**33), float: (-2.0, math.nan), str: ("?",)}


def test_a_value_that_the_page_does_not_list_is_refused():
  """Of each field with bounds or choices; the address of a page is tried when it is
  served."""
  tried = 0
  for field, row in fields_of().items():
    if (
      row.type in BEYOND
      and row.metadata["check"].expected
      and field not in ("job", "page.host")
    ):
      settings, refused = (
        defaults(next(job for job in JOBS if field in fields_of(job))),
        [],
      )
      for value in BEYOND[row.type]:
        try:
          validate(settings.replace({field: value}))
        except ConfigError as error:
          refused.append(error.field)
      assert field in refused
      tried += 1
  assert tried > 100


def test_each_text_of_a_tuple_may_be_a_path():
  prompts = ("a.npz", "hdfs://bucket/b.npz")
  with pytest.raises(
    ConfigError, match=r"evaluate\.prompts: got 'hdfs:.* gs://BUCKET/"
  ):
    validate(defaults("evaluate").replace({"evaluate.prompts": prompts}))


def test_texts_are_separated_as_the_docs_do_it():
  """As the last command of the page on sentences; brackets and quotes are no part of
  a text."""
  page = (
    pathlib.Path(__file__).parents[2] / "docs/reproduce/better_than_words.md"
  ).read_text()
  [value] = re.findall(r'--config\.prompt\.candidates="(.*)"', page)
  expected = ("a photo of a {}, a bird.", "{}.")
  assert value_of_text("prompt.candidates", value) == expected
  for wrong in (repr(expected), "['{}.']", '("{}.",)'):
    with pytest.raises(
      ConfigError, match=r"prompt\.candidates: got .* separated by ';'"
    ):
      value_of_text("prompt.candidates", wrong)


def test_the_page_is_generated_from_the_table():
  path = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "config.md"
  assert path.read_text() == page(), (
    "python -m docs.generators.config_page > docs/reference/config.md"
  )
  text = help_text()
  assert all(f"--config.{field}=" in text for field in fields_of())


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    (
      "t=a photo of a {}, a pet,seed=3",
      {"eval.template": "a photo of a {}, a pet", "seed": 3},
    ),
    ("p=a {}, so;{}, b,fast", {"evaluate.prompts": ("a {}, so", "{}, b"), "seed": 5}),
    (
      "a,seed=3",
      "config.a: got 'nothing', expected a value, or one of the variants fast",
    ),
    ("seed=3,,fast,", {"seed": 5}),
    (
      "job=page",
      "config.job: got 'page', expected 'evaluate', whose fields this config has",
    ),
    ("seed=3,a", "config.seed: got '3,a', expected a value of type int"),
    ("t={}, a=b", {"eval.template": "{}, a=b"}),
    ("t={},a=b", "unknown field config.a"),
  ],
)
def test_a_comma_behind_the_colon_stays_in_a_text(argument, expected):
  options = {
    "variants": {"fast": {"seed": 5}},
    "t": "eval.template",
    "p": "evaluate.prompts",
  }
  if isinstance(expected, str):
    with pytest.raises(ConfigError, match=re.escape(expected)):
      with_argument(base("evaluate"), argument, **options)
    return
  found = unpack(with_argument(base("evaluate"), argument, **options)).flat()
  assert found == defaults("evaluate").flat() | expected


def test_no_name_hides_a_method_of_the_config():
  methods = set(dir(ConfigDict))
  assert not [field for field in fields_of() if methods & set(field.split("."))]


@pytest.mark.parametrize("job", ["", "pretrian"])
def test_an_unknown_job_is_refused_by_name(job):
  with pytest.raises(
    ConfigError, match=r"config\.job: got '.*', expected one of pretrain"
  ):
    defaults().replace({"job": job})


def test_an_option_is_no_value_of_a_field():
  with pytest.raises(InputError, match="expected a value, found '--workdir=X'"):
    parse(["--config=demo", "--config.compilation_cache", "--workdir=X"])
