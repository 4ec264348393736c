"""The rehearsal: its config beside the recipe's; `docs.studies.rehearsal` runs its phases."""

import pytest

from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import imagenet21k_fall11_vit_b16, rehearsal

# Fields that differ from the recipe in every phase, as the config's docstring says.
CHANGED = {
  "clip.model",
  "clip.dtype",
  "data.names",
  "data.views",
  "data.view_epochs",
  "data.feature_cache",
  "checkpoint.every",
  "eval.images",
  "prepare.input",
  "evaluate.prompts",
  "evaluate.images",
  "export.prompt",
  "export.format",
  "export.names",
}
OWN = {
  "prepare": {"job"},
  "cache": {"job", "data.root"},
  "train": {"data.root", "data.features"},
  "evaluate": {"job", "data.root"},
  "export": {"job", "data.root"},
}


@pytest.mark.parametrize("phase", rehearsal.PHASES)
def test_a_phase_is_the_recipe_but_for_these_fields(phase, tmp_path):
  for name in ("records", "features", "train"):
    (tmp_path / name).mkdir()
  for name in ("names.json", "names.txt", "fall11_whole.tar", "train/prompt.npz"):
    (tmp_path / name).touch()
  config = unpack(rehearsal.get_config(f"{phase},folder={tmp_path}"))
  validate(config)
  recipe = unpack(imagenet21k_fall11_vit_b16.get_config()).flat()
  assert {f for f, value in config.flat().items() if value != recipe[f]} == CHANGED | OWN[phase]
  assert f"configs/rehearsal.py:{phase} " in rehearsal.__doc__


def test_arguments_behind_the_phase():
  config = unpack(rehearsal.get_config("train,classes=400,folder=D,accumulate=4,fresh=2"))
  assert (config.k, config.batch_size, config.checkpoint.every) == (200, 400, 16)
  assert (config.eval.images, config.accumulate, config.data.view_epochs) == (2000, 4, 2)
  assert config.data.feature_cache == "D/features"


@pytest.mark.parametrize(
  "argument, field",
  [("", "job"), ("pretrain", "job"), ("train,classes=7", "classes"), ("train,classe=9", "classe")],
)
def test_a_wrong_argument_is_named(argument, field):
  with pytest.raises(ConfigError) as caught:
    rehearsal.get_config(argument)
  assert caught.value.field == field
