"""Features of images and texts against HuggingFace's torch model holding the same
weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPTextConfig

from pomp_jax.clip import text
from pomp_jax.clip.load import load_clip
from pomp_jax.clip.packed import AT_ONCE, MemoryPlan
from pomp_jax.clip.text import text_tower
from pomp_jax.clip.vision import image_tower
from pomp_jax.config import defaults, fields, validate
from pomp_jax.config.errors import ConfigError
from pomp_jax.errors import InputError
from tests.support.checks import assert_close, equations
from tests.support.clips import HAS_FLAX_CLIP, TOWERS, encode_texts, pooled


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def _pixels(images, **settings):
  """Channels first, as HuggingFace's own preprocessing leaves them."""
  processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, **settings)
  return processor(list(images), return_tensors="np")["pixel_values"]


@pytest.mark.parametrize(
  ("block", "n_weights", "n_rows"), [(None, 5 + 16, 60), (20, 20, 80)]
)
def test_the_memory_of_activations_is_counted_vector_by_vector(
  block, n_weights, n_rows
):
  """In blocks of 20 rows, 15 behind the prefix, 60 tokens take four blocks."""
  config = CLIPTextConfig(hidden_size=64, intermediate_size=200, num_attention_heads=4)
  floats = config.num_hidden_layers * n_rows * (9 * 64 + 200 + 4 * n_weights)
  assert text.activation_bytes(config, 5, 60, block) == 4 * floats
  plan = lambda limit: text.plan_memory(config, 5, 60, float(limit), block)
  assert plan(4 * floats) == AT_ONCE
  assert plan(4 * floats - 1) == MemoryPlan(2, "chunks")
  assert plan(4 * floats / 2.5) == MemoryPlan(3, "chunks")


@pytest.mark.parametrize("chunk, expected", [(1, 1), (2, 2), (8, 3)])
def test_images_equal_torch_clip(stored, images, chunk, expected):
  """Three images in as equal parts as can be."""
  tower = image_tower(stored.clip, chunk=chunk)
  found = jax.jit(tower)(stored.clip.vision_params, images)
  assert_close(found, stored.torch_image_features(_pixels(images)))
  program = jax.make_jaxpr(tower)(stored.clip.vision_params, images)
  (patches,) = (
    e for e in equations(program.jaxpr) if e.primitive.name == "conv_general_dilated"
  )
  assert patches.invars[0].aval.shape[0] == expected


def test_a_checkpoint_brings_its_own_channel_statistics(quick, images, tmp_path):
  for file in quick.folder.iterdir():
    (tmp_path / file.name).symlink_to(file)
  statistics = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.5, 0.2, 0.3]}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
  clip = load_clip(str(tmp_path))
  found = jax.jit(image_tower(clip))(clip.vision_params, images)
  expected = quick.torch_image_features(_pixels(images, **statistics))
  assert_close(found, expected)


def test_bfloat16_is_the_type_of_every_product(small, images):
  program = jax.make_jaxpr(image_tower(small.clip, jnp.bfloat16))(
    small.clip.vision_params, images
  )
  products = [
    e
    for e in equations(program.jaxpr)
    if e.primitive.name in ("dot_general", "conv_general_dilated")
  ]
  assert len(products) == 1 + 3 * 8 + 1
  assert {variable.aval.dtype.name for e in products for variable in e.invars} == {
    "bfloat16"
  }
  assert program.out_avals[0].dtype == jnp.float32


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


SENTENCES = [
  "a photo of a cat.",
  "the dog of the star, seen from the sea.",
  "x",
  "Crème brûlée, 1900 £!",
  "a zebra at the sea.",
]


@pytest.mark.parametrize("kind", TOWERS)
def test_sentences_equal_torch_clip(stored, kind):
  with torch.no_grad():
    expected = pooled(stored.torch_model.get_text_features(**stored.padded(SENTENCES)))
  tower = text_tower(kind, stored.clip.config.text_config)
  assert_close(encode_texts(stored.clip, SENTENCES, tower), expected)


def test_towers_that_cannot_be_had_are_refused(small, monkeypatch):
  """The reference where transformers has no FlaxCLIP, as from 5 on."""
  assert text.has_flax_clip() == HAS_FLAX_CLIP
  for module in (text, fields):
    monkeypatch.setattr(module, "has_flax_clip", lambda: False)
  config = defaults().replace({"clip.text_tower": "reference"})
  with pytest.raises(
    ConfigError, match=r"^config\.clip\.text_tower: .*'transformers<5'"
  ):
    validate(config)
  validate(config.replace({"clip.text_tower": "shared"}))
  with pytest.raises(InputError, match=r"^text_tower: .*'transformers<5'"):
    text_tower("reference", small.clip.config.text_config)
