"""Recipes against the configs: published values, ours, and why ours differs where it
does.

docs/reproduce/recipes.md has the published values of image classification with their
sources. A row has the published key and value, our field and its value, and `equal` or
a reason. Of ImageNet-21K: the published data, its steps, no view twice, and the
rehearsal.
"""

import collections
import importlib
import json
import math
import pathlib
import re

import numpy as np
import pytest

from pomp_jax.config import ConfigError, defaults, unpack, validate, value_of_text
from pomp_jax.configs import imagenet21k_fall11_vit_b16, protext, rehearsal, world_masks
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.rooms.baselines import tip_adapter
from pomp_jax.rooms.data_sets.coop import COOP_SETS
from pomp_jax.rooms.regions.class_splits import read_class_split
from pomp_jax.rooms.regions.masks import resized_sides

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "reproduce" / "recipes.md"
BASELINES = DOCS.read_text().partition("\n## Baselines\n")[2].partition("\n## ")[0]


# A row of a recipe's table.
Row = collections.namedtuple("Row", "key published field ours why")


def rows_of(text):
  """The cells of a table in Markdown, without its heading."""
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [
    [cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines[2:]
  ]


def sections():
  """Text of each recipe by its title."""
  _, *parts = re.split(r"^### (.+)$", BASELINES, flags=re.MULTILINE)
  return dict(zip(parts[::2], parts[1::2], strict=True))


SHARED = [Row(*cells) for cells in rows_of(sections()["Shared values"])]


def trainers():
  """Rows of each recipe that is a column of one table, and its config; an empty cell
  is no row."""
  heading, _, *lines = [
    line for line in sections()["Trainers"].splitlines() if "|" in line
  ]
  names = [cell.strip() for cell in heading.strip("|").split(" | ")][2:]
  table = [[cell.strip(" `") for cell in line[1:-1].split("|")] for line in lines]
  configs = dict(zip(names, table[0][2:], strict=True))
  rows = {name: list(SHARED) for name in names}
  for key, field, *cells in table[2:]:
    for name, cell in zip(names, cells, strict=True):
      rows[name] += [Row(key, cell, field, cell, "equal")] * bool(cell)
  return configs, rows


CONFIGS, RECIPES = trainers()
for _name, _text in sections().items():
  if _found := re.match(r"\n\n`configs/(\w+)\.py(:?\w*)`", _text):
    CONFIGS[_name] = "".join(_found.groups())
    RECIPES[_name] = [Row(*cells) for cells in rows_of(_text)]


def config_of(name):
  """Our config, as the recipe's command has it."""
  file, _, argument = CONFIGS[name].partition(":")
  return unpack(
    importlib.import_module(f"pomp_jax.configs.{file}").get_config(argument)
  )


def test_the_page_has_all_recipes():
  assert len(RECIPES) == 18 and sum(map(len, RECIPES.values())) > 150
  assert {config_of(name).method for name in RECIPES} == {
    *(
      "pomp",
      "cocoop",
      "maple",
      "vpt_deep",
      "tip_adapter",
      "tip_adapter_f",
      "linear_probe",
    ),
    *("zero_shot", "ivlp", "protext", "kdpl"),
  }


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one_or_explained(name, tmp_path):
  config = config_of(name)
  # The recipe is valid where the data is.
  dataset = "" if config.data.source == "features" else config.data.dataset or "dtd"
  validate(config.replace({"data.root": str(tmp_path), "data.dataset": dataset}))
  ours = config.flat()
  for row in RECIPES[name]:
    if row.field:
      # An empty text is written as "".
      assert ours[row.field] == value_of_text(row.field, row.ours.strip('"')), row
    assert row.why and (
      row.why != "equal" or (row.field and row.ours == row.published)
    ), row


@pytest.mark.parametrize("name", RECIPES)
def test_no_field_differs_from_the_default_without_a_row(name):
  """What a config changes and no row tells would be a difference that nobody sees."""
  told = {row.field for row in RECIPES[name]}
  if any(row.key == "the others" for row in RECIPES[name]):
    told |= {
      row.field for row in RECIPES[name.removesuffix("-F").removesuffix(", transfer")]
    }
  unchanged = defaults().flat()
  changed = {
    field
    for field, value in config_of(name).flat().items()
    if value != unchanged[field]
  }
  # Which data set is the user's choice, in CoOp's layout.
  assert changed - told <= {"data.source", "clip.model", "data.shots"}


def test_a_batch_of_kgcoop_on_eurosat_is_all_of_its_images():
  """Dassl's loader has one batch of a set that is smaller than a batch."""
  config = config_of("KgCoOp, EuroSAT")
  n_base = math.ceil(len(load_class_list(config.data.dataset)) / 2)
  assert config.batch_size == n_base * config.data.shots == 80
  assert config_of("KgCoOp").batch_size > config.batch_size


PROTEXT = rows_of(sections()["ProText by data set"])


@pytest.mark.parametrize("cells", PROTEXT, ids=lambda cells: cells[0])
def test_protexts_values_by_data_set(cells, tmp_path):
  dataset, *cells = cells
  assert dataset in COOP_SETS and len(PROTEXT) == 11
  transfer = config_of("ProText").flat()
  for classes, (variant, m, rate, epochs) in (("base", cells[:4]), ("all", cells[4:])):
    config = unpack(protext.get_config(f"root={tmp_path},{variant}"))
    validate(config)
    assert (config.data.names, config.data.classes) == (dataset, classes)
    assert (config.prompt.m, config.optim.lr, config.epochs) == (
      int(m),
      float(rate),
      int(epochs),
    )
    assert config.prompt.init == ("a photo of a" if int(m) == 4 else "")
    changed = {
      field for field, value in config.flat().items() if value != transfer[field]
    }
    named = {
      "data.root",
      "data.names",
      "data.classes",
      "prompt.m",
      "prompt.init",
      "optim.lr",
    }
    assert changed <= named | {"epochs"}


# Tip-Adapter's configs/: alpha, the ends of the searches of alpha and beta, epochs.
TIP_SETS = {
  "caltech101": (3, 5, 12, 20),
  "dtd": (2, 13, 13, 20),
  "eurosat": (2, 10, 12, 100),
  "fgvc_aircraft": (5, 30, 30, 20),
  "flowers102": (10, 50, 50, 20),
  "food101": (1.17, 10, 10, 20),
  "imagenet1k": (1.17, 3, 7, 20),
  "oxford_pets": (1.17, 3, 7, 20),
  "stanford_cars": (3, 10, 20, 20),
  "sun397": (1.17, 10, 12, 20),
  "ucf101": (3, 3, 7, 20),
}


def test_tip_adapters_settings_by_data_set():
  for name, numbers in TIP_SETS.items():
    text = "ensemble:imagenet_7" if name == "imagenet1k" else "hand_written"
    assert name in COOP_SETS and tip_adapter.published(name) == (*numbers, text)
  assert tip_adapter.published("imagenet_v2") is None
  stored = json.loads(
    pathlib.Path(tip_adapter.__file__).with_suffix(".json").read_text()
  )
  assert set(stored["sets"]) == set(TIP_SETS)


# ZSSeg's configs as POMP runs them: exponents of base and novel, MASK_THR, number of
# classes, of novel ones, MIN_SIZE_TEST and MAX_SIZE_TEST.
PUBLISHED = {
  "coco_stuff_156": ((0.2, 0.8), 0.5, 171, 15, 640, 2560),
  "voc_15": ((0.3, 0.7), 0.5, 20, 5, 512, 2048),
  "ade20k": ((0.5, 0.5), 0.4, 150, 0, 512, 2048),
  "pascal_context": ((0.2, 0.2), 0.5, 59, 0, 512, 2048),
}


def settings_of(name, tmp_path, argument=""):
  config = importlib.import_module(f"pomp_jax.configs.{name}").get_config(argument)
  config.segment.images = config.segment.labels = config.propose.network = str(tmp_path)
  if config.regions.source == "file":
    config.regions.path = str(tmp_path)
  settings = unpack(config)
  validate(settings)
  return settings


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name, tmp_path):
  exponents, threshold, n_classes, n_novel, shorter, longest = PUBLISHED[name]
  settings = settings_of(name, tmp_path)
  assert (
    settings.job == "segment" and settings.clip.model == "openai/clip-vit-base-patch16"
  )
  regions = settings.regions
  assert (regions.e_base, regions.e_novel) == exponents and regions.null == "drop"
  assert (regions.mask_threshold, regions.crop, regions.expand) == (
    threshold,
    "masked",
    1.0,
  )
  assert regions.source == "network" and settings.segment.prompts[0] == "network"
  assert (settings.propose.size, settings.propose.stride) == (shorter, 1)
  assert regions.size == shorter and max(resized_sides(100, 1000, shorter)) == longest
  assert regions.max_regions == 100
  classes = read_class_split(settings.segment.names)
  assert (len(classes), len(classes.indices("novel"))) == (n_classes, n_novel)


