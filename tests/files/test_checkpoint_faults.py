"""Checkpoints under faults: damaged files, a full disk, a process that is killed."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pomp_jax.files import checkpoints as module
from pomp_jax.files.checkpoints import (
  CheckpointError,
  Checkpoints,
  DamagedCheckpoint,
  read_checkpoints,
)
from tests.support.checkpoint_states import META, abstract, assert_same, make_state
from tests.support.damage import damage


@pytest.fixture
def two(tmp_path):
  """A folder with checkpoints of the steps 1 and 2; the first has the better metric."""
  with Checkpoints(tmp_path / "two") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(float(step)), META, metric=1.0 / step)
  return tmp_path / "two"


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "deleted"])
def test_a_damaged_checkpoint_is_set_aside_or_reads_as_it_was(two, how, caplog, monkeypatch):
  """Each file of the newest: its state is restored exactly, or the one before with a warning."""
  monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
  rng = np.random.default_rng(0)
  restored = []
  for file in sorted(path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()):
    folder = shutil.copytree(two, two.with_name("copy"))
    damage(folder / file, how, rng)
    caplog.clear()
    with Checkpoints(folder) as checkpoints:
      step, state, meta = checkpoints.restore_latest(abstract(make_state()))
      restored.append(step)
      assert meta == META
      assert_same(state, make_state(float(step)))
      if step == 1:
        assert "step 2 is DAMAGED" in caplog.text
        assert (folder / "damaged-2").is_dir()
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, make_state(3.0), META)
    shutil.rmtree(folder)
  assert restored.count(1) >= 3 and set(restored) <= {1, 2}


def damages(content: bytes, rng, n: int):
  """Yields a file with a bit flipped, cut off, and with a stretch of zeros or ones, in turn."""
  for number in range(n):
    where = int(rng.integers(len(content)))
    if number % 2 == 0:
      yield content[:where] + bytes([content[where] ^ 1 << rng.integers(8)]) + content[where + 1 :]
    elif number % 4 == 1:
      yield content[:where]
    else:
      filler = bytes([255 * (number % 3 == 0)]) * len(content[where : where + 512])
      yield content[:where] + filler + content[where + 512 :]


DAMAGES = [8, pytest.param(40, marks=pytest.mark.slow("more damages of the same kinds"))]


@pytest.mark.parametrize("n", DAMAGES)
def test_a_best_checkpoint_with_a_damaged_metric_is_set_aside(two, tmp_path, caplog, n):
  """Or it stays the best."""
  place = pathlib.Path("1", "meta", "metadata")
  content = (two / place).read_bytes()
  assert b'"metric": 1.0' in content
  changed = [content.replace(b'"metric": 1.0', b'"metric": 9.0')]
  for number, bad in enumerate([*changed, *damages(content, np.random.default_rng(1), n)]):
    folder = pathlib.Path(shutil.copytree(two, tmp_path / str(number)))
    (folder / place).write_bytes(bad)
    caplog.clear()
    with Checkpoints(folder, keep=1) as checkpoints:
      checkpoints.save(3, make_state(3.0), META, metric=0.1)
      aside = "step 1 is DAMAGED" in caplog.text
      assert (folder / "damaged-1").is_dir() == aside
      assert checkpoints.steps() == ([2, 3] if aside else [1, 3])
    assert aside or number


@pytest.mark.parametrize("n", DAMAGES)
def test_no_damage_of_a_state_is_read(tmp_path, n):
  """By another run, of the largest file."""
  state = {"context": np.random.default_rng(0).standard_normal((16, 64)), "list": [np.arange(3)]}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, META)
  files = [path for path in (tmp_path / "1" / "state").rglob("*") if path.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)
  refused = 0
  for bad in damages(file.read_bytes(), np.random.default_rng(2), n):
    file.write_bytes(bad)
    try:
      (found,) = read_checkpoints(tmp_path)
    except CheckpointError as error:
      assert str(tmp_path) in str(error)
      refused += 1
    else:
      assert_same(found.state, state)
  assert refused > n / 2


def test_a_read_that_fails_once_costs_nothing(two, monkeypatch, caplog):
  read, failures = module._read, ["Stale file handle"]

  def unsteady(*arguments):
    if failures:
      raise DamagedCheckpoint(failures.pop())
    return read(*arguments)

  monkeypatch.setattr(module, "_read", unsteady)
  with Checkpoints(two) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 2
  assert not failures and "DAMAGED" not in caplog.text


@pytest.mark.parametrize("retry", [False, True])
def test_an_earlier_process_saves_nothing_more(tmp_path, retry):
  first = Checkpoints(tmp_path, retry=retry)
  first.save(1, make_state(1.0), META)
  with Checkpoints(tmp_path) as second:
    assert second.restore_latest(abstract(make_state())).step == 1
    with pytest.raises(CheckpointError, match="later start of this run"):
      first.save(2, make_state(-2.0), META)
    assert second.save(2, make_state(2.0), META)
    assert_same(second.restore_latest(abstract(make_state())).state, make_state(2.0))


@pytest.mark.parametrize("lost", ["state", "meta"])
def test_all_checkpoints_damaged(tmp_path, lost):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1.0), META)
    shutil.rmtree(tmp_path / "1" / lost)
    with pytest.raises(CheckpointError, match=r"^[^\n]*damaged \(1\)[^\n]*$"):
      checkpoints.restore_latest(abstract(make_state()))
  with pytest.raises(CheckpointError, match=f"{tmp_path}/1: "):
    list(read_checkpoints(tmp_path))
  # Nothing is deleted that a person may want to inspect.
  assert (tmp_path / "1").is_dir()


def test_arrays_of_another_checkpoint_are_detected(two):
  """Orbax reads them without an error."""
  shutil.rmtree(two / "2" / "state")
  shutil.copytree(two / "1" / "state", two / "2" / "state")
  with Checkpoints(two) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 1


def test_checkpoints_of_earlier_versions_are_read(two, caplog):
  """Without checksums, and with the metric in a file of its own."""
  for step in (1, 2):
    file = two / str(step) / "meta" / "metadata"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({field: stored[field] for field in ("leaves", "meta")}))
    (two / str(step) / "metrics").mkdir()
    (two / str(step) / "metrics" / "metrics").write_text(json.dumps({"metric": 1.0 / step}))
  assert [found.step for found in read_checkpoints(two)] == [1, 2]
  with Checkpoints(two, keep=1) as checkpoints:
    step, state, meta = checkpoints.restore_latest(abstract(make_state()))
    assert (step, meta) == (2, META)
    assert_same(state, make_state(2.0))
    assert checkpoints.save(3, make_state(3.0), META, metric=0.1)
  assert "DAMAGED" not in caplog.text


def test_remains_of_a_killed_process_are_removed(two, monkeypatch):
  """An incomplete save, and an incomplete deletion, which must not count as a damaged one."""
  shutil.copytree(two / "2", two / "4.orbax-checkpoint-tmp")
  with monkeypatch.context() as killed:
    for delete in ("unlink", "rmdir"):
      killed.setattr(os, delete, lambda *arguments, **options: None)
    checkpoints = Checkpoints(two, keep=1)
    checkpoints.save(3, make_state(3.0), META, metric=2.0)
    assert checkpoints.steps() == [3]
  assert list(two.glob("discarded-*"))
  with Checkpoints(two, keep=1) as checkpoints:
    assert checkpoints.restore_latest(abstract(make_state())).step == 3
  assert sorted(entry.name for entry in two.iterdir()) == ["3", "owner.txt"]


def test_a_file_in_the_folders_place(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(CheckpointError, match=f"{tmp_path}/checkpoints: "):
    Checkpoints(tmp_path / "checkpoints")


@contextlib.contextmanager
def small_files_only():
  """No file of more than 10 kB can be written: stands in for a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


