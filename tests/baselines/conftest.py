"""A random CLIP, twelve classes, some images of noise, and the same in torch's float64."""

import copy
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPModel

from pomp_jax.clip import Clip, load_clip, tokenize
from pomp_jax.prompt.context import ClassTokens
from pomp_jax.prompt.learner import Frozen
from tests.support.clips import write_random_clip
from tests.support.oracles import torch_class_feature

NAMES = (
  *("cat", "the dog of the star", "star", "x", "the cat"),
  *("dog star", "sea", "cat of cats", "dog", "red"),
)


class Tiny(NamedTuple):
  """One CLIP, ours and torch's, ten classes, eight images and their labels."""

  clip: Clip
  model: CLIPModel
  frozen: Frozen
  images: np.ndarray
  labels: np.ndarray

  @property
  def pixels(self) -> torch.Tensor:
    """The images as torch's vision tower takes them."""
    mean, std = np.array(self.clip.mean), np.array(self.clip.std)
    return torch.tensor(((self.images / 255.0 - mean) / std).transpose(0, 3, 1, 2))

  @property
  def scale(self) -> torch.Tensor:
    """What multiplies the cosine."""
    return self.model.logit_scale.exp().detach()

  def class_feature(self, c: int, context: torch.Tensor, position: str) -> torch.Tensor:
    """g(t_c) under a context."""
    name = self.clip.tokenizer(NAMES[c], add_special_tokens=False)["input_ids"]
    ids = self.clip.tokenizer(f"{NAMES[c]}.")["input_ids"][1:]
    return torch_class_feature(self.model, context, ids, len(name), position)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  """Three layers in either tower; class features of its own for learners that want fixed ones."""
  folder = tmp_path_factory.mktemp("tiny")
  model = copy.deepcopy(write_random_clip(folder, positions=24)).double()
  model.requires_grad_(False)
  clip = load_clip(str(folder))
  config = clip.config.text_config
  ids, lengths = tokenize([f"{name}." for name in NAMES], clip.tokenizer, config)
  _, name_lengths = tokenize(NAMES, clip.tokenizer, config)
  tokens = ClassTokens(*map(jnp.asarray, (ids, name_lengths - 1, lengths)))
  rng = np.random.default_rng(0)
  classes = rng.standard_normal((len(NAMES), clip.config.projection_dim)).astype(np.float32)
  frozen = Frozen(clip.text_params, clip.vision_params, clip.sos_embedding, tokens, classes)
  images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
  return Tiny(clip, model, frozen, images, np.array([3, 3, 7, 0, 1, 9, 4, 3], np.int32))
