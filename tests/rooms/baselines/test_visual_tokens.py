"""Rematerialisation of an image tower with learned tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.rooms.baselines.visual_tokens import prompted_activation_bytes, prompted_image_tower
from tests.support.checks import assert_close, equations


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_prompted_tower_is_rematerialised_only_where_memory_asks(quick, share):
  images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
  config = quick.clip.config.vision_config
  tokens = np.full((2, 3, config.hidden_size), 0.1, np.float32)
  needed = prompted_activation_bytes(config, len(images), tokens.shape[1])

  def gradient(chunk, limit):
    tower = prompted_image_tower(quick.clip, chunk=chunk, limit_bytes=limit)
    return jax.jit(jax.grad(lambda t: jnp.sum(tower(quick.clip.vision_params, images, t) ** 2)))

  def rematerialised(function):
    program = jax.make_jaxpr(function)(tokens)
    return any(e.primitive.name.startswith("remat") for e in equations(program.jaxpr))

  chunked = gradient(2, share * needed)
  assert rematerialised(chunked) == (share < 1)
  # One chunk would need all of its activations at once in either case.
  whole = gradient(3, share * needed)
  assert not rematerialised(whole)
  assert_close(chunked(tokens), whole(tokens), 1e-5)


def test_the_estimate_of_a_prompted_towers_activations(quick):
  config, n_images = quick.clip.config.vision_config, 64
  images = jnp.zeros((n_images, 32, 32, 3), jnp.uint8)
  tokens = np.full((2, 3, config.hidden_size), 0.1, np.float32)
  tower = prompted_image_tower(quick.clip)
  loss = lambda t: jnp.sum(tower(quick.clip.vision_params, images, t) ** 2)
  measured = jax.jit(jax.grad(loss)).lower(tokens).compile().memory_analysis().temp_size_in_bytes
  assert 0.6 < prompted_activation_bytes(config, n_images, 3) / measured < 1.5