VALUES = np.random.default_rng(0).random(100_000)
FAILED = r"^[^\n]*step 2 [^\n]*too large[^\n]*step 1$"


def test_a_failed_save_raises_and_costs_only_this_checkpoint(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"values": VALUES}, META)
    with small_files_only(), pytest.raises(CheckpointError, match=FAILED):
      checkpoints.save(2, {"values": VALUES}, META)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "owner.txt"]
    assert checkpoints.save(3, {"values": VALUES}, META)
    assert checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("keep", [1, 3])
def test_with_retry_a_failed_save_is_a_warning(tmp_path, caplog, keep):
  with Checkpoints(tmp_path, keep, retry=True) as checkpoints:
    checkpoints.save(1, {"values": VALUES}, META, metric=1.0)
    with small_files_only():
      assert not checkpoints.save(2, {"values": VALUES}, META, metric=2.0)
    assert re.search(FAILED, str(checkpoints.failure))
    assert checkpoints.save(3, {"values": VALUES + 1}, META, metric=0.5)
    assert checkpoints.failure is None
  assert len([r for r in caplog.records if r.name.startswith("pomp_jax")]) == 1
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "3", "owner.txt"]
  with Checkpoints(tmp_path, keep) as checkpoints:
    assert_same(checkpoints.restore_latest({"values": VALUES}).state, {"values": VALUES + 1})


def test_a_folder_that_is_lost_for_a_while(tmp_path, caplog):
  folder = tmp_path / "checkpoints"
  with Checkpoints(folder, retry=True) as checkpoints:
    checkpoints.save(1, {"value": 1}, META)
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("in its place")
    assert not checkpoints.save(2, {"value": 2}, META)
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    assert checkpoints.save(3, {"value": 3}, META)
    assert checkpoints.steps() == [1, 3]
  assert "checkpoint of step 2" in caplog.text


@pytest.mark.parametrize(("reason", "raised"), [(None, CheckpointError), (KeyError, KeyError)])
def test_a_run_that_ends_with_a_failed_save_raises(tmp_path, reason, raised):
  """Of two reasons to end, the first is raised."""
  with pytest.raises(raised), Checkpoints(tmp_path, retry=True) as checkpoints, small_files_only():
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
  """All checkpoints are intact, and only the one being written can be lost."""
  target = {str(i): np.zeros(20_000, int) for i in range(5)}
  for delay in (0.0, 0.027):
    process = subprocess.Popen(
      [sys.executable, "-c", _SAVES_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(4)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      newest = checkpoints.restore_latest(target)
    assert newest.step >= int(lines[-1])
    for step, state, meta in read_checkpoints(tmp_path):
      assert meta == {"step": step}
      assert all((leaf == step).all() for leaf in state.values())
