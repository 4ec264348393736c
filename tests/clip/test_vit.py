"""The ViT against FlaxCLIP's modules on the same tree, with heads and grid of published towers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip import Clip, image_tower, prompted_image_tower
from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.synthetic import SyntheticTokenizer, random_params, synthetic_config
from tests.support.checks import assert_close, equations
from tests.support.flax_clip import flax_clip

TEXT = CLIPTextConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=32,
  projection_dim=24,
  num_hidden_layers=1,
  num_attention_heads=1,
)
# Heads and patch size of B/16 and L/14; few and narrow layers.
SIZES = {"B/16": (12, 16), "L/14": (16, 14)}


def _config(name, activation):
  heads, patch = SIZES[name]
  vision = CLIPVisionConfig(
    hidden_size=4 * heads,
    intermediate_size=8 * heads,
    num_hidden_layers=3,
    num_attention_heads=heads,
    patch_size=patch,
    image_size=224,
    hidden_act=activation,
  )
  return ClipConfig(TEXT, vision, 24)


def _clip(config):
  shapes = parameter_shapes(config)
  params = random_params({key: shapes[key] for key in shapes if key != "logit_scale"}, seed=0)
  rng = np.random.default_rng(1)
  noisy = lambda leaf: np.float32(leaf + 0.05 * rng.standard_normal(leaf.shape))
  return Clip("random", config, jax.tree.map(noisy, params), SyntheticTokenizer({}))


def _flax_features(clip, params, images, tokens=None):
  """FlaxCLIP's modules one after another, with learned tokens as in Jia et al. (2022)."""
  modules, config, model = flax_clip(), clip.config.vision_config, params["vision_model"]
  norm = nn.LayerNorm(epsilon=config.layer_norm_eps)
  pixels = (images / np.float32(255) - np.float32(clip.mean)) / np.float32(clip.std)
  embeddings = modules.FlaxCLIPVisionEmbeddings(config)
  hidden = embeddings.apply({"params": model["embeddings"]}, pixels)
  n_own, layer = hidden.shape[1], modules.FlaxCLIPEncoderLayer(config)
  for j in range(config.num_hidden_layers):
    if tokens is not None and j < len(tokens):
      own = jnp.tile(tokens[j], (len(images), 1, 1)).astype(hidden.dtype)
      hidden = jnp.concatenate([hidden[:, :n_own], own], axis=1)
    if j == 0:
      hidden = norm.apply({"params": model["pre_layrnorm"]}, hidden)
    hidden = layer.apply({"params": model["encoder"]["layers"][str(j)]}, hidden, None)[0]
  pooled = norm.apply({"params": model["post_layernorm"]}, hidden[:, 0])
  return pooled @ params["visual_projection"]["kernel"]


@pytest.mark.parametrize(
  "name, activation", [("B/16", "quick_gelu"), ("B/16", "gelu"), ("L/14", "quick_gelu")]
)
def test_features_and_gradients_equal_flax_clips(name, activation):
  clip = _clip(_config(name, activation))
  rng = np.random.default_rng(2)
  side, width = clip.image_size, clip.config.vision_config.hidden_size
  images = rng.integers(0, 256, (2, side, side, 3), np.uint8)
  tokens = rng.standard_normal((2, 4, width), np.float32)
  target = rng.standard_normal((2, 24), np.float32)

  def loss(tower, tokens, params, images):
    features = tower(params, images, tokens)
    return jnp.sum(features * target), features

  towers = prompted_image_tower(clip), functools.partial(_flax_features, clip)
  found, expected = (
    jax.jit(jax.value_and_grad(functools.partial(loss, tower), has_aux=True))(
      tokens, clip.vision_params, images
    )
    for tower in towers
  )
  assert_close(found[0][1], expected[0][1])
  assert_close(found[1], expected[1])
  plain, flax_plain = (
    jax.jit(tower)(clip.vision_params, images)
    for tower in (image_tower(clip), functools.partial(_flax_features, clip))
  )
  assert_close(plain, flax_plain)


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


def test_the_last_layer_is_computed_where_it_is_read():
  config = _config("B/16", "gelu")
  clip = _clip(config)
  images = np.zeros((2, 224, 224, 3), np.uint8)
  program = jax.make_jaxpr(image_tower(clip))(clip.vision_params, images)
  inner = 2 * config.vision_config.hidden_size
  shapes = [
    e.outvars[0].aval.shape
    for e in equations(program.jaxpr)
    if e.primitive.name == "dot_general" and e.outvars[0].aval.shape[-1] == inner
  ]
  assert shapes == [(2, 197, inner)] * 2 + [(2, 1, inner)]


@pytest.mark.parametrize(
  "changes, found",
  [
    ({"hidden_act": "swish"}, "hidden_act: got 'swish', expected quick_gelu, gelu"),
    ({"num_attention_heads": 5}, "num_attention_heads: got 5, expected a divisor of 48"),
  ],
)
def test_a_tower_that_cannot_be_built(changes, found):
  config = _config("B/16", "gelu")
  vision = CLIPVisionConfig(**(config.vision_config.to_dict() | {"hidden_size": 48}))
  for name, value in changes.items():
    setattr(vision, name, value)
  with pytest.raises(ValueError, match=found):
    parameter_shapes(ClipConfig(TEXT, vision, 24))
