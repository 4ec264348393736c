"""The table of fields: typed and frozen."""

import pathlib
import re

from ml_collections import ConfigDict
import pytest

from pomp_jax.config import FIELDS, ConfigError, Settings, base, unpack, validate, with_argument
from pomp_jax.config.command_line import help_text, page
from pomp_jax.config.fields import flatten


def test_defaults_are_valid_and_survive_the_config_file():
  validate(Settings())
  assert unpack(base()) == Settings()
  assert flatten(Settings().to_dict()) == Settings().flat()
  assert list(Settings().flat()) == list(FIELDS)


@pytest.mark.parametrize(
  ("field", "value"),
  [("optim.lrr", 1), ("seed", 1.0), ("seed", True), ("optim", 3), ("repeat.seeds", ("a",))],
)
def test_unknown_fields_and_other_types_are_refused(field, value):
  with pytest.raises(ConfigError, match=rf"config\.{field}"):
    Settings().replace({field: value})


def test_the_page_is_generated_from_the_table():
  path = pathlib.Path(__file__).parents[2] / "docs" / "config.md"
  assert path.read_text() == page(), "python -m pomp_jax.config.command_line > docs/config.md"
  assert all(f"--config.{field}=" in help_text() for field in FIELDS)


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("t=a photo of a {}, a pet,k=3", {"eval.template": "a photo of a {}, a pet", "k": 3}),
    ("p=a {}, so;{}, b,fast", {"evaluate.prompts": ("a {}, so", "{}, b"), "k": 5}),
    ("a,k=3", "config.a: got 'nothing', expected a value, or one of the variants fast"),
    ("k=3,a", "config.k: got '3,a', expected a value of type int"),
    ("t={}, a=b", {"eval.template": "{}, a=b"}),
    ("t={},a=b", "unknown field config.a"),
  ],
)
def test_a_comma_behind_the_colon_stays_in_a_text(argument, expected):
  options = {"variants": {"fast": {"k": 5}}, "t": "eval.template", "p": "evaluate.prompts"}
  if isinstance(expected, str):
    with pytest.raises(ConfigError, match=re.escape(expected)):
      with_argument(base(), argument, **options)
    return
  found = unpack(with_argument(base(), argument, **options)).flat()
  assert found == Settings().flat() | expected


def test_no_name_hides_a_method_of_the_config():
  methods = set(dir(ConfigDict))
  assert not [field for field in FIELDS if methods & set(field.split("."))]
