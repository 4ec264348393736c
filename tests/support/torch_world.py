"""A random CLIP and classes with ragged names, and the same in torch's float64."""

import copy
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import CLIPModel

from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.clip.tokens import tokenize
from pomp_jax.prompt.context import ClassTokens
from pomp_jax.prompt.learner import Frozen
from tests.support.clips import pooled, write_random_clip
from tests.support.oracles import torch_class_feature, torch_losses

NAMES = (
  *("cat", "the dog of the star", "star", "x", "crème brûlée", "the cat"),
  *("dog star", "sea", "cat of cats", "dog", "red", "door"),
)


class World(NamedTuple):
  """One CLIP, ours and torch's, and N classes."""

  clip: Clip
  model: CLIPModel
  names: tuple[str, ...]
  tokens: ClassTokens

  @property
  def frozen(self) -> Frozen:
    """What a training step reads."""
    return Frozen(
      self.clip.text_params,
      self.clip.vision_params,
      self.clip.sos_embedding,
      self.tokens,
    )

  @property
  def scale(self) -> torch.Tensor:
    """What multiplies the cosine."""
    return self.model.logit_scale.exp().detach()

  def image_features(self, images: np.ndarray) -> torch.Tensor:
    """f(x) of images [B,E]."""
    pixels = (images / 255.0 - np.array(self.clip.mean)) / np.array(self.clip.std)
    return pooled(
      self.model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    )

  def class_feature(
    self, c: int, context: torch.Tensor, position: str = "end"
  ) -> torch.Tensor:
    """g(t_c) under a context [M,D] or [N,M,D]."""
    name = self.clip.tokenizer(self.names[c], add_special_tokens=False)["input_ids"]
    ids = self.clip.tokenizer(f"{self.names[c]}.")["input_ids"][1:]
    context = context if context.ndim == 2 else context[c]
    return torch_class_feature(self.model, context, ids, len(name), position)

  def class_features(
    self, context: torch.Tensor, position: str = "end"
  ) -> torch.Tensor:
    """g(t_c) of all classes [N,E]."""
    return torch.stack(
      [self.class_feature(c, context, position) for c in range(len(self.names))]
    )

  def loss(self, context, position, images, labels, drawn, correction="log"):
    """Mean loss and accuracy of one group of image features, from the context on."""
    features = {
      c: self.class_feature(c, context, position) for c in {*labels.tolist(), *drawn}
    }
    losses, hits = torch_losses(
      torch.tensor(images),
      [features[c] for c in labels.tolist()],
      [features[c] for c in drawn],
      labels.tolist(),
      drawn,
      scale=self.scale,
      n_classes=len(self.names),
      correction=correction,
    )
    return losses.mean(), hits.mean()


def write_world(
  folder: pathlib.Path, names: tuple[str, ...] = NAMES, positions: int = 40
) -> World:
  """Writes a CLIP of three layers in either tower and reads it."""
  model = copy.deepcopy(write_random_clip(folder, positions=positions)).double()
  model.requires_grad_(False)
  clip = load_clip(str(folder))
  config = clip.config.text_config
  ids, lengths = tokenize([f"{name}." for name in names], clip.tokenizer, config)
  _, name_lengths = tokenize(names, clip.tokenizer, config)
  tokens = jax.tree.map(jnp.asarray, ClassTokens(ids, name_lengths - 1, lengths))
  return World(clip, model, names, tokens)
