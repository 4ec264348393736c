"""The network against torchvision's and HuggingFace's modules, from ZSSeg's checkpoint."""

import copy

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.maskformer.modeling_maskformer import MaskFormerSinePositionEmbedding

from pomp_jax.rooms.regions.mask_former.decoders import sine_positions
from pomp_jax.rooms.regions.mask_former.model import MaskFormer, normalized_pixels, parameter_groups
from pomp_jax.rooms.regions.mask_former.weights import read_mask_former
from tests.support.checks import assert_close
from tests.support.torch_mask_former import layer_outputs, predictions, torch_pixels, zsseg_state

# The last map is 5 x 4: the dilation of 4 reaches across it.
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 160, 128, 3), np.uint8)


def loss_of(masks, embeddings):
  """One number of all layers, for its gradient; of arrays or tensors."""
  return (masks**2).mean() + (embeddings**2).mean()


@pytest.fixture(scope="module")
def found(checkpoint):
  """Output of the network, outputs of its parts, and the gradient of `loss_of`."""
  stored = read_mask_former(checkpoint)
  model = MaskFormer(stored.config)

  @jax.jit
  def apply(params, images):
    def loss(params):
      output, parts = model.apply(
        {"params": params},
        normalized_pixels(images),
        all_layers=True,
        capture_intermediates=lambda module, _: module.name in ("backbone", "pixel_decoder"),
        mutable=["intermediates"],
      )
      value = loss_of(output.masks_JxBxQxhxw, output.embeddings_JxBxQxE)
      return value, (output, parts["intermediates"])

    gradient, aux = jax.grad(loss, has_aux=True)(params)
    return *aux, gradient

  return apply(stored.params, IMAGES)


def test_masks_and_embeddings_of_every_layer(found, torch_model):
  masks, embeddings = predictions(torch_model, IMAGES)
  output, *_ = found
  assert masks.shape == (3, 2, 7, 40, 32)
  for layer in range(3):
    assert_close(output.masks_JxBxQxhxw[layer], masks[layer], 1e-4)
    assert_close(output.embeddings_JxBxQxE[layer], embeddings[layer], 1e-4)
  np.testing.assert_array_equal(output.non_object_E, torch.linspace(-1, 1, 24))


def test_maps_of_the_backbone_and_the_pixel_decoder(found, torch_model):
  _, parts, _ = found
  with torch.no_grad():
    module = torch_model.model.pixel_level_module
    expected = module(torch_pixels(IMAGES), output_hidden_states=True)
  maps = parts["backbone"]["__call__"][0]
  assert [x.shape[-1] for x in maps] == [32, 64, 128, 256]
  for one, other in zip(maps, expected.encoder_hidden_states, strict=True):
    assert_close(one, other.permute(0, 2, 3, 1), 1e-4)
  (features,) = parts["pixel_decoder"]["__call__"]
  assert_close(features, expected.decoder_last_hidden_state.permute(0, 2, 3, 1), 1e-4)


def test_gradients_of_all_parameters(found, torch_model, tmp_path):
  """Torch's gradients, stored in the place of the weights, are read as our reader reads weights."""
  as_weights = copy.deepcopy(torch_model)
  loss_of(*layer_outputs(as_weights, IMAGES)).backward()
  for parameter in as_weights.parameters():
    parameter.data = parameter.grad
  torch.save({"model": zsseg_state(as_weights)}, tmp_path / "gradients.pth")
  expected = flatten_dict(read_mask_former(tmp_path / "gradients.pth").params)
  groups = flatten_dict(parameter_groups(found[2]))
  norm = max(np.abs(leaf).max() for path, leaf in expected.items() if groups[path] != "frozen")
  for path, leaf in flatten_dict(found[2]).items():
    if groups[path] != "frozen" and path != ("non_object",):
      np.testing.assert_allclose(
        leaf,
        expected[path],
        rtol=1e-3,
        atol=1e-3 * np.abs(expected[path]).max() + 1e-6 * norm,
        err_msg=str(path),
      )


@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_positions(shape):
  embed = MaskFormerSinePositionEmbedding(6, normalize=True)
  expected = embed((1, 12, *shape), "cpu", torch.float32)[0].flatten(1).T
  np.testing.assert_allclose(jnp.asarray(sine_positions(*shape, 12)), expected, atol=1e-5)
