"""A random CLIP, some classes with ragged names, and the same in torch's float64."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPModel

from pomp_jax.clip import Clip, load_clip, tokenize
from pomp_jax.prompt.context import ClassTokens
from pomp_jax.prompt.learner import Frozen
from tests.support.clips import pooled, write_random_clip

NAMES = (
  "cat",
  "the dog of the star",
  "star",
  "x",
  "crème brûlée",
  "the cat",
  "dog star",
  "sea",
  "cat of cats",
  "dog",
  "red",
  "door",
)


class World(NamedTuple):
  """One CLIP, ours and torch's, and N classes."""

  clip: Clip
  model: CLIPModel
  tokens: ClassTokens

  @property
  def frozen(self) -> Frozen:
    """What a training step reads."""
    return Frozen(
      self.clip.text_params, self.clip.vision_params, self.clip.sos_embedding, self.tokens
    )

  def class_ids_and_name_length(self, c: int):
    """Token ids of class c (name, ".", EOT) and how many of them are its name."""
    tokenizer = self.clip.tokenizer
    name = tokenizer(NAMES[c], add_special_tokens=False)["input_ids"]
    return tokenizer(f"{NAMES[c]}.")["input_ids"][1:], len(name)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  """A CLIP of 40 positions, and `NAMES`."""
  folder = tmp_path_factory.mktemp("world")
  model = write_random_clip(folder, positions=40)
  clip = load_clip(str(folder))
  config = clip.config.text_config
  ids, lengths = tokenize([f"{name}." for name in NAMES], clip.tokenizer, config)
  _, name_lengths = tokenize(NAMES, clip.tokenizer, config)
  tokens = jax.tree.map(jnp.asarray, ClassTokens(ids, name_lengths - 1, lengths))
  return World(clip, copy.deepcopy(model).double(), tokens)


@pytest.fixture(scope="session")
def images():
  """Sixteen images of noise."""
  return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def image_features(world, images):
  """Their features by torch in float64 [16, E]."""
  mean, std = np.array(world.clip.mean), np.array(world.clip.std)
  pixels = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)
  with torch.no_grad():
    return pooled(world.model.get_image_features(torch.as_tensor(pixels))).numpy()
