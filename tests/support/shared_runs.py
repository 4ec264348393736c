"""Plugin: fixtures of several folders, such as finished runs, most made once for a
session."""

from collections.abc import Callable
import os
import pathlib
import shutil

import filelock
from PIL import Image
import pytest

# A name, and a function that fills the empty folder of that name.
Shared = Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]


def _listing(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Size and time of each file."""
  files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
  return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in files.items()}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory):
  """A function `(name, make) -> folder`: `make(folder)` runs once, in the worker that
  is first.

  Tests only read the folder, which is held at the end, and copy what they change: see
  `copy_of`.
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


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  """A hub without repositories, which the library's client asks."""
  from tests.support.hub import local_hub

  with local_hub(monkeypatch, tmp_path / "cache") as hub:
    yield hub


@pytest.fixture(scope="session")
def clip_and_torch(tmp_path_factory: pytest.TempPathFactory):
  """A random CLIP, ours and torch's."""
  # Imported late: JAX starts after the plugins are loaded.
  from pomp_jax.clip.load import load_clip
  from tests.support.clips import write_random_clip

  folder = tmp_path_factory.mktemp("clip")
  model = write_random_clip(folder)
  return load_clip(str(folder)), model


@pytest.fixture(scope="session")
def encoder(clip_and_torch):
  """An encoder of the random CLIP."""
  from pomp_jax.encoder import Encoder

  return Encoder(clip_and_torch[0], chunk=8)


@pytest.fixture(scope="session", autouse=True)
def encoders_opened_once(one_device: None):
  """See `tests.support.encoders`."""
  from tests.support import encoders

  with encoders.encoders_opened_once():
    yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
  """The figures that were saved, each of which became a picture."""
  from pomp_jax.report import drawing

  figures, save = [], drawing.save

  def noted(path, figure):
    save(path, figure)
    figures.append(figure)
    with Image.open(path) as image:
      assert image.format == "PNG" and min(image.size) > 100

  monkeypatch.setattr(drawing, "save", noted)
  return figures


@pytest.fixture(scope="session")
def pretrained(shared: Shared) -> pathlib.Path:
  """The folder of a finished `pretrain` with `small_config()`."""
  from tests.support.small_run import run_job, small_config

  return shared("pretrain", lambda folder: run_job(small_config(), folder))


@pytest.fixture(scope="session")
def cut_pictures(shared: Shared) -> pathlib.Path:
  """Folders of splits with 4, 2 and 3 JPEGs a class; train/daisy/2.jpg is cut off."""
  from tests.support.data_files import NAMES, write_folder

  def write(root):
    for seed, (split, count) in enumerate((("train", 4), ("val", 2), ("test", 3))):
      write_folder(root / split, NAMES, count, seed=seed)
    cut = root / "train" / "daisy" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:300])

  return shared("cut_pictures", write)


@pytest.fixture(scope="session")
def one_layer(shared: Shared) -> str:
  """Path of the world's CLIP with one layer, the cheapest to train with."""
  from tests.support.clips import write_fewer_layers

  return str(
    shared("one_layer", lambda folder: write_fewer_layers(folder / "clip", 1)) / "clip"
  )
