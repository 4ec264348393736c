"""docs/recipes.md against the configs: published values, ours, and why ours differs where it does.

The page is the only table of the published values, with the source of each recipe. A row has the
published key and value, our field and its value, and `equal` or a reason.
"""

import importlib
import json
import pathlib
import re
from typing import NamedTuple

import pytest

from pomp_jax.baselines import tip_adapter
from pomp_jax.config import Settings, unpack, validate, value_of_text
from pomp_jax.data.coop import COOP_SETS

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "recipes.md"
BASELINES = DOCS.read_text().partition("\n## Baselines\n")[2].partition("\n## ")[0]


class Row(NamedTuple):
  """A row of a recipe's table."""

  key: str
  published: str
  field: str
  ours: str
  why: str


def rows_of(text):
  """The cells of a table in Markdown, without its heading."""
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def sections():
  """Text of each recipe by its title."""
  _, *parts = re.split(r"^### (.+)$", BASELINES, flags=re.MULTILINE)
  return dict(zip(parts[::2], parts[1::2], strict=True))


TIP_SETS = rows_of(sections()["Tip-Adapter by data set"])
RECIPES = {
  name: [Row(*cells) for cells in rows_of(text)]
  for name, text in sections().items()
  if text.startswith("\n\n`configs/")
}


def config_of(name):
  """Our config, as the recipe's command has it."""
  file, argument = re.search(r"`configs/(\w+)\.py:?(\w*)`", sections()[name]).groups()
  return unpack(importlib.import_module(f"pomp_jax.configs.{file}").get_config(argument))


def test_the_page_has_all_recipes():
  assert len(RECIPES) == 10 and sum(map(len, RECIPES.values())) > 150
  assert {config_of(name).method for name in RECIPES} == {
    *("pomp", "cocoop", "maple", "vpt_deep", "tip_adapter", "tip_adapter_f", "linear_probe"),
    "zero_shot",
  }


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one_or_explained(name):
  ours = config_of(name).flat()
  for row in RECIPES[name]:
    if row.field:
      # An empty text is written as "".
      assert ours[row.field] == value_of_text(row.field, row.ours.strip('"')), row
    assert row.why and (row.why != "equal" or (row.field and row.ours == row.published)), row


@pytest.mark.parametrize("name", RECIPES)
def test_no_field_differs_from_the_default_without_a_row(name):
  """What a config changes and no row tells would be a difference that nobody sees."""
  told = {row.field for row in RECIPES[name]}
  if any(row.key == "the others" for row in RECIPES[name]):
    told |= {row.field for row in RECIPES[name.split(" on ")[0].removesuffix("-F")]}
  defaults = Settings().flat()
  changed = {field for field, value in config_of(name).flat().items() if value != defaults[field]}
  # Which data set is the user's choice, in CoOp's layout.
  assert changed - told <= {"data.source", "clip.model", "data.shots"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_where_the_data_is(name, tmp_path):
  config = config_of(name)
  dataset = config.data.dataset or "dtd"
  validate(config.replace({"data.root": str(tmp_path), "data.dataset": dataset}))


def test_tip_adapters_settings_by_data_set():
  for name, *numbers in TIP_SETS:
    text = "ensemble:imagenet_7" if name == "imagenet1k" else "hand_written"
    alpha, alpha_max, beta_max, epochs = map(float, numbers)
    expected = tip_adapter.Published(alpha, alpha_max, beta_max, int(epochs), text)
    assert name in COOP_SETS and tip_adapter.published(name) == expected
  assert tip_adapter.published("imagenet_v2") is None
  stored = json.loads(pathlib.Path(tip_adapter.__file__).with_suffix(".json").read_text())
  assert set(stored["sets"]) == {name for name, *_ in TIP_SETS} and len(TIP_SETS) == 11
