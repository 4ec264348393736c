"""A CLIP of the core's tests, and what tests of several rooms share."""

import pathlib

import pytest

from tests.clip.conftest import quick  # noqa: F401
from tests.support.shared_runs import Shared


@pytest.fixture(scope="session")
def region_set(shared: Shared) -> pathlib.Path:
  """The folder of `region_jobs.write_region_set`."""
  from tests.rooms.regions.region_jobs import write_region_set

  return shared("region_set", write_region_set)


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
  """Neither `segment` nor `detect` draws."""
  for job in ("segment", "detect"):
    monkeypatch.setattr(f"pomp_jax.rooms.regions.{job}._draw", lambda *given: None)


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
  """A zero-shot CLIP without its ensembles of 7 and 80 texts, which take most of the
  time."""
  from pomp_jax.rooms.baselines import classifiers

  texts = {
    name: classifiers._ZERO_SHOT[name] for name in ("hand_written", "class_name")
  }
  monkeypatch.setattr(classifiers, "_ZERO_SHOT", texts)
