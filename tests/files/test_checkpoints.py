"""Checkpoints: exact, complete or absent, the right ones kept, clear about what does not fit."""

import contextlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from pomp_jax.files.checkpoints import CheckpointError, Checkpoints

META = {"config": {"seed": 1, "name": "a"}, "position": [1, 2]}


def make_state(value=0.0):
  context = jnp.full((4, 8), value, jnp.float32)
  optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
  return {
    "context": context,
    "optimizer": optimizer.init(context),
    "half": jnp.full(3, 1 / 3, jnp.bfloat16),
    "key": jax.random.key_data(jax.random.key(7)),
    "position": np.asarray(2**40),
  }


def abstract(state):
  return jax.tree.map(
    lambda leaf: (
      jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
      if isinstance(leaf, jax.Array)
      else leaf
    ),
    state,
  )


def assert_same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_an_empty_folder(tmp_path):
  with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
    assert checkpoints.restore_latest(make_state()) is None
    assert checkpoints.restore_best(make_state()) is None
    assert checkpoints.latest_step() is checkpoints.best_step() is checkpoints.latest_meta() is None
    assert checkpoints.steps() == []


def test_restores_exactly_with_structure_and_types(tmp_path):
  context = jax.random.normal(jax.random.key(0), (4, 8)) * 1e-30
  state = make_state() | {"context": context.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0)}
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.save(12, state, META)
  with Checkpoints(tmp_path) as checkpoints:
    step, restored, meta = checkpoints.restore_latest(abstract(state))
    assert checkpoints.latest_meta() == META
  assert step == 12
  assert meta == META
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


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
  """Donating the state to the next step, or writing to its arrays, must not reach the disk."""
  step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  state, position = {"context": jnp.zeros((512, 512))}, np.zeros(3)
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    for number in range(5):
      position[:] = number
      checkpoints.save(number, state | {"position": position}, META, metric=-number)
      for _ in range(10):
        state = step(state)
    position[:] = -1
    assert checkpoints.steps() == [0, 1, 2, 3, 4]
    _, restored, _ = checkpoints.restore_latest(state | {"position": position})
    assert (np.asarray(restored["context"]) == 40).all()
    assert (restored["position"] == 4).all()
    _, restored, _ = checkpoints.restore_best(state | {"position": position})
    assert (np.asarray(restored["context"]) == 0).all()


@pytest.mark.parametrize(
  ("metrics", "kept", "best"),
  [
    ([None] * 6, [4, 5], None),
    ([1, 9, 2, 3, 4, 5], [1, 4, 5], 1),
    ([1, 2, 3, 4, 5, 6], [4, 5], 5),
    ([5, 5, 1, 1, 1, 1], [1, 4, 5], 1),
    ([None, 0.5, None, float("nan"), None, None], [1, 4, 5], 1),
    ([-2, None, -3, None, None, None], [0, 4, 5], 0),
  ],
)
def test_keeps_the_newest_and_the_best(tmp_path, metrics, kept, best):
  """Also across restarts: every checkpoint is written by a new object."""
  for step, metric in enumerate(metrics):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      assert checkpoints.save(step, {"value": np.asarray(step)}, META, metric)
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.steps() == kept
    assert checkpoints.best_step() == best
    found = checkpoints.restore_best({"value": np.asarray(0)})
    assert best is None if found is None else found.state["value"] == best


def test_a_step_is_saved_once(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.save(5, {"value": 1}, META)
    assert not checkpoints.save(5, {"value": 2}, META)
    assert not checkpoints.save(4, {"value": 3}, META)
    assert checkpoints.restore_latest({"value": 0}).state["value"] == 1


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
  ],
)
def test_a_state_that_does_not_fit(tmp_path, change, message):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, make_state(), META)
    with pytest.raises(CheckpointError, match=message) as caught:
      checkpoints.restore_latest(abstract(make_state() | change))
    assert str(caught.value).startswith(f"{tmp_path}/3: ")
    assert "\n" not in str(caught.value)


