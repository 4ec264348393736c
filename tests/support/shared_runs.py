"""Plugin: finished runs that many tests read, each made once for all workers of a session."""

from collections.abc import Callable
import os
import pathlib
import shutil

import filelock
import pytest

# A name, and a function that fills the empty folder of that name.
Shared = Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]


def _listing(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Size and time of each file."""
  files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
  return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in files.items()}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory):
  """A function `(name, make) -> folder`: `make(folder)` runs once, in the worker that is first.

  Tests only read the folder, which is held at the end, and copy what they change: see `copy_of`.
  """
  root = tmp_path_factory.getbasetemp()
  # The parent of a worker's folder is the session's.
  root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
  root.mkdir(exist_ok=True)
  seen = {}

  def find(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    if name not in seen:
      folder, complete = root / name, root / f"{name}.complete"
      with filelock.FileLock(root / f"{name}.lock"):
        if not complete.exists():
          # After an error the next test tries again.
          shutil.rmtree(folder, ignore_errors=True)
          folder.mkdir()
          make(folder)
          complete.touch()
      seen[name] = folder, _listing(folder)
    return seen[name][0]

  yield find
  for name, (folder, before) in seen.items():
    assert _listing(folder) == before, f"a test changed the shared folder {name}"


@pytest.fixture
def copy_of(tmp_path: pathlib.Path):
  """A function: shared folder -> a copy of it for this test alone."""

  def copy(folder: pathlib.Path, name: str = "copy") -> pathlib.Path:
    return pathlib.Path(shutil.copytree(folder, tmp_path / name))

  return copy


@pytest.fixture(scope="session")
def pretrained(shared: Shared) -> pathlib.Path:
  """The folder of a finished `pretrain` with `small_config()`."""
  # Imported late: JAX starts after the plugins are loaded.
  from pomp_jax.train import pretrain
  from tests.support.small_run import small_config

  def train(folder: pathlib.Path) -> None:
    pretrain.check(small_config(), str(folder))
    pretrain.run(small_config(), str(folder))

  return shared("pretrain", train)
