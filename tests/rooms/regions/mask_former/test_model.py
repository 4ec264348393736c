"""The network against HuggingFace's modules, from ZSSeg's checkpoint; padding,
types, logits."""

import copy

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest
import torch

from pomp_jax.rooms.regions.mask_former.model import (
  MaskFormer,
  mask_predictor,
  normalized_pixels,
  parameter_groups,
)
from pomp_jax.rooms.regions.mask_former.published_weights import read_mask_former
from tests.rooms.regions.region_jobs import TINY, random_params
from tests.support.checks import assert_close, equations
from tests.support.torch_mask_former import layer_outputs, predictions, zsseg_state

# The last map is 5 x 4: the dilation of 4 reaches across it.
LARGE = np.random.default_rng(0).integers(0, 256, (2, 160, 128, 3), np.uint8)


def loss_of(masks, embeddings):
  """One number of all layers, for its gradient; of arrays or tensors."""
  return (masks**2).mean() + (embeddings**2).mean()


@pytest.fixture(scope="module")
def found(checkpoint):
  """Output of the network, and the gradient of `loss_of`."""
  stored = read_mask_former(checkpoint)
  model = MaskFormer(stored.config)

  @jax.jit
  def apply(params, images):
    def loss(params):
      output = model.apply(
        {"params": params}, normalized_pixels(images), all_layers=True
      )
      return loss_of(output.masks_JxBxQxhxw, output.embeddings_JxBxQxE), output

    gradient, output = jax.grad(loss, has_aux=True)(params)
    return output, gradient

  return apply(stored.params, LARGE)


def test_masks_and_embeddings_of_every_layer(found, torch_model):
  masks, embeddings = predictions(torch_model, LARGE)
  output, _ = found
  assert masks.shape == (3, 2, 7, 40, 32)
  for layer in range(3):
    assert_close(output.masks_JxBxQxhxw[layer], masks[layer], 1e-4)
    assert_close(output.embeddings_JxBxQxE[layer], embeddings[layer], 1e-4)
  np.testing.assert_array_equal(output.non_object_E, torch.linspace(-1, 1, 24))


def test_gradients_of_all_parameters(found, torch_model, tmp_path):
  """Torch's gradients, stored in the place of the weights, are read as our reader
  reads weights."""
  as_weights = copy.deepcopy(torch_model)
  loss_of(*layer_outputs(as_weights, LARGE)).backward()
  for parameter in as_weights.parameters():
    parameter.data = parameter.grad
  torch.save({"model": zsseg_state(as_weights)}, tmp_path / "gradients.pth")
  expected = flatten_dict(read_mask_former(tmp_path / "gradients.pth").params)
  _, gradient = found
  groups = flatten_dict(parameter_groups(gradient))
  norm = max(
    np.abs(leaf).max() for path, leaf in expected.items() if groups[path] != "frozen"
  )
  for path, leaf in flatten_dict(gradient).items():
    if groups[path] != "frozen" and path != ("non_object",):
      np.testing.assert_allclose(
        leaf,
        expected[path],
        rtol=1e-3,
        atol=1e-3 * np.abs(expected[path]).max() + 1e-6 * norm,
        err_msg=str(path),
      )


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 60, 90, 3), np.uint8)
SIZES = np.array([[60, 90], [40, 50]], np.int32)


@pytest.fixture(scope="module")
def params():
  return random_params()


def test_padding_is_zeros_after_the_normalisation(params):
  """Pixels beyond an image's size have no effect; the last of all layers is found."""
  masks, embeddings = jax.jit(mask_predictor(TINY))(params, IMAGES, SIZES)
  padded = np.zeros((2, 64, 96, 3), np.float32)
  for row, image, (height, width) in zip(padded, IMAGES, SIZES, strict=True):
    row[:height, :width] = normalized_pixels(image[None])[0, :height, :width]
  apply = jax.jit(
    lambda x: MaskFormer(TINY).apply({"params": params}, x, all_layers=True)
  )
  expected = apply(padded)
  assert_close(masks, expected.masks_JxBxQxhxw[-1])
  assert_close(embeddings, expected.embeddings_JxBxQxE[-1])


def test_products_are_of_the_compute_type(params):
  predict = mask_predictor(TINY, "bfloat16")
  program, found = jax.make_jaxpr(predict, return_shape=True)(params, IMAGES, SIZES)
  kinds = ("dot_general", "conv_general_dilated")
  products = [e for e in equations(program.jaxpr) if e.primitive.name in kinds]
  assert len(products) > 30
  assert {x.aval.dtype.name for e in products for x in e.invars} == {"bfloat16"}
  assert {x.dtype.name for x in found} == {"float32"}
