"""Checkpoints: exact, the right ones kept, whole or set aside under faults, kills,
full disks."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from pomp_jax.files import checkpoints as module
from pomp_jax.files import orbax_folders
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints, read_checkpoints
from pomp_jax.files.run_folder import DamagedFileError
from tests.support.checkpoint_states import META, assert_same, make_state
from tests.support.data_files import damage, small_files_only

# Shardings over eight devices.
pytestmark = pytest.mark.mesh


def test_restores_exactly_with_structure_and_types(tmp_path):
  context = jax.random.normal(jax.random.key(0), (4, 8)) * 1e-30
  state = make_state() | {"context": context.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0)}
  with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
    assert checkpoints.restore(make_state()) is None
    assert checkpoints.steps() == []
    assert checkpoints.save(12, state, META)
    # A step is saved once.
    assert not checkpoints.save(12, make_state(1.0), META)
    assert not checkpoints.save(11, make_state(1.0), META)
  with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
    step, restored, meta, _ = checkpoints.restore(make_state())
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
      restored = checkpoints.restore(target).state["context"]
      assert restored.sharding.is_equivalent_to(sharding, 2)
      np.testing.assert_array_equal(restored, context)
    target = {"context": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    assert checkpoints.restore(target).state["context"].devices() == {devices[0]}


@pytest.mark.parametrize(
  ("metrics", "kept", "best"),
  [
    ([None] * 6, [4, 5], None),
    ([1, 9, 2, 3, 4, 5], [1, 4, 5], 1),
    ([1, 9, 2, 3, 10, 5], [4, 5], 4),
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
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore({"value": np.asarray(0)}, best=True)
    assert (found and found.state["value"]) == best
  # Each of them whole: the newest is taken away, and the one before it restored.
  for step in reversed(kept):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      assert checkpoints.steps() == kept[: kept.index(step) + 1]
      assert checkpoints.restore({"value": np.asarray(0)}).state["value"] == step
    shutil.rmtree(tmp_path / str(step))


MISSING = object()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"context": jnp.zeros((4, 6), jnp.bfloat16)},
      r"context holds .* expects bfloat16 \[4, 6\]",
    ),
    (
      {"optimizer": optax.adam(1.0).init(jnp.zeros((4, 8)))},
      r"optimizer/0/count holds nothing",
    ),
    (
      {"extra": np.zeros(3)},
      r"extra holds nothing, but this run expects float64 \[3\]",
    ),
    ({"key": MISSING}, r"key holds uint32 \[2\], .* expects nothing"),
  ],
)
def test_a_state_that_does_not_fit(tmp_path, change, message):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, make_state(), META)
    wanted = {
      name: leaf
      for name, leaf in (make_state() | change).items()
      if leaf is not MISSING
    }
    with pytest.raises(CheckpointError, match=message) as caught:
      checkpoints.restore(wanted)
    assert str(caught.value).startswith(f"{tmp_path}/3: ")
    assert "\n" not in str(caught.value)


@pytest.fixture
def two(tmp_path):
  """A folder with checkpoints of the steps 1 and 2; the first has the better metric."""
  with Checkpoints(tmp_path / "two") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(float(step)), META, metric=1.0 / step)
  return tmp_path / "two"


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "deleted"])
def test_a_damaged_checkpoint_is_set_aside_or_reads_as_it_was(
  two, how, caplog, monkeypatch
):
  """Each file of the newest: it is restored exactly, or refused by others and set
  aside here."""
  monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
  rng = np.random.default_rng(0)
  restored = []
  for file in sorted(
    path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()
  ):
    folder = shutil.copytree(two, two.with_name("copy"))
    damage(folder / file, how, rng)
    caplog.clear()
    refused = False
    try:
      *_, last = read_checkpoints(folder)
      assert (last.state["context"] == last.step).all()
    except CheckpointError as error:
      refused = str(folder / "2") in str(error)
    with Checkpoints(folder) as checkpoints:
      step, state, meta, _ = checkpoints.restore(make_state())
      restored.append(step)
      assert meta == META
      assert_same(state, make_state(float(step)))
      assert refused == (step == 1)
      if step == 1:
        assert "step 2 is DAMAGED" in caplog.text
        assert (folder / "damaged-2").is_dir()
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, make_state(3.0), META)
    shutil.rmtree(folder)
  assert restored.count(1) >= 3 and set(restored) <= {1, 2}


def test_what_was_set_aside_before_stays(two, monkeypatch):
  monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
  (two / "damaged-2").mkdir()
  (two / "damaged-2" / "note.txt").write_text("mine")
  shutil.rmtree(two / "2" / "state")
  with Checkpoints(two) as checkpoints:
    assert checkpoints.restore(make_state()).step == 1
  assert (two / "damaged-2" / "note.txt").read_text() == "mine"
  (other,) = two.glob("damaged-2-*")
  assert (other / "meta").is_dir()


def test_a_best_checkpoint_with_a_damaged_metric_is_set_aside(two, caplog):
  file = two / "1" / "meta" / "metadata"
  content = file.read_bytes()
  assert b'"metric": 1.0' in content
  file.write_bytes(content.replace(b'"metric": 1.0', b'"metric": 9.0'))
  with Checkpoints(two, keep=1) as checkpoints:
    checkpoints.save(3, make_state(3.0), META, metric=0.1)
    assert "step 1 is DAMAGED" in caplog.text and (two / "damaged-1").is_dir()
    assert checkpoints.steps() == [2, 3]
    next((two / "2" / "state" / "d").iterdir()).write_bytes(b"")
    assert checkpoints.restore(make_state(), best=True).step == 3


def test_a_read_that_fails_once_costs_nothing(two, monkeypatch, caplog):
  answers = [DamagedFileError("Stale file handle"), *[mock.DEFAULT] * 9]
  unsteady = mock.Mock(wraps=module._read, side_effect=answers)
  monkeypatch.setattr(module, "_read", unsteady)
  with Checkpoints(two) as checkpoints:
    assert checkpoints.restore(make_state()).step == 2
  assert unsteady.call_count > 1 and "DAMAGED" not in caplog.text


@pytest.mark.parametrize("retry", [False, True])
def test_an_earlier_process_saves_nothing_more(tmp_path, retry):
  first = Checkpoints(tmp_path, retry=retry)
  first.save(1, make_state(1.0), META)
  with Checkpoints(tmp_path) as second:
    assert second.restore(make_state()).step == 1
    with pytest.raises(CheckpointError, match="later start of this run"):
      first.save(2, make_state(-2.0), META)
    assert second.save(2, make_state(2.0), META)
    assert_same(second.restore(make_state()).state, make_state(2.0))


@pytest.mark.parametrize("lost", ["state", "meta"])
def test_all_checkpoints_damaged(tmp_path, lost):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1.0), META)
    shutil.rmtree(tmp_path / "1" / lost)
    with pytest.raises(CheckpointError, match=r"^[^\n]*damaged \(1\)[^\n]*$"):
      checkpoints.restore(make_state())
  with pytest.raises(CheckpointError, match=f"{tmp_path}/1[/:]"):
    list(read_checkpoints(tmp_path))
  # Nothing is deleted that a person may want to inspect.
  assert (tmp_path / "1").is_dir()


def test_arrays_of_another_checkpoint_are_detected(two):
  """Orbax reads them without an error."""
  shutil.rmtree(two / "2" / "state")
  shutil.copytree(two / "1" / "state", two / "2" / "state")
  with Checkpoints(two) as checkpoints:
    assert checkpoints.restore(make_state()).step == 1


def test_errors_without_a_place_go_on_to_the_hook_of_before(monkeypatch):
  """To that of the signals: a job, and Orbax with it, is imported when they are
  handled already."""
  heard = []
  monkeypatch.setattr(sys, "unraisablehook", heard.append)
  importlib.reload(orbax_folders)
  of_tensorstore, other = (
    types.SimpleNamespace(exc_value=RuntimeError(text))
    for text in ("Event loop is closed", "stopped by SIGTERM")
  )
  sys.unraisablehook(of_tensorstore)
  sys.unraisablehook(other)
  assert heard == [other]


def test_remains_of_a_killed_process_are_removed(two, monkeypatch):
  """An incomplete save, and an incomplete deletion, which must not count as a
  damaged one."""
  shutil.copytree(two / "2", two / "4.orbax-checkpoint-tmp")
  with monkeypatch.context() as killed:
    for delete in ("unlink", "rmdir"):
      killed.setattr(os, delete, lambda *arguments, **options: None)
    checkpoints = Checkpoints(two, keep=1)
    checkpoints.save(3, make_state(3.0), META, metric=2.0)
    assert checkpoints.steps() == [3]
  assert list(two.glob("discarded-*"))
  with Checkpoints(two, keep=1) as checkpoints:
    assert checkpoints.restore(make_state()).step == 3
  assert sorted(entry.name for entry in two.iterdir()) == ["3", "owner.txt"]


VALUES = np.random.default_rng(0).random(100_000)
FAILED = r"^[^\n]*step 2 [^\n]*too large[^\n]*step 1$"


@pytest.mark.parametrize("retry", [False, True])
def test_a_failed_save_costs_only_this_checkpoint(tmp_path, caplog, retry):
  with Checkpoints(tmp_path, keep=1, retry=retry) as checkpoints:
    checkpoints.save(1, {"values": VALUES}, META, metric=1.0)
    with small_files_only(10_000):
      if retry:
        assert not checkpoints.save(2, {"values": VALUES}, META, metric=2.0)
        assert re.search(FAILED, str(checkpoints.failure))
      else:
        with pytest.raises(CheckpointError, match=FAILED):
          checkpoints.save(2, {"values": VALUES}, META, metric=2.0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "owner.txt"]
    assert checkpoints.save(3, {"values": VALUES + 1}, META, metric=0.5)
    assert checkpoints.failure is None
  assert len([r for r in caplog.records if r.name.startswith("pomp_jax")]) == retry
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "3", "owner.txt"]
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    assert_same(checkpoints.restore({"values": VALUES}).state, {"values": VALUES + 1})


@pytest.mark.parametrize(
  ("reason", "raised"), [(None, CheckpointError), (KeyError, KeyError)]
)
def test_a_run_that_ends_with_a_failed_save_raises(tmp_path, reason, raised):
  """Of two reasons to end, the first is raised."""
  with pytest.raises(raised), Checkpoints(tmp_path, retry=True) as checkpoints:
    with small_files_only(10_000):
      checkpoints.save(2, {"values": VALUES}, META)
    if reason:
      raise reason


_SAVES_FOREVER = """
import itertools, sys
import numpy as np
from pomp_jax.files.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
first = max(checkpoints.steps(), default=0) + 1
for step in itertools.count(first):
  state = {str(i): np.full(20_000, step) for i in range(5)}
  checkpoints.save(step, state, {"step": step}, metric=float(step % 10))
  print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path):
  target = {str(i): np.zeros(20_000, int) for i in range(5)}
  for delay in (0.0, 0.027):
    process = subprocess.Popen(
      [sys.executable, "-c", _SAVES_FOREVER, str(tmp_path)],
      stdout=subprocess.PIPE,
      text=True,
    )
    lines = [process.stdout.readline() for _ in range(4)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      newest = checkpoints.restore(target)
    assert newest.step >= int(lines[-1])
    for step, state, meta, _ in read_checkpoints(tmp_path):
      assert meta == {"step": step}
      assert all((leaf == step).all() for leaf in state.values())
