"""Blocks of the packed tower: how classes fill them, and attention within them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.clip.blocks import (
  PARTS,
  block_attention,
  block_width,
  n_blocks,
  pack_blocks,
  room_of,
)
from pomp_jax.clip.packed import shared_text_tower
from pomp_jax.clip.text import block_of
from tests.support.checks import assert_close, equations

N_PREFIX, WIDTH = 4, 16
CAPACITY = WIDTH - N_PREFIX


def _packed(lengths, number=None):
  """The blocks of some classes, and the class and position of each row by the
  indices."""
  lengths = np.asarray(lengths, np.int32)
  longest = max(1, int(lengths.max()))
  if number is None:
    number = n_blocks(
      -(-int(room_of(lengths, CAPACITY).sum()) // PARTS), CAPACITY, longest
    )
  packed = jax.jit(pack_blocks, static_argnums=(1, 2, 3, 4))(
    jnp.asarray(lengths), longest, N_PREFIX, WIDTH, number
  )
  return jax.tree.map(np.asarray, packed), longest


@pytest.mark.parametrize(
  "lengths",
  [
    [1],
    [CAPACITY],  # a class that fills a block
    [CAPACITY, CAPACITY, CAPACITY],
    [4, 4, 4, 3, 3, 3, 3],  # full blocks
    [5, 5, 5, 1, 1],
    [7, 7, 6, 6, 5, 5, 1],  # a rest that no class fills
    [0, 3, 0, 9, 2],  # dropped classes
    [0, 0],
    [2] * 50,
    list(range(1, CAPACITY + 1)),
  ],
)
def test_every_class_is_whole_in_one_block(lengths):
  packed, longest = _packed(lengths)
  target = packed.target_CL.reshape(-1, longest)
  for c, length in enumerate(lengths):
    rows = target[c, :length]
    assert (target[c, length:] == -1).all()
    if not length:
      assert packed.eot_C[c] == -1
      continue
    np.testing.assert_array_equal(rows, rows[0] + np.arange(length))
    assert rows[0] % WIDTH >= N_PREFIX and rows[0] // WIDTH == rows[-1] // WIDTH
    np.testing.assert_array_equal(
      packed.source_R[rows], c * longest + np.arange(length)
    )
    np.testing.assert_array_equal(packed.position_R[rows], np.arange(length))
    assert packed.eot_C[c] == rows[-1] and packed.eot_R[rows[-1]] == c
  assert (packed.source_R >= 0).sum() == sum(lengths)
  assert (packed.eot_R >= 0).sum() == np.count_nonzero(lengths)
  _assert_masks(packed, longest)


def _assert_masks(packed, longest):
  """A token sees the prefix and its own class up to itself; every row sees
  something."""
  owner = np.where(packed.source_R >= 0, packed.source_R // longest, -1).reshape(
    -1, WIDTH
  )
  for block, mask in zip(owner, packed.mask, strict=True):
    for q in range(WIDTH):
      own = (
        {k for k in range(N_PREFIX, q + 1) if block[k] == block[q]}
        if block[q] >= 0
        else set()
      )
      if block[q] >= 0:
        assert set(np.flatnonzero(mask[q])) == {*range(N_PREFIX)} | own
      elif q < N_PREFIX:
        assert set(np.flatnonzero(mask[q])) == {*range(q + 1)}
      assert mask[q].any()


def test_the_number_of_blocks_holds_any_classes_whose_room_is_within_the_budget():
  """By filling them one after the other, the longest first; and there is little to
  spare."""
  rng = np.random.default_rng(0)
  spare = []
  for _ in range(3000):
    capacity = int(rng.integers(8, 124))
    longest = int(rng.integers(1, min(capacity, 30) + 1))
    pool = (
      np.arange(1, longest + 1) if rng.integers(2) else rng.integers(1, longest + 1, 3)
    )
    lengths = np.sort(rng.choice(pool, rng.integers(1, 90)))[::-1]
    used, blocks = 0, 1
    for length in lengths:
      if used + length > capacity:
        used, blocks = 0, blocks + 1
      used += length
    room = int(room_of(lengths, capacity).sum())
    assert room >= PARTS * lengths.sum()
    number = n_blocks(-(-room // PARTS), capacity, longest)
    assert blocks <= number
    spare.append(number - blocks)
  assert max(spare) <= 3


def test_room_is_a_share_of_a_block():
  lengths = np.array([0, 1, 5, 6, 7, 12])
  expected = [0, PARTS, 6 * PARTS, 6 * PARTS, 12 * PARTS, 12 * PARTS]
  np.testing.assert_array_equal(room_of(lengths, CAPACITY), expected)
  np.testing.assert_array_equal(room_of(jnp.asarray(lengths), CAPACITY), expected)


def test_a_block_holds_any_prompt_on_a_tpu_and_other_devices_have_none(quick):
  config = quick.clip.config.text_config
  assert [block_width("tpu", positions) for positions in (32, 77, 128, 248)] == [
    128,
    128,
    128,
    256,
  ]
  assert block_width("cpu", 77) is block_width("gpu", 77) is None
  assert block_of("shared", config, "tpu") == 128
  assert block_of("reference", config, "tpu") is None


def _plain(query, key, value, mask, n_heads):
  """Attention of [G,W,D] in the mask, head by head."""
  heads = []
  for q, k, v in zip(
    *(np.split(rows, n_heads, -1) for rows in (query, key, value)), strict=True
  ):
    scores = np.where(mask, q @ k.swapaxes(1, 2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    heads.append(weights / weights.sum(-1, keepdims=True) @ v)
  return np.concatenate(heads, -1)


def test_attention_equals_a_loop_over_heads_and_its_gradient_differences():
  rng = np.random.default_rng(0)
  number, n_heads, width = 3, 2, 8
  rows = rng.normal(size=(4, number, WIDTH, width))
  *inputs, cotangent = rows
  mask = np.tri(WIDTH, dtype=bool) & (
    rng.random((number, WIDTH, WIDTH)) < 0.6
  ) | np.eye(WIDTH, dtype=bool)
  flat = lambda array: jnp.asarray(array.reshape(-1, width), jnp.float32)
  attend = lambda *inputs: block_attention(n_heads, *inputs, jnp.asarray(mask))
  found, backward = jax.vjp(attend, *map(flat, inputs))
  assert_close(found, _plain(*inputs, mask, n_heads).reshape(-1, width))
  step = 1e-5
  for i, gradient in enumerate(backward(flat(cotangent))):
    for _ in range(8):
      at = tuple(rng.integers(size) for size in inputs[i].shape)
      values = []
      for sign in (1, -1):
        moved = [array.copy() for array in inputs]
        moved[i][at] += sign * step
        values.append((_plain(*moved, mask, n_heads) * cotangent).sum())
      expected = (values[0] - values[1]) / (2 * step)
      found_at = np.asarray(gradient).reshape(inputs[i].shape)[at]
      np.testing.assert_allclose(found_at, expected, rtol=2e-4, atol=2e-5)


def test_deep_contexts_replace_the_end_of_every_block_s_prefix(quick):
  """MaPLe's, against the row without blocks; nothing is scattered on the way back."""
  rng = np.random.default_rng(1)
  width, lengths = quick.clip.text_width, jnp.asarray([3, 9, 5, 1, 7], jnp.int32)
  draw = lambda *shape: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)
  inputs = draw(6, width), draw(5, 9, width), draw(1, 4, width)
  config = quick.clip.config.text_config
  cotangent = draw(5, 24)

  def gradients(block):
    tower = shared_text_tower(config, block=block)

    def loss(prefix, suffix, deep):
      return jnp.sum(
        tower(quick.clip.text_params, prefix, suffix, lengths, deep) * cotangent
      )

    return jax.grad(loss, argnums=(0, 1, 2))

  assert_close_trees(jax.jit(gradients(32))(*inputs), jax.jit(gradients(None))(*inputs))
  program = jax.make_jaxpr(gradients(32))(*inputs)
  assert not any("scatter" in e.primitive.name for e in equations(program.jaxpr))


def assert_close_trees(found, expected):
  for one, other in zip(found, expected, strict=True):
    assert_close(one, other)
