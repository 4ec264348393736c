"""Dense recipes against a re-statement on HuggingFace's torch modules holding the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.clip import Clip, ClipError
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.rooms.regions.dense import RECIPES, dense_tower

PATCH = 8


def _images(size):
  return np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)


def _near(grid):
  """NACLIP's Gaussian, entry by entry."""
  n_tokens = 1 + grid[0] * grid[1]
  bias = torch.zeros(n_tokens, n_tokens)
  for i in range(1, n_tokens):
    for j in range(1, n_tokens):
      (y, x), (v, u) = divmod(i - 1, grid[1]), divmod(j - 1, grid[1])
      bias[i, j] = np.exp(-((y - v) ** 2 + (x - u) ** 2) / 50)
  return bias


def _attended(name, attention, x, grid):
  """Each published attention in its own words."""
  split = lambda rows: rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
  query, key, value = (split(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
  scale = attention.head_dim**-0.5
  if name == "clip":
    weights = (scale * query @ key.mT).softmax(-1)
  elif name == "maskclip":
    weights = torch.eye(x.shape[1])
  elif name == "sclip":
    weights = (scale * query @ query.mT).softmax(-1) + (scale * key @ key.mT).softmax(-1)
  elif name == "clearclip":
    weights = (scale * query @ query.mT).softmax(-1)
  else:
    weights = (scale * key @ key.mT + _near(grid)).softmax(-1)
  return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


def _torch_tokens(stored, name, images):
  """Projected tokens, with torch's interpolation of the positions."""
  vision, clip = stored.torch_model.vision_model, stored.clip
  mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
  pixels = (torch.as_tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
  grid = images.shape[1] // PATCH, images.shape[2] // PATCH
  embeddings = vision.embeddings
  positions = embeddings.position_embedding.weight
  if grid != (4, 4):
    square = positions[1:].unflatten(0, (4, 4)).permute(2, 0, 1)[None]
    how = {"size": grid} if name == "clip" else {"scale_factor": [(n + 0.1) / 4 for n in grid]}
    resized = functional.interpolate(square, mode="bicubic", **how)[0]
    positions = torch.cat([positions[:1], resized.flatten(1).T])
  patches = embeddings.patch_embedding(pixels).flatten(2).mT
  classes = embeddings.class_embedding.expand(len(images), 1, -1)
  x = vision.pre_layrnorm(torch.cat([classes, patches], dim=1) + positions)
  for layer in vision.encoder.layers[:-1]:
    x = x + _attended("clip", layer.self_attn, layer.layer_norm1(x), grid)
    x = x + layer.mlp(layer.layer_norm2(x))
  last = vision.encoder.layers[-1]
  attended = _attended(name, last.self_attn, last.layer_norm1(x), grid)
  if name in ("clip", "maskclip", "sclip"):
    x = x + attended
    x = x + last.mlp(last.layer_norm2(x))
  else:
    x = attended
  return stored.torch_model.visual_projection(vision.post_layernorm(x))


@pytest.mark.parametrize(
  "name, size",
  [*((name, (40, 24)) for name in RECIPES), ("naclip", (32, 32)), ("naclip", (16, 64))],
)
def test_recipes_equal_torch(quick, name, size):
  """On a grid longer and narrower than the positions' 4 x 4, on itself, and on one as large."""
  images = _images(size)
  with torch.no_grad():
    expected = functional.normalize(_torch_tokens(quick, name, images)[:, 1:], dim=-1)
  found = jax.jit(dense_tower(quick.clip, RECIPES[name]))(quick.clip.vision_params, images)
  assert found.shape == (2, size[0] // PATCH, size[1] // PATCH, 24)
  np.testing.assert_allclose(found.reshape(2, -1, 24), expected.numpy(), rtol=0, atol=1e-5)


def test_bfloat16_has_the_features_within_its_error(quick):
  exact, rounded = (
    jax.jit(dense_tower(quick.clip, RECIPES["naclip"], dtype))(
      quick.clip.vision_params, _images((40, 24))
    )
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  assert rounded.dtype == jnp.float32
  assert 0 < np.abs(rounded - exact).max() < 0.03


def test_other_sides_and_other_backbones_are_named(quick):
  tower = dense_tower(quick.clip, RECIPES["naclip"])
  with pytest.raises(ClipError, match="multiples of 8"):
    tower(quick.clip.vision_params, _images((32, 36)))
  with pytest.raises(ClipError, match="RN50"):
    vision = ResNetConfig((3, 4, 6, 3), 64, 32, 224, 1024)
    config = dataclasses.replace(quick.clip.config, vision_config=vision)
    dense_tower(Clip("RN50", config, {}, quick.clip.tokenizer), RECIPES["naclip"])
