"""The whole network: layers, dropout, class logits, padding, and what is trained."""

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.rooms.regions.mask_former.backbone import ResNetSizes
from pomp_jax.rooms.regions.mask_former.inference import mask_predictor
from pomp_jax.rooms.regions.mask_former.model import (
  VARIANTS,
  MaskFormer,
  MaskFormerConfig,
  class_logits,
  normalized_pixels,
  parameter_groups,
  parameter_shapes,
)
from tests.support.checks import assert_close, equations
from tests.support.region_jobs import TINY, random_params

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 60, 90, 3), np.uint8)
SIZES = np.array([[60, 90], [40, 50]], np.int32)
LOGITS = ((2, 3, 8), (5, 8), (8,))  # queries, classes, the vector of no object


@pytest.fixture(scope="module")
def params():
  return random_params()


@jax.jit
def _output(params, pixels):
  return MaskFormer(TINY).apply({"params": params}, pixels, all_layers=True)


def test_padding_is_zeros_after_the_normalisation(params):
  """Pixels beyond an image's size have no effect; the last of all layers is found."""
  found = jax.jit(mask_predictor(TINY))(params, IMAGES, SIZES)
  padded = np.zeros((2, 64, 96, 3), np.float32)
  for row, image, (height, width) in zip(padded, IMAGES, SIZES, strict=True):
    row[:height, :width] = normalized_pixels(image[None])[0, :height, :width]
  expected = _output(params, padded)
  assert_close(found.masks_BxQxhxw, expected.masks_JxBxQxhxw[-1])
  assert_close(found.embeddings_BxQxE, expected.embeddings_JxBxQxE[-1])


def test_products_are_of_the_compute_type(params):
  predict = mask_predictor(TINY, "bfloat16")
  program, found = jax.make_jaxpr(predict, return_shape=True)(params, IMAGES, SIZES)
  kinds = ("dot_general", "conv_general_dilated")
  products = [e for e in equations(program.jaxpr) if e.primitive.name in kinds]
  assert len(products) > 30
  assert {x.aval.dtype.name for e in products for x in e.invars} == {"bfloat16"}
  assert {x.dtype.name for x in found} == {"float32"}


def test_class_logits_are_scaled_cosines():
  queries, classes, null = (RNG.standard_normal(shape, np.float32) for shape in LOGITS)
  found = class_logits(jnp.asarray(queries), jnp.asarray(classes), jnp.asarray(null))
  unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
  assert_close(found, 100 * unit(queries) @ unit(np.stack([*classes, null])).T)


@pytest.mark.parametrize("side", [48, 100])
def test_sides_that_do_not_fit(params, side):
  with pytest.raises(ValueError, match=f"got sides 64 x {side}, expected multiples of 32"):
    MaskFormer(TINY).apply({"params": params}, jnp.zeros((1, 64, side, 3)))


def test_groups_of_parameters():
  config = MaskFormerConfig(backbone=ResNetSizes((1, 1, 1, 3), 8, 16), n_layers=1)
  shapes = flatten_dict(parameter_shapes(config))
  groups = flatten_dict(parameter_groups(parameter_shapes(config)))
  assert groups.keys() == shapes.keys()
  for path, group in groups.items():
    in_backbone = "frozen" if "norm" in path else "backbone"
    assert group == (in_backbone if path[0] == "backbone" else "heads")
  of_small = flatten_dict(parameter_groups(parameter_shapes(VARIANTS["small"])))
  assert set(of_small.values()) == {"backbone", "heads"}
