"""Dense recipes against a re-statement on HuggingFace's torch modules holding the same
weights.

Label maps of windows against a re-statement of NACLIP's pipeline in torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.encoder import Encoder
from pomp_jax.rooms.regions import dense
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.dense import DenseSegmenter
from pomp_jax.rooms.regions.dense_tower import RECIPES, dense_tower
from pomp_jax.rooms.regions.fields import Segment

WINDOW, STRIDE, PATCH = 32, 16, 8


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
  query, key, value = (
    split(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
  )
  scale = attention.head_dim**-0.5
  if name == "clip":
    weights = (scale * query @ key.mT).softmax(-1)
  elif name == "maskclip":
    weights = torch.eye(x.shape[1])
  elif name == "sclip":
    weights = (scale * query @ query.mT).softmax(-1) + (scale * key @ key.mT).softmax(
      -1
    )
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
    how = (
      {"size": grid}
      if name == "clip"
      else {"scale_factor": [(n + 0.1) / 4 for n in grid]}
    )
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
  """On a grid longer and narrower than the positions' 4 x 4, on itself, and on one
  as large."""
  images = _images(size)
  with torch.no_grad():
    expected = functional.normalize(_torch_tokens(quick, name, images)[:, 1:], dim=-1)
  found = jax.jit(dense_tower(quick.clip, RECIPES[name]))(
    quick.clip.vision_params, images
  )
  assert found.shape == (2, size[0] // PATCH, size[1] // PATCH, 24)
  np.testing.assert_allclose(
    found.reshape(2, -1, 24), expected.numpy(), rtol=0, atol=1e-5
  )


def test_bfloat16_has_the_features_within_its_error(quick):
  exact, rounded = (
    jax.jit(dense_tower(quick.clip, RECIPES["naclip"], dtype))(
      quick.clip.vision_params, _images((40, 24))
    )
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  assert rounded.dtype == jnp.float32
  assert 0 < np.abs(rounded - exact).max() < 0.03


def _settings(**own):
  return Segment(**{"logit_scale": 40.0} | own)


def _image(height, width, seed=0):
  """Smooth colours, so that labels form areas and PAMR has edges to follow."""
  noise = np.random.default_rng(seed).random((1, 3, 6, 7))
  smooth = functional.interpolate(
    torch.as_tensor(noise), size=(height, width), mode="bilinear"
  )
  return (255 * smooth[0].permute(1, 2, 0)).round().numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def matrix(clip_and_torch):
  """Four classes with 3, 1, 2 and 1 names, in directions in which patches differ."""
  clip, _ = clip_and_torch
  tower = jax.jit(dense_tower(clip, RECIPES["naclip"]))
  patches = np.array(tower(clip.vision_params, _image(64, 64, seed=1)[None])).reshape(
    64, -1
  )
  rows = (patches - patches.mean(axis=0))[::10]
  return ClassMatrix(
    rows / np.linalg.norm(rows, axis=1, keepdims=True), np.array([0, 3, 4, 6])
  )


def _torch_pamr(scores, image, steps):
  """Neighbours by `unfold` of the replicated border, in float64."""

  def around(maps, with_center):
    found = []
    for dilation in (8, 16):
      padded = functional.pad(maps[None], [dilation] * 4, mode="replicate")
      columns = functional.unfold(padded, 3, dilation=dilation)
      columns = columns.view(maps.shape[0], 9, *maps.shape[1:])
      keep = [i for i in range(9) if with_center or i != 4]
      found.append(columns[:, keep])
    return torch.cat(found, dim=1)

  scores, image = scores.double(), image.double()
  deviation = around(image, True).std(1, keepdim=True)
  affinity = -(around(image, False) - image[:, None]).abs() / (1e-8 + 0.1 * deviation)
  weights = affinity.mean(0).softmax(0)
  for _ in range(steps):
    scores = (around(scores, False) * weights).sum(1)
  return scores


def _expected(clip, image, matrix, settings):
  """Steps of NACLIP's `forward_slide`, `predict` and `postprocess_result`; the
  probabilities."""
  tower = jax.jit(dense_tower(clip, RECIPES[settings.recipe]))
  short, long = sorted(image.shape[:2])
  factor = min(settings.size / short, 2048 / long) if settings.size else 1
  sides = [max(int(side * factor + 0.5), PATCH) for side in image.shape[:2]]
  pixels = torch.as_tensor(image).permute(2, 0, 1)[None].double()
  small = functional.interpolate(pixels, size=sides, mode="bilinear").round()
  height, width = sides
  crop = [min(settings.window or side, side) for side in sides]
  total, count = (
    torch.zeros(len(matrix.features), height, width),
    torch.zeros(height, width),
  )
  for row in range(
    max(height - crop[0] + settings.stride - 1, 0) // settings.stride + 1
  ):
    for column in range(
      max(width - crop[1] + settings.stride - 1, 0) // settings.stride + 1
    ):
      y = min(row * settings.stride + crop[0], height) - crop[0]
      x = min(column * settings.stride + crop[1], width) - crop[1]
      part = (
        small[0, :, y : y + crop[0], x : x + crop[1]].permute(1, 2, 0).byte().numpy()
      )
      # A convolution of stride 8 drops the remainder.
      part = part[: crop[0] // PATCH * PATCH, : crop[1] // PATCH * PATCH]
      features = np.array(tower(clip.vision_params, part[None])[0])
      cosine = torch.as_tensor(features @ matrix.features.T).permute(2, 0, 1)[None]
      total[:, y : y + crop[0], x : x + crop[1]] += functional.interpolate(
        cosine, size=crop, mode="bilinear"
      )[0]
      count[y : y + crop[0], x : x + crop[1]] += 1
  out = image.shape[:2]
  scores = functional.interpolate((total / count)[None], size=out, mode="bilinear")[0]
  if settings.pamr:
    guide = functional.interpolate(small, size=out, mode="bilinear")[0]
    scores = _torch_pamr(scores, guide, settings.pamr)
  probability = (scores * settings.logit_scale).softmax(0)
  ends = [*matrix.starts[1:], len(matrix.features)]
  classes = [
    probability[a:b].max(0)[0] for a, b in zip(matrix.starts, ends, strict=True)
  ]
  best, labels = torch.stack(classes).max(0)
  labels[best < settings.background_below] = 0
  return labels.numpy(), best.numpy()


@pytest.mark.parametrize(
  "shape, settings",
  [
    ((50, 75), _settings(size=40, window=WINDOW, stride=STRIDE)),
    ((50, 75), _settings(size=40, window=WINDOW, stride=STRIDE, pamr=3)),
    (
      (131, 40),
      _settings(
        recipe="sclip",
        size=0,
        window=WINDOW,
        stride=24,
        logit_scale=4.0,
        background_below=0.3,
      ),
    ),
    ((45, 92), _settings(recipe="clearclip", size=0, window=0, stride=STRIDE)),
    ((20, 45), _settings(recipe="maskclip", size=0, window=WINDOW, stride=STRIDE)),
    ((1, 1), _settings(size=0, window=WINDOW, stride=WINDOW)),
    ((60, 7), _settings(size=0, window=WINDOW, stride=WINDOW)),
    ((3, 50), _settings(size=40, window=WINDOW, stride=WINDOW)),
    ((2, 3000), _settings(size=40, window=WINDOW, stride=WINDOW)),
  ],
  ids=["resized", "refined", "background", "whole image", "lower than a window"]
  + ["a pixel", "narrower than a patch", "lower than a patch", "very long"],
)
def test_label_maps_equal_naclips_pipeline(clip_and_torch, matrix, shape, settings):
  clip, _ = clip_and_torch
  image = _image(*shape)
  expected, probability = _expected(clip, image, matrix, settings)
  segmenter = DenseSegmenter(Encoder(clip), settings, chunk=8)
  other = ClassMatrix(matrix.features[::-1].copy(), np.arange(7))
  maps = list(segmenter.label_maps([image, image[::-1].copy()], [matrix, other]))
  assert [[one.labels_HxW.shape for one in each] for each in maps] == [[shape] * 2] * 2
  assert len(np.unique(expected)) > (shape != (1, 1))
  # Rounding decides pixels on the line between two classes.
  assert (maps[0][0].labels_HxW == expected).mean() > 0.995
  plain, _ = _expected(clip, image, other, settings)
  assert (maps[0][1].labels_HxW == plain).mean() > 0.995
  np.testing.assert_allclose(maps[0][0].probability_HxW, probability, rtol=0.02)


def test_names_in_chunks(clip_and_torch, matrix, monkeypatch):
  """Seven names in chunks of three, the last of which is filled, and one by one."""
  settings = _settings(
    size=40, window=WINDOW, stride=STRIDE, background_below=0.2, pamr=2
  )
  image, encoder = _image(50, 75), Encoder(clip_and_torch[0])
  ((whole,),) = DenseSegmenter(encoder, settings).label_maps([image], [matrix])
  assert len(np.unique(whole.labels_HxW)) > 2
  for most in (3, 1):
    monkeypatch.setattr(dense, "_MAX_SCORES", most * 128 * 128)
    ((found,),) = DenseSegmenter(encoder, settings).label_maps([image], [matrix])
    np.testing.assert_array_equal(found.labels_HxW, whole.labels_HxW)
    np.testing.assert_allclose(found.probability_HxW, whole.probability_HxW, rtol=1e-4)


def test_labels_of_a_large_image_are_enlarged(clip_and_torch, matrix, monkeypatch):
  """Within a limit of pixels the scores are resized to fewer, as torch would, then
  the labels."""
  settings = _settings(size=40, window=WINDOW, stride=STRIDE)
  segmenter = DenseSegmenter(Encoder(clip_and_torch[0]), settings)
  image = _image(90, 120)
  (((whole, _),),) = segmenter.label_maps([image], [matrix])
  monkeypatch.setattr(dense, "_MAX_PIXELS", 45 * 60)
  (((found, _),),) = segmenter.label_maps([image], [matrix])
  small = torch.as_tensor(found[::2, ::2])[None, None].float()
  enlarged = functional.interpolate(small, size=(90, 120), mode="nearest")[0, 0]
  np.testing.assert_array_equal(found, enlarged.numpy().astype(int))
  assert 0.9 < (found == whole).mean() < 1
  # A very narrow one becomes one pixel high: 0.2 of its sides are 0.4 and 72 pixels.
  image = _image(2, 360)
  monkeypatch.setattr(dense, "_MAX_PIXELS", 28.8)
  (((found, _),),) = segmenter.label_maps([image], [matrix])
  np.testing.assert_array_equal(
    found, np.repeat(found[:1, ::5], 5, axis=1).repeat(2, axis=0)
  )
