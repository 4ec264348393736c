"""A training state with leaves of every kind, to save and to compare."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

META = {"config": {"seed": 1, "name": "a"}, "position": [1, 2]}


def make_state(value=0.0):
  """Returns arrays of four types, an optimizer state, a key and a NumPy number.

  Every element of the context is `value`.
  """
  context = jnp.full((4, 8), value, jnp.float32)
  optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
  return {
    "context": context,
    "optimizer": optimizer.init(context),
    "half": jnp.full(3, 1 / 3, jnp.bfloat16),
    "key": jax.random.key_data(jax.random.key(7)),
    "position": np.asarray(2**40),
  }


def assert_same(left, right):
  """Asserts bitwise equality, and that the same leaves are device arrays."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
