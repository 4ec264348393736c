"""Files in buckets: whole objects, markers written last, errors in one line, nothing
local."""

import os
import uuid

import pytest

from pomp_jax.config import ConfigError, validate
from pomp_jax.errors import InputError
from pomp_jax.files import paths
from pomp_jax.files.atomic import disk_failure, replacing, why_unwritable
from pomp_jax.files.checkpoints import CheckpointError, Checkpoints
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json, write_json
from tests.support.checkpoint_states import META, assert_same, make_state
from tests.support.small_run import small_config


@pytest.fixture
def folder(store, tmp_path, monkeypatch):
  """URL of an empty folder; asserts that no local folder takes its place."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield store.url(uuid.uuid4().hex)
  assert set(os.listdir(tmp_path)) <= {"cache"}


def objects(folder):
  bucket = folder.partition("://")[2]
  return sorted(
    name.removeprefix(f"{bucket}/") for name in paths.store_of(folder).find(folder)
  )


def test_a_path_is_a_folder_while_an_object_is_in_it(folder):
  path = paths.to_path(folder) / "a" / "b.txt"
  path.parent.mkdir(parents=True, exist_ok=True)
  assert not paths.exists(folder) and not paths.is_dir(folder)
  path.write_bytes(b"content")
  assert paths.is_dir(folder) and not paths.is_file(folder)
  assert paths.is_file(path) and not paths.is_dir(path)
  assert (paths.file_size(path), paths.read_bytes(path)) == (7, b"content")
  assert str(paths.join(folder, "a", "b.txt")) == str(path) == f"{folder}/a/b.txt"


@pytest.mark.parametrize(
  "url", ["s4://bucket/run", "http://host/run", "gs://", "gs:///run", "s3://"]
)
def test_another_scheme_or_no_bucket_is_refused(url):
  assert paths.problem_of(url) == paths.ACCEPTED
  with pytest.raises(InputError, match="expected"):
    paths.to_path(url)


def put(path, content: bytes):
  with replacing(path) as file:
    file.write(content)


def test_an_object_is_replaced_once_it_is_complete(folder):
  path = f"{folder}/file"
  put(path, b"old")
  with pytest.raises(ZeroDivisionError), replacing(path) as file:
    file.write(b"half")
    raise ZeroDivisionError
  with replacing(path) as file:
    file.write(b"new")
    assert paths.read_bytes(path) == b"old"
  assert paths.read_bytes(path) == b"new"
  assert objects(folder) == ["file"]


def test_a_missing_bucket_is_one_line_and_is_not_created(store, folder):
  missing = f"{store.scheme}://missing/run"
  with pytest.raises(RunFolderError, match="no bucket"):
    RunFolder(missing).create()
  with pytest.raises(FileNotFoundError) as caught:
    put(f"{missing}/file", b"{}")
  assert disk_failure(caught.value).startswith(f"{missing}/file: the bucket fails")
  assert "no bucket" in why_unwritable(missing)
  assert why_unwritable(folder) is None


def test_access_denied_is_one_line(store, folder):
  write_json(f"{folder}/file.json", {"a": 1})
  store.fail(403)
  with pytest.raises(RunFolderError, match="access denied"):
    read_json(f"{folder}/file.json")
  with pytest.raises(RunFolderError, match="access denied"):
    write_json(f"{folder}/file.json", {"a": 2})
  assert "access denied" in why_unwritable(folder)
  with pytest.raises(ConfigError, match="access denied") as caught:
    validate(small_config(**{"data.source": "folder", "data.root": f"{folder}/images"}))
  assert caught.value.field == "data.root"
  store.recover()
  assert read_json(f"{folder}/file.json") == {"a": 1}


@pytest.mark.parametrize(
  "status",
  [503, pytest.param(429, marks=pytest.mark.slow("waits for what 503 waits for"))],
)
def test_a_store_that_is_busy_for_a_second_is_asked_again(store, folder, status):
  # the client is made, which may take longer than a second
  write_json(f"{folder}/file.json", {})
  faults = store.faults
  store.fail(status, seconds=1.0)
  write_json(f"{folder}/file.json", {"a": 1})
  assert store.faults > faults
  store.fail(status, seconds=1.0)
  assert read_json(f"{folder}/file.json") == {"a": 1}


def test_of_incomplete_and_damaged_checkpoints_none_is_read(folder):
  with Checkpoints(folder) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step), META)
  (paths.to_path(folder) / "3" / "commit_success.txt").unlink()
  for name in objects(folder):
    if name.startswith("2/state/") and "/d/" in name:
      path = paths.to_path(folder) / name
      path.write_bytes(bytes(len(path.read_bytes())))
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(make_state()).step == 1
    assert checkpoints.steps() == [1]
    assert not [name for name in objects(folder) if name.startswith("3/")]
    assert "damaged-2/meta/metadata" in objects(folder)
    assert checkpoints.save(3, make_state(3), META)
    assert checkpoints.restore(make_state()).step == 3


def test_the_right_checkpoints_are_kept_whatever_fails_unless_a_later_start_saves(
  store, folder
):
  with Checkpoints(folder, keep=1, retry=True) as checkpoints:
    assert checkpoints.restore(make_state()) is None
    assert checkpoints.save(1, make_state(1), META, metric=5)
    store.fail(403)
    assert not checkpoints.save(2, make_state(2), META)
    assert "2" in str(checkpoints.failure)
    store.recover()
    assert checkpoints.save(3, make_state(3), META, metric=3)
    assert checkpoints.save(4, make_state(4), META, metric=4)
    assert checkpoints.steps() == [1, 4]
    assert not [name for name in objects(folder) if name.startswith("3/")]
    step, restored, meta, _ = checkpoints.restore(make_state())
    assert (step, meta) == (4, META)
    assert_same(restored, make_state(4))
    with Checkpoints(folder) as later:
      with pytest.raises(CheckpointError, match="later start"):
        checkpoints.save(5, make_state(), META)
      assert later.steps() == [1, 4]


def test_metrics_are_sent_and_those_behind_a_checkpoint_dropped(store, folder, caplog):
  with MetricsWriter(folder) as writer:
    store.fail(403)
    writer.upload()
    assert "can't be sent" in caplog.text
    for step in (1, 2, 3):
      writer.write(step, loss=step / 2)
    store.recover()
  assert RunFolder(folder).scalars() == {"loss": ([1, 2, 3], [0.5, 1.0, 1.5])}
  with MetricsWriter(folder, 3) as writer:
    writer.write(3, loss=7.0)
    writer.upload()
    assert RunFolder(folder).scalars() == {"loss": ([1, 2, 3], [0.5, 1.0, 7.0])}
  events = [name for name in objects(folder) if name.startswith("events.")]
  assert len(events) == 2 and {name[-2:] for name in events} == {".0", ".1"}


def test_a_local_copy_follows_the_object_and_is_checked(folder):
  path = f"{folder}/weights.bin"
  put(path, b"first")
  copy = paths.local_copy(path)
  assert (copy.name, copy.read_bytes()) == ("weights.bin", b"first")
  copy.write_bytes(b"damaged")
  assert paths.local_copy(path).read_bytes() == b"first"
  put(path, b"second")
  assert paths.local_copy(path).read_bytes() == b"second"
