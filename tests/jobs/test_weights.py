"""The main job on a ResNet CLIP in a file of OpenAI's layout, against open_clip's own model."""

import numpy as np
from PIL import Image
import pytest
import torch

from pomp_jax.config import ConfigError, validate
from pomp_jax.evaluate import inputs
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.train import pretrain
from tests.support.openai_clip import (
  RESNET,
  small_open_clip,
  torch_image_features,
  torch_text_features,
  write_merges,
)
from tests.support.small_run import run_job, small_config

NAMES = ("cat", "dog", "star", "the sea", "zebra")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """A folder with the file and images a class, and the model."""
  folder = tmp_path_factory.mktemp("resnet")
  model = small_open_clip(RESNET)
  write_merges(folder)
  torch.save(model.state_dict(), folder / "RN.pt")
  rng = np.random.default_rng(0)
  for name in NAMES:
    (folder / "images" / name).mkdir(parents=True)
    for i in range(8):
      # Blocks of a few colours, so that resizing leaves more than grey.
      pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(24, 0).repeat(24, 1)
      Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
  return folder, model


def _config(folder, **changes):
  settings = {"clip.model": str(folder / "RN.pt"), "data.source": "folder", "data.n_classes": 0}
  settings |= {"data.root": str(folder / "images"), "k": 4, "steps": 2, "batch_size": 8}
  settings |= {"eval.images": 64, "eval.template": "a {}."}
  config = small_config(**settings | changes)
  validate(config)
  return config


def test_training_and_evaluation(stored, tmp_path):
  folder, model = stored
  config = _config(folder)
  results = run_job(config, tmp_path)
  prompt = load_prompt(tmp_path / "prompt.npz")
  assert prompt.clip_model == str(folder / "RN.pt")
  assert prompt.context.shape == (4, 64)

  clip = inputs.open_clip(config.clip)
  source = inputs.open_source(config.data, "test").sized(clip.image_size)
  images = source.images(np.arange(len(source)))
  assert images.shape[1:] == (64, 64, 3)
  rows = clip.tokenizer([f"a {name}." for name in source.names])["input_ids"]
  text = torch_text_features(model, rows)
  image = torch_image_features(model, images, clip.mean, clip.std)
  cosines = image @ (text / np.linalg.norm(text, axis=-1, keepdims=True)).T
  top1 = np.mean(cosines.argmax(-1) == source.labels)
  assert results["eval"]["test"]["hand_written"]["top1"] == pytest.approx(top1)


def test_what_does_not_fit_is_said_before_anything_is_written(stored, tmp_path):
  with pytest.raises(ConfigError, match="prompt.m: got 30, expected at most 28"):
    pretrain.check(_config(stored[0], **{"prompt.m": 30}), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