def test_a_missing_field(tmp_path):
  state = make_state()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state, META)
    del state["key"]
    with pytest.raises(CheckpointError, match=r"key holds uint32 \[2\], .* expects nothing"):
      checkpoints.restore_latest(abstract(state))


def damage(file, how, rng):
  """Truncates, flips one bit of, or deletes a file."""
  content = bytearray(file.read_bytes())
  if how == "delete":
    file.unlink()
  elif how == "truncate":
    file.write_bytes(content[: rng.integers(len(content))])
  else:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_set_aside_or_reads_as_it_was(tmp_path, how, caplog):
  """Any file of the newest: either nothing is lost, or the one before is taken, and it is said."""
  rng = np.random.default_rng(0)
  whole = tmp_path / "whole"
  with Checkpoints(whole) as checkpoints:
    checkpoints.save(1, make_state(1.0), META, metric=0.1)
    checkpoints.save(2, make_state(2.0), META, metric=0.2)
  taken = []
  for file in sorted(
    path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file()
  ):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    damage(folder / file, how, rng)
    caplog.clear()
    with Checkpoints(folder) as checkpoints:
      step, state, meta = checkpoints.restore_latest(abstract(make_state()))
      taken.append(step)
      assert meta == META
      assert_same(state, make_state(float(step)))
      if step == 1:
        assert "checkpoint of step 2 is DAMAGED" in caplog.text
        assert (folder / "damaged-2").is_dir()
        # The run goes on over the same steps.
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, make_state(3.0), META)
        assert checkpoints.steps() == [1, 2]
    with Checkpoints(folder) as checkpoints:
      assert checkpoints.latest_step() == 2
    shutil.rmtree(folder)
  assert taken.count(1) >= 4 and set(taken) <= {1, 2}


def test_lost_folders_and_nothing_before_them(tmp_path):
  for lost in ("state", "meta"):
    with Checkpoints(tmp_path / lost) as checkpoints:
      checkpoints.save(1, make_state(1.0), META)
    shutil.rmtree(tmp_path / lost / "1" / lost)
    with (
      Checkpoints(tmp_path / lost) as checkpoints,
      pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(1\)") as caught,
    ):
      checkpoints.restore_latest(abstract(make_state()))
    assert "\n" not in str(caught.value)
    # Nothing is thrown away that a person may want to look at.
    assert (tmp_path / lost / "1").is_dir()


def test_another_value_under_the_same_name_is_found(tmp_path):
  """What Orbax can read well but was never saved: arrays of another run copied in."""
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(float(step)), META)
  shutil.rmtree(tmp_path / "3" / "state")
  shutil.copytree(tmp_path / "1" / "state", tmp_path / "3" / "state")
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 2


def test_remains_of_a_killed_process_are_no_checkpoints(tmp_path):
  """Half of a save, and half of the deletion of an old checkpoint."""
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"value": step}, META, metric=step)
  shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
  shutil.rmtree(tmp_path / "1" / "state")
  shutil.rmtree(tmp_path / "1" / "metrics")
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() == 2
    for step in (3, 4):
      checkpoints.save(step, {"value": step}, META, metric=step)
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]


def test_a_file_in_the_folders_place(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(CheckpointError, match="checkpoints: can't hold checkpoints"):
    Checkpoints(tmp_path / "checkpoints")


def test_a_full_disk_is_told_and_costs_only_this_checkpoint(tmp_path):
  """A limit on the size of files stands in for the disk's."""
  values = np.random.default_rng(0).random(100_000)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"values": values}, META)
    checkpoints.wait()
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
      checkpoints.save(2, {"values": values}, META)
      with pytest.raises(
        CheckpointError, match="of step 2 .*too large.*good one is of step 1"
      ) as caught:
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert checkpoints.save(3, {"values": values}, META)
    assert checkpoints.steps() == [1, 3]