def test_naclips_values(tmp_path):
  segment = settings_of("segment_training_free", tmp_path, "names=ade20k").segment
  assert (segment.recipe, segment.size, segment.window, segment.stride) == (
    "naclip",
    336,
    224,
    112,
  )
  assert (segment.logit_scale, segment.pamr) == (40.0, 10)


@pytest.mark.parametrize(
  "variant,job",
  [("", "train_masks"), ("propose_segment", "propose"), ("segment", "segment")]
  + [("propose_detect", "propose"), ("detect", "detect")],
)
def test_the_worlds_network(variant, job, tmp_path):
  """Each variant is another job of one experiment, on the same scenes and prompts."""
  config = world_masks.get_config(variant)
  network = config.propose.network
  config.propose.network = str(tmp_path)
  if config.regions.path:
    assert config.regions.path.startswith(f"{network}/")
    config.regions.path = str(tmp_path)
  settings = unpack(config)
  validate(settings)
  assert settings.job == job
  assert config.segment.prompts == config.detect.prompts
  assert config.train_masks.prompt in config.segment.prompts
  assert config.segment.n_images == config.detect.n_images == 400


FOLDER = pathlib.Path(__file__).parent.parent.parent / "configs"
RECIPES_21K = sorted(path.stem for path in FOLDER.glob("imagenet21k_*.py"))
# Fields of the rehearsal that differ from the recipe in every phase.
CHANGED = {
  *("clip.model", "clip.dtype", "data.names", "data.views", "data.view_epochs"),
  *("checkpoint.every", "eval.images", "prepare.input"),
  *(
    "evaluate.prompts",
    "evaluate.images",
    "export.prompt",
    "export.format",
    "export.names",
  ),
}
OWN = {
  "prepare": {"job"},
  "cache": {"job", "data.root"},
  "train": {"data.root", "data.features"},
  "evaluate": {"job", "data.root"},
  "export": {"job", "data.root"},
}


