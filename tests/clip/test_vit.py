"""The ViT: grids of published towers, FlaxCLIP's tree, and what of the last layer is computed."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPVisionConfig

from pomp_jax.clip import image_tower, load_clip
from pomp_jax.clip.architecture import parameter_shapes
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.synthetic import synthetic_config
from tests.support.checks import assert_close, equations
from tests.support.clips import pooled, write_random_clip
from tests.support.flax_clip import flax_clip


@pytest.mark.parametrize(
  "heads, patch, activation", [(12, 16, "gelu"), (16, 14, "quick_gelu")], ids=["B/16", "L/14"]
)
def test_features_equal_torchs(tmp_path, heads, patch, activation):
  """Of towers with the published number of heads, each of width 4, and grids."""
  sizes = {"hidden_size": 4 * heads, "num_attention_heads": heads}
  sizes |= {"patch_size": patch, "image_size": 224}
  model = write_random_clip(tmp_path, hidden_act=activation, vision=sizes)
  clip = load_clip(str(tmp_path))
  images = np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), np.uint8)
  pixels = (images / np.float32(255) - np.float32(clip.mean)) / np.float32(clip.std)
  with torch.no_grad():
    expected = pooled(model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2))))
  assert_close(jax.jit(image_tower(clip))(clip.vision_params, images), expected)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch16", "RN50.safetensors"])
def test_the_tree_is_flax_clips(name):
  config = synthetic_config(name)
  found = parameter_shapes(config)
  vision = config.vision_config
  if isinstance(vision, ResNetConfig):
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = CLIPVisionConfig(**dict.fromkeys((*sizes, "image_size", "patch_size"), 1))
  whole = CLIPConfig(
    text_config=config.text_config.to_dict(),
    vision_config=vision.to_dict(),
    projection_dim=config.projection_dim,
  )
  model = flax_clip().FlaxCLIPModel(whole, _do_init=False)
  expected = jax.tree.map(jnp.shape, dict(model.params_shape_tree))
  if vision is not config.vision_config:
    for tree in (found, expected):
      tree.pop("vision_model")
    del expected["visual_projection"]
  assert found == expected


def test_the_last_layer_is_computed_where_it_is_read(quick):
  images = np.zeros((2, 32, 32, 3), np.uint8)
  program = jax.make_jaxpr(image_tower(quick.clip))(quick.clip.vision_params, images)
  inner = quick.clip.config.vision_config.intermediate_size
  shapes = [
    e.outvars[0].aval.shape
    for e in equations(program.jaxpr)
    if e.primitive.name == "dot_general" and e.outvars[0].aval.shape[-1] == inner
  ]
  assert shapes == [(2, 17, inner)] * 2 + [(2, 1, inner)]


@pytest.mark.parametrize(
  "field, value, found",
  [
    ("hidden_act", "swish", "hidden_act: got 'swish', expected quick_gelu, gelu"),
    ("num_attention_heads", 5, "num_attention_heads: got 5, expected a divisor of 48"),
  ],
)
def test_a_tower_that_cannot_be_built(quick, field, value, found):
  vision = copy.deepcopy(quick.clip.config.vision_config)
  setattr(vision, field, value)
  with pytest.raises(ValueError, match=found):
    parameter_shapes(dataclasses.replace(quick.clip.config, vision_config=vision))
