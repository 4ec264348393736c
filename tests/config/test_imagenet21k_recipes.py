"""The configs of ImageNet-21K: the published data, its steps, no view twice, and the rehearsal."""

import importlib
import pathlib

import numpy as np
import pytest

from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import imagenet21k_fall11_vit_b16, rehearsal
from pomp_jax.data.class_lists import load_class_list

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("imagenet21k_*.py"))
# Fields of the rehearsal that differ from the recipe in every phase.
CHANGED = {
  *("clip.model", "clip.dtype", "data.names", "data.views", "data.view_epochs"),
  *("checkpoint.every", "eval.images", "prepare.input"),
  *("evaluate.prompts", "evaluate.images", "export.prompt", "export.format", "export.names"),
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


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_validates_and_its_docstring_has_its_steps(name):
  config = get(name)
  validate(config.replace({"dry_run": True, "clip.model": "openai/clip-vit-base-patch16"}))
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
  recipe = unpack(imagenet21k_fall11_vit_b16.get_config(), config.job).flat() | {"job": "pretrain"}
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
