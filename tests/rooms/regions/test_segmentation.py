"""Label maps of windows against a re-statement of NACLIP's pipeline in torch."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from pomp_jax.encoder import Encoder
from pomp_jax.rooms.regions import dense
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.dense import RECIPES, DenseSegmenter, dense_tower
from pomp_jax.rooms.regions.fields import Segment

WINDOW, STRIDE, PATCH = 32, 16, 8


def _settings(**own):
  return Segment(**{"logit_scale": 40.0} | own)


def _image(height, width, seed=0):
  """Smooth colours, so that labels form areas and PAMR has edges to follow."""
  noise = np.random.default_rng(seed).random((1, 3, 6, 7))
  smooth = functional.interpolate(torch.as_tensor(noise), size=(height, width), mode="bilinear")
  return (255 * smooth[0].permute(1, 2, 0)).round().numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def matrix(clip_and_torch):
  """Four classes with 3, 1, 2 and 1 names, in directions in which patches differ."""
  clip, _ = clip_and_torch
  tower = jax.jit(dense_tower(clip, RECIPES["naclip"]))
  patches = np.array(tower(clip.vision_params, _image(64, 64, seed=1)[None])).reshape(64, -1)
  rows = (patches - patches.mean(axis=0))[::10]
  return ClassMatrix(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.array([0, 3, 4, 6]))


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
  """Steps of NACLIP's `forward_slide`, `predict` and `postprocess_result`; the probabilities."""
  tower = jax.jit(dense_tower(clip, RECIPES[settings.recipe]))
  short, long = sorted(image.shape[:2])
  factor = min(settings.size / short, 2048 / long) if settings.size else 1
  sides = [max(int(side * factor + 0.5), PATCH) for side in image.shape[:2]]
  pixels = torch.as_tensor(image).permute(2, 0, 1)[None].double()
  small = functional.interpolate(pixels, size=sides, mode="bilinear").round()
  height, width = sides
  crop = [min(settings.window or side, side) for side in sides]
  total, count = torch.zeros(len(matrix.features), height, width), torch.zeros(height, width)
  for row in range(max(height - crop[0] + settings.stride - 1, 0) // settings.stride + 1):
    for column in range(max(width - crop[1] + settings.stride - 1, 0) // settings.stride + 1):
      y = min(row * settings.stride + crop[0], height) - crop[0]
      x = min(column * settings.stride + crop[1], width) - crop[1]
      part = small[0, :, y : y + crop[0], x : x + crop[1]].permute(1, 2, 0).byte().numpy()
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
  classes = [probability[a:b].max(0)[0] for a, b in zip(matrix.starts, ends, strict=True)]
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
        recipe="sclip", size=0, window=WINDOW, stride=24, logit_scale=4.0, background_below=0.3
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
  settings = _settings(size=40, window=WINDOW, stride=STRIDE, background_below=0.2, pamr=2)
  image, encoder = _image(50, 75), Encoder(clip_and_torch[0])
  ((whole,),) = DenseSegmenter(encoder, settings).label_maps([image], [matrix])
  assert len(np.unique(whole.labels_HxW)) > 2
  for most in (3, 1):
    monkeypatch.setattr(dense, "_MAX_SCORES", most * 128 * 128)
    ((found,),) = DenseSegmenter(encoder, settings).label_maps([image], [matrix])
    np.testing.assert_array_equal(found.labels_HxW, whole.labels_HxW)
    np.testing.assert_allclose(found.probability_HxW, whole.probability_HxW, rtol=1e-4)


def test_labels_of_a_large_image_are_enlarged(clip_and_torch, matrix, monkeypatch):
  """Within a limit of pixels the scores are resized to fewer, as torch would, then the labels."""
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
