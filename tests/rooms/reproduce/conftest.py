"""Data, trainings and a finished rehearsal, made once for a session."""

import pathlib
import shutil

import pytest

from tests.support.shared_runs import Shared


@pytest.fixture(scope="session")
def world_data(shared: Shared) -> pathlib.Path:
  """The rehearsal's sets."""
  from pomp_jax.rooms.reproduce import world_sets

  return shared("reproduce_data", world_sets.write_sets)


@pytest.fixture(scope="session")
def trainings_of(shared: Shared):
  """A function: other fields of the recipe -> folders of the seeds 0, 1 and 2."""
  from tests.rooms.reproduce.rehearsals import write_trainings

  def find(**changes):
    slug = "_".join(f"{name}_{value}" for name, value in changes.items()) or "recipe"
    folder = shared(
      f"reproduce_{slug}",
      lambda into: write_trainings(into, range(3), **changes) and None,
    )
    return sorted(folder.glob("seed_*"))

  return find


@pytest.fixture(scope="session")
def finished(shared: Shared, world_data) -> pathlib.Path:
  """The folder of a finished rehearsal without trainings, of 200 images a set."""
  from tests.rooms.reproduce.rehearsals import rehearse

  def run(folder):
    rehearse(folder, reproduce__root=str(world_data), reproduce__quick=True)

  return shared("reproduce_finished", run)


@pytest.fixture(scope="session")
def honest(shared: Shared, world_data, trainings_of) -> pathlib.Path:
  """The folder of a finished rehearsal without a fault, with three trainings."""
  from tests.rooms.reproduce.rehearsals import rehearse

  def run(folder):
    runs = tuple(map(str, trainings_of()))
    rehearse(folder, reproduce__root=str(world_data), reproduce__runs=runs)

  return shared("reproduce_honest", run)


@pytest.fixture
def rehearsal(world_data, trainings_of, tmp_path, monkeypatch):
  """A rehearsal whose data and CLIP a fault may change."""
  from tests.rooms.reproduce.rehearsals import WORLD_CLIP, Rehearsal

  data = tmp_path / "data"
  for path in world_data.rglob("*"):
    target = data / path.relative_to(world_data)
    if path.is_dir():
      target.mkdir(parents=True)
    else:
      target.hardlink_to(path)
  clip = tmp_path / "clip"
  shutil.copytree(WORLD_CLIP, clip)
  fields = {"reproduce.root": str(data)}
  return Rehearsal(tmp_path, data, clip, fields, monkeypatch, trainings_of)
