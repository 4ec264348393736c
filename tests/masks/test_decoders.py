"""The network against torchvision's and HuggingFace's modules, from ZSSeg's checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.maskformer.modeling_maskformer import MaskFormerSinePositionEmbedding

from pomp_jax.masks.decoders import sine_positions
from pomp_jax.masks.model import MaskFormer, normalized_pixels
from pomp_jax.masks.weights import read_mask_former
from tests.support.checks import assert_close
from tests.support.torch_mask_former import predictions, torch_pixels

# The last map is 5 x 4: the dilation of 4 reaches across it.
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 160, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def found(checkpoint):
  """Output of the network and of its parts."""
  stored = read_mask_former(checkpoint)
  model = MaskFormer(stored.config)

  @jax.jit
  def apply(params, images):
    return model.apply(
      {"params": params},
      normalized_pixels(images),
      all_layers=True,
      capture_intermediates=lambda module, _: module.name in ("backbone", "pixel_decoder"),
      mutable=["intermediates"],
    )

  output, parts = apply(stored.params, IMAGES)
  return output, parts["intermediates"]


def test_masks_and_embeddings_of_every_layer(found, torch_model):
  masks, embeddings = predictions(torch_model, IMAGES)
  output, _ = found
  assert masks.shape == (3, 2, 7, 40, 32)
  for layer in range(3):
    assert_close(output.masks_JxBxQxhxw[layer], masks[layer], 1e-4)
    assert_close(output.embeddings_JxBxQxE[layer], embeddings[layer], 1e-4)


def test_maps_of_the_backbone_and_the_pixel_decoder(found, torch_model):
  _, parts = found
  with torch.no_grad():
    module = torch_model.model.pixel_level_module
    expected = module(torch_pixels(IMAGES), output_hidden_states=True)
  maps = parts["backbone"]["__call__"][0]
  assert [x.shape[-1] for x in maps] == [32, 64, 128, 256]
  for one, other in zip(maps, expected.encoder_hidden_states, strict=True):
    assert_close(one, other.permute(0, 2, 3, 1), 1e-4)
  (features,) = parts["pixel_decoder"]["__call__"]
  assert_close(features, expected.decoder_last_hidden_state.permute(0, 2, 3, 1), 1e-4)


def test_the_vector_of_no_object(found):
  np.testing.assert_array_equal(found[0].non_object_E, torch.linspace(-1, 1, 24))


@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_positions(shape):
  embed = MaskFormerSinePositionEmbedding(6, normalize=True)
  expected = embed((1, 12, *shape), "cpu", torch.float32)[0].flatten(1).T
  np.testing.assert_allclose(jnp.asarray(sine_positions(*shape, 12)), expected, atol=1e-5)
