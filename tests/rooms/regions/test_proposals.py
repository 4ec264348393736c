"""Regions of a network against the network itself, image by image."""

from faster_coco_eval.core import mask as mask_api
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import torch

from pomp_jax.config.fields import Clip
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.rooms.regions.fields import Propose
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.mask_former.model import (
  MaskFormer,
  class_logits,
  normalized_pixels,
)
from pomp_jax.rooms.regions.mask_former.published_weights import MaskFormerFile
from pomp_jax.rooms.regions.proposals import (
  Proposer,
  decisive_masks,
  found_objects,
  mask_boxes,
)
from tests.rooms.regions.region_jobs import TINY, random_params
from tests.support.checks import assert_close

RNG = np.random.default_rng(0)
CLASSES = RNG.standard_normal((3, TINY.embedding), np.float32)
IMAGES = [
  RNG.integers(0, 256, (*shape, 3), np.uint8)
  for shape in ((40, 56), (30, 64), (40, 56))
]


@pytest.fixture(scope="module")
def network():
  return MaskFormerFile(TINY, random_params(), ("a", "b", "c"))


@jax.jit
def output_of(params, pixels):
  return MaskFormer(TINY).apply({"params": params}, pixels)


def expected_of(network, image, classes):
  """Probabilities of the masks at stride 4, embeddings, and objectness."""
  pixels = normalized_pixels(image[None])
  output = output_of(network.params, pixels)
  height, width = image.shape[:2]
  logits = output.masks_JxBxQxhxw[-1, 0, :, : height // 4, : width // 4]
  p, embeddings = np.asarray(jax.nn.sigmoid(logits)), output.embeddings_JxBxQxE[-1, 0]
  objectness = []
  for mask, row in zip(p, embeddings, strict=True):
    quality = mask[mask > 0.5].mean() if (mask > 0.5).any() else 0.0
    null = 0.0
    if classes is not None:
      logits = class_logits(
        *map(jnp.asarray, (row[None], classes, output.non_object_E))
      )
      null = jax.nn.softmax(logits)[0, -1]
    objectness.append(quality * (1 - null))
  return p, embeddings, np.array(objectness)


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_regions_are_the_networks_masks_and_embeddings(network, classes):
  """Of images of two sizes together, one of which no multiple of 4."""
  proposer = Proposer(network, make_mesh(), classes, Propose(batch_size=2), Clip(), 0.5)
  for image, regions in zip(IMAGES, proposer.regions(IMAGES), strict=True):
    height, width = image.shape[:2]
    seen = Image.fromarray(image).resize(
      (width, 4 * round(height / 4)), Image.Resampling.BILINEAR
    )
    p, embeddings, objectness = expected_of(network, np.asarray(seen), classes)
    assert np.abs(regions.masks / 2.0**15 - p).max() < 2**-11
    assert_close(regions.embeddings[:, 0].astype(np.float32), embeddings, 2e-3)
    np.testing.assert_allclose(regions.objectness, objectness, atol=1e-4)
    for box, mask in zip(regions.boxes, regions.masks, strict=True):
      whole = Image.fromarray(mask.astype(np.float32)).resize((width, height), 2)
      ys, xs = np.nonzero(np.asarray(whole) > 2**14)
      tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0] * 4
      assert box.tolist() == tight


@pytest.mark.parametrize("deviation", [3.0, 40.0])
def test_masks_decide_every_pixel_as_the_published_fusion_does(deviation):
  """Random masks, below 1/510 in half of the image; float32 has no sigmoid of -110."""
  logits = RNG.normal(-deviation / 2, deviation, (20, 61, 83)).astype(np.float32)
  logits[:, :, 40:] -= 3.5 * deviation
  scores = torch.tensor(RNG.normal(0, 5, (20, 30))).softmax(-1)
  p = torch.tensor(logits, dtype=torch.float64).sigmoid()
  expected = torch.einsum("qc,qhw->chw", scores, p).argmax(0).numpy()
  masks = np.asarray(decisive_masks(jnp.asarray(logits)[None])[0])
  [found] = label_maps_of_regions([scores.numpy().astype(np.float32)], masks, 61, 83)
  assert (p.amax(0) < 1 / 510).double().mean() > 0.3
  assert (found == expected).mean() >= 0.999


def test_boxes_of_masks_finer_than_the_image_are_those_of_their_grid():
  masks = np.zeros((2, 8, 12), np.uint8)
  masks[0, 2:5, 3:9] = 200
  assert mask_boxes(masks, 4, 4, 0.5).tolist() == [[1.0, 1.0, 3.0, 2.5], [0.0] * 4]
  assert not mask_boxes(masks, 4, 4, 0.8).any()


def test_found_objects():
  objects = np.zeros((3, 4, 4), bool)
  objects[0, :2], objects[1, 2], objects[2, 3, 3] = True, True, True
  encoded = [mask_api.encode(np.asfortranarray(one, np.uint8)) for one in objects]
  masks = np.zeros((2, 4, 4), bool)
  # IoU 4/8 with the first, 3/7 with the second
  masks[0, 0], masks[1, 2:, :3] = True, True
  assert found_objects(masks, encoded).tolist() == [True, False, False]
  assert found_objects(masks, encoded, 0.4).tolist() == [True, True, False]
  assert not found_objects(masks[:0], encoded).any()
  assert found_objects(masks, []).shape == (0,)
