"""Checkpoints under faults: damaged files, a full disk, a process that is killed."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pomp_jax.files import checkpoint_contents
from pomp_jax.files.checkpoint_contents import Damage
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from pomp_jax.files.other_checkpoints import read_checkpoints
from tests.support.checkpoint_states import META, abstract, assert_same, make_state


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
      assert checkpoints.steps()[-1] == 2
    shutil.rmtree(folder)
  assert taken.count(1) >= 4 and set(taken) <= {1, 2}


def test_a_disk_that_fails_for_a_moment_costs_nothing(tmp_path, monkeypatch, caplog):
  read, failures = checkpoint_contents.read, [OSError(errno.ESTALE, "Stale file handle")]

  def unsteady(*arguments):
    if failures:
      raise Damage(str(failures.pop()))
    return read(*arguments)

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1.0), META)
    checkpoints.save(2, make_state(2.0), META)
  monkeypatch.setattr(checkpoint_contents, "read", unsteady)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 2
  assert not failures and "DAMAGED" not in caplog.text


@pytest.mark.parametrize("retry", [False, True])
def test_a_start_that_another_has_replaced_saves_nothing_more(tmp_path, retry):
  with contextlib.ExitStack() as stack:
    first = stack.enter_context(Checkpoints(tmp_path, retry=retry))
    first.save(1, make_state(1.0), META)
    first.wait()
    second = stack.enter_context(Checkpoints(tmp_path))
    assert second.restore_latest(abstract(make_state())).step == 1
    with pytest.raises(
      CheckpointError, match=r"a later start of this run \(.*\) has taken it over"
    ):
      first.save(2, make_state(-2.0), META)
    # Nor takes away what that one is writing.
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    first.close()
    assert (tmp_path / "9.orbax-checkpoint-tmp").exists()
    assert second.save(2, make_state(2.0), META)
    assert_same(second.restore_latest(abstract(make_state())).state, make_state(2.0))


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


def test_checkpoints_of_before_a_checksum_still_resume(tmp_path, caplog):
  """Metrics without one, and JSON and arrays without any."""
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(float(step)), META, metric=1.0 / step)
  for step in (1, 2):
    (tmp_path / str(step) / "metrics" / "metrics").write_text(json.dumps({"metric": 1.0 / step}))
    (meta,) = (tmp_path / str(step) / "meta").rglob("metadata")
    stored = json.loads(meta.read_text())
    meta.write_text(json.dumps({field: stored[field] for field in ("leaves", "meta")}))
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    step, state, meta = checkpoints.restore_latest(abstract(make_state()))
    assert (step, meta) == (2, META)
    assert_same(state, make_state(2.0))
    checkpoints.save(3, make_state(3.0), META, metric=0.1)
    assert checkpoints.steps() == [1, 3]
  assert "DAMAGED" not in caplog.text
  assert [found.step for found in read_checkpoints(tmp_path)] == [1, 3]


def test_remains_of_a_killed_process_are_no_checkpoints(tmp_path):
  """Half of a save, and half of the deletion of an old checkpoint."""
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"value": step}, META, metric=step)
  shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
  shutil.rmtree(tmp_path / "1" / "state")
  shutil.rmtree(tmp_path / "1" / "metrics")
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.steps()[-1] == 2
    for step in (3, 4):
      checkpoints.save(step, {"value": step}, META, metric=step)
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4", "owner.txt"]


def test_a_checkpoint_no_longer_kept_counts_no_more_before_it_is_deleted(tmp_path, monkeypatch):
  """So that none of which a part is deleted is ever taken for one that is damaged."""
  with monkeypatch.context() as killed:
    for delete in ("unlink", "rmdir"):
      killed.setattr(os, delete, lambda *arguments, **options: None)
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
      checkpoints.save(step, make_state(float(step)), META)
    checkpoints.wait()
    assert checkpoints.steps() == [2]
  assert [path for path in tmp_path.rglob("*") if path.name == "1"], "nothing was left of it"
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "owner.txt"]


def test_a_file_in_the_folders_place(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(CheckpointError, match="checkpoints: can't hold checkpoints"):
    Checkpoints(tmp_path / "checkpoints")


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


def test_a_full_disk_is_told_and_costs_only_this_checkpoint(tmp_path):
  """A limit on the size of files stands in for the disk's."""
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"values": VALUES}, META)
    checkpoints.wait()
    with small_files_only():
      checkpoints.save(2, {"values": VALUES}, META)
      with pytest.raises(
        CheckpointError, match="of step 2 .*too large.*good one is of step 1"
      ) as caught:
        checkpoints.wait()
    assert "\n" not in str(caught.value)
    assert checkpoints.save(3, {"values": VALUES}, META)
    assert checkpoints.steps() == [1, 3]


def test_a_save_that_has_failed_is_told_without_waiting(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.check()
    checkpoints.save(1, {"values": VALUES}, META)
    checkpoints.wait()
    checkpoints.check()
    with small_files_only():
      checkpoints.save(2, {"values": VALUES}, META)
      end = time.monotonic() + 300
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
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "4", "owner.txt"]
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


_SAVES_FOR_EVER = """
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
      stored = checkpoints.steps()
    assert meta == {"step": step}
    assert step >= int(lines[-1]) - 1
    assert all((leaf == step).all() for leaf in state.values())
    # So are those before it, the best one among them.
    shutil.copytree(tmp_path, copy := tmp_path.with_name(f"copy-{delay}"))
    for before, after in zip(reversed(stored[:-1]), reversed(stored), strict=False):
      shutil.rmtree(copy / str(after))
      with Checkpoints(copy, keep=2) as checkpoints:
        found = checkpoints.restore_latest(target)
      assert found.step == before
      assert all((leaf == before).all() for leaf in found.state.values())