def get(name, job=""):
  return unpack(importlib.import_module(f"pomp_jax.configs.{name}").get_config(), job)


def steps_an_epoch(config):
  data = config.data
  return len(load_class_list(data.names)) * data.shots * data.views // config.batch_size


@pytest.mark.parametrize("name", RECIPES_21K)
def test_a_recipe_validates_and_its_docstring_has_its_steps(name):
  config = get(name)
  validate(
    config.replace({"dry_run": True, "clip.model": "openai/clip-vit-base-patch16"})
  )
  doc = importlib.import_module(f"pomp_jax.configs.{name}").__doc__
  assert config.checkpoint.every == round(steps_an_epoch(config) / 3)
  if "steps an epoch" in doc:
    assert f"{steps_an_epoch(config):,} steps an epoch" in doc
  # A published figure stands beside the published data alone.
  if config.data.names != "imagenet21k_p_w21":
    assert "Published: none" in doc


def test_the_published_recipe_trains_on_the_published_classes():
  config = get("imagenet21k_vit_b16")
  n_classes = len(load_class_list(config.data.names))
  assert (n_classes, steps_an_epoch(config)) == (10_450, 653)
  # The paper's m = 1 at K = 1000, with n_i = 999 negatives left.
  assert np.log10(n_classes - 1) - np.log10(config.k - 1) == pytest.approx(1, abs=0.02)
  assert config.eval.images == 50 * n_classes
  prepare = get("imagenet21k_vit_b16", job="prepare").prepare
  assert prepare.names == config.data.names and prepare.held_out == 50


@pytest.mark.parametrize("phase", rehearsal.PHASES)
def test_a_phase_is_the_recipe_but_for_these_fields(phase, tmp_path):
  for name in ("records", "features", "train"):
    (tmp_path / name).mkdir()
  for name in ("names.json", "names.txt", "fall11_whole.tar", "train/prompt.npz"):
    (tmp_path / name).touch()
  config = unpack(rehearsal.get_config(f"{phase},folder={tmp_path}"))
  validate(config)
  recipe = unpack(imagenet21k_fall11_vit_b16.get_config(), config.job).flat() | {
    "job": "pretrain"
  }
  changed = (CHANGED | OWN[phase]) & set(recipe)
  assert {f for f, value in config.flat().items() if value != recipe[f]} == changed
  assert f"configs/rehearsal.py:{phase} " in rehearsal.__doc__


@pytest.mark.parametrize(
  "argument, field",
  [("", "job"), ("train,classes=7", "classes"), ("train,classe=9", "classe")],
)
def test_a_wrong_argument_is_named(argument, field):
  with pytest.raises(ConfigError) as caught:
    rehearsal.get_config(argument)
  assert caught.value.field == field