@contextlib.contextmanager
def small_files_only():
  """Nothing of more than 10 kB can be written."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


VALUES = np.random.default_rng(0).random(100_000)


def test_a_save_that_has_failed_is_told_without_waiting(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.check()
    checkpoints.save(1, {"values": VALUES}, META)
    checkpoints.wait()
    checkpoints.check()
    with small_files_only():
      checkpoints.save(2, {"values": VALUES}, META)
      end = time.monotonic() + 60
      with pytest.raises(CheckpointError, match=r"of step 2 .*the last good one is of step 1$"):
        while time.monotonic() < end:
          checkpoints.check()
    checkpoints.check()


@pytest.mark.parametrize("keep", [1, 3])
def test_a_save_that_fails_is_left_to_the_next_one(tmp_path, caplog, keep):
  with Checkpoints(tmp_path, keep, retry=True) as checkpoints:
    checkpoints.save(1, {"values": VALUES}, META, metric=1.0)
    checkpoints.wait()
    with small_files_only():
      for step in (2, 3):
        checkpoints.save(step, {"values": VALUES}, META, metric=2.0)
        with pytest.raises(CheckpointError, match=rf"step {step} .* good one is of step 1$"):
          checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert checkpoints.save(4, {"values": VALUES + 1}, META, metric=0.5)
    checkpoints.wait()
    told = [r.getMessage() for r in caplog.records if r.name.startswith("pomp_jax")]
    assert len(told) == 2
    assert all("the next save tries again" in line for line in told)
  # The one that is still the best stays beside the newest.
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "4"]
  with Checkpoints(tmp_path, keep) as checkpoints:
    assert_same(checkpoints.restore_latest({"values": VALUES}).state, {"values": VALUES + 1})


def test_a_save_that_can_not_start_is_left_to_the_next_one(tmp_path, caplog):
  folder = tmp_path / "checkpoints"
  with Checkpoints(folder, retry=True) as checkpoints:
    checkpoints.save(1, {"value": 1}, META)
    checkpoints.wait()
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("in its place")
    # It fails here, or behind it.
    checkpoints.save(2, {"value": 2}, META)
    with pytest.raises(CheckpointError, match="could not save the checkpoint of step 2"):
      checkpoints.wait()
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    assert checkpoints.save(3, {"value": 3}, META)
    assert checkpoints.steps() == [1, 3]
  assert "could not save the checkpoint of step 2" in caplog.text


def test_a_run_ends_with_the_last_save_even_so(tmp_path):
  with (
    pytest.raises(CheckpointError, match="could not save the checkpoint of step 2"),
    Checkpoints(tmp_path, retry=True) as checkpoints,
    small_files_only(),
  ):
    checkpoints.save(2, {"values": VALUES}, META)
    checkpoints.check()
    with pytest.raises(CheckpointError):
      checkpoints.wait()
  # But what else ends it is the reason that is told.
  with (
    pytest.raises(KeyError, match="the reason"),
    Checkpoints(tmp_path, retry=True) as checkpoints,
    small_files_only(),
  ):
    checkpoints.save(2, {"values": VALUES}, META)
    raise KeyError("the reason")


def test_keep_is_checked(tmp_path):
  with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
    Checkpoints(tmp_path, keep=0)


_SAVES_FOR_EVER = """
import itertools, sys
import numpy as np
from pomp_jax.files.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
first = (checkpoints.latest_step() or 0) + 1
for step in itertools.count(first):
  state = {str(i): np.full(20_000, step) for i in range(5)}
  checkpoints.save(step, state, {"step": step}, metric=float(step % 10))
  print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path):
  """The newest checkpoint is whole, and only the one being written can be lost."""
  target = {str(i): np.zeros(20_000, int) for i in range(5)}
  for delay in (0.0, 0.004, 0.011, 0.023):
    process = subprocess.Popen(
      [sys.executable, "-c", _SAVES_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(4)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      step, state, meta = checkpoints.restore_latest(target)
      best = checkpoints.restore_best(target)
    assert meta == {"step": step}
    assert step >= int(lines[-1]) - 1
    assert all((leaf == step).all() for leaf in state.values())
    assert all((leaf == best.step).all() for leaf in best.state.values())
