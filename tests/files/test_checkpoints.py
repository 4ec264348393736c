"""Checkpoints: exact, complete or absent, the right ones kept, clear about what does not fit."""

import shutil

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from tests.support.checkpoint_states import META, abstract, assert_same, make_state

# Shardings over eight devices.
pytestmark = pytest.mark.mesh


def test_restores_exactly_with_structure_and_types(tmp_path):
  context = jax.random.normal(jax.random.key(0), (4, 8)) * 1e-30
  state = make_state() | {"context": context.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0)}
  with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
    assert checkpoints.restore_latest(make_state()) is None
    assert checkpoints.steps() == []
    assert checkpoints.save(12, state, META)
    # A step is saved once.
    assert not checkpoints.save(12, make_state(1.0), META)
    assert not checkpoints.save(11, make_state(1.0), META)
  with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
    step, restored, meta = checkpoints.restore_latest(abstract(state))
  assert (step, meta) == (12, META)
  assert_same(restored, state)


def test_shardings_are_those_asked_for(tmp_path):
  """Saved over eight devices, restored over two, and on one when none is asked for."""
  devices = np.array(jax.devices())
  wide = NamedSharding(jax.sharding.Mesh(devices, "data"), P(None, "data"))
  narrow = NamedSharding(jax.sharding.Mesh(devices[:2], "data"), P("data"))
  context = jnp.arange(32.0).reshape(4, 8)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"context": jax.device_put(context, wide)}, META)
    for sharding in (wide, narrow):
      target = {"context": jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=sharding)}
      restored = checkpoints.restore_latest(target).state["context"]
      assert restored.sharding.is_equivalent_to(sharding, 2)
      np.testing.assert_array_equal(restored, context)
    target = {"context": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    assert checkpoints.restore_latest(target).state["context"].devices() == {devices[0]}


@pytest.mark.parametrize(
  ("metrics", "kept"),
  [
    ([None] * 6, [4, 5]),
    ([1, 9, 2, 3, 4, 5], [1, 4, 5]),
    ([1, 2, 3, 4, 5, 6], [4, 5]),
    ([5, 5, 1, 1, 1, 1], [1, 4, 5]),
    ([None, 0.5, None, float("nan"), None, None], [1, 4, 5]),
    ([-2, None, -3, None, None, None], [0, 4, 5]),
  ],
)
def test_keeps_the_newest_and_the_best(tmp_path, metrics, kept):
  """Also across restarts: every checkpoint is written by a new object."""
  for step, metric in enumerate(metrics):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      assert checkpoints.save(step, {"value": np.asarray(step)}, META, metric)
  # Each of them whole: the newest is taken away, and the one before it restored.
  for step in reversed(kept):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      assert checkpoints.steps() == kept[: kept.index(step) + 1]
      assert checkpoints.restore_latest({"value": np.asarray(0)}).state["value"] == step
    shutil.rmtree(tmp_path / str(step))


MISSING = object()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"context": jnp.zeros((4, 6))},
      r"context holds float32 \[4, 8\], .* expects float32 \[4, 6\]",
    ),
    ({"context": jnp.zeros((4, 8), jnp.bfloat16)}, r"context holds .* expects bfloat16 \[4, 8\]"),
    ({"optimizer": optax.adam(1.0).init(jnp.zeros((4, 8)))}, r"optimizer/0/count holds nothing"),
    ({"extra": np.zeros(3)}, r"extra holds nothing, but this run expects float64 \[3\]"),
    ({"key": MISSING}, r"key holds uint32 \[2\], .* expects nothing"),
  ],
)
def test_a_state_that_does_not_fit(tmp_path, change, message):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, make_state(), META)
    wanted = {name: leaf for name, leaf in (make_state() | change).items() if leaf is not MISSING}
    with pytest.raises(CheckpointError, match=message) as caught:
      checkpoints.restore_latest(abstract(wanted))
    assert str(caught.value).startswith(f"{tmp_path}/3: ")
    assert "\n" not in str(caught.value)
