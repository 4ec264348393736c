"""So many devices, of one process or of several: the same contexts and the same figures.

Contexts not bit for bit: how a sum over devices is ordered depends on which of them share a
process, and each step starts from the rounding of the one before.

Every process is given a folder of its own for the run: only the first may touch it.
"""

import functools
import json

import numpy as np
import pytest

from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support.processes import run_in_processes
from tests.support.small_run import small_config

_TOLERANCE = 1e-5
# As many images of each split as classes: a prime, so no multiple of devices or of a batch.
_N = 61
_SMALL = {"data.n_classes": _N, "steps": 5, "checkpoint.every": 5, "eval.images": _N}
# Every layout compiles everything once a process, which expected a minute or two on two cores.
_LAYOUTS = [
  pytest.param(count, devices, id=f"{count}x{devices}", marks=marks)
  for count, devices, marks in [
    (2, 2, ()),
    *((count, devices, pytest.mark.long) for count, devices in [(2, 1), (2, 4)]),
    *((4, devices, pytest.mark.long) for devices in (1, 2, 4)),
  ]
]


def jobs(folder, size):
  """The jobs by name, in an order in which they find what they read.

  Args:
    folder: for the features and the runs.
    size: devices of all processes.
  """
  cache = {"data.feature_cache": str(folder / "features"), "data.view_epochs": 1}
  prompt = str(folder / "sampled" / "prompt.npz")
  # Devices that split the images, and devices that split the classes.
  ablation = small_config(
    job="ablate", **_SMALL, **{"mesh.class_size": min(size, 2), "ablate.grid": "k=10;seed=0|1"}
  )
  return {
    # Each process computes its part of the features.
    "sampled": small_config(
      **_SMALL, **{"data.features": "once", "data.feature_cache": str(folder / "once")}
    ),
    "cache": small_config(job="cache", **_SMALL, **cache),
    # All devices split the classes: those of several processes take the same images.
    "all": small_config(
      negatives="all", **_SMALL, **cache, **{"data.features": "cached", "mesh.class_size": size}
    ),
    "ablate": ablation,
    # Validated on images: each process reads those of its devices.
    "vpt": small_config(method="vpt_shallow", **_SMALL),
    # Nothing is left to do, and all processes have to find that.
    "ablate again": ablation,
    "ablate_cached": small_config(
      job="ablate", **_SMALL, **cache, **{"data.features": "cached", "ablate.grid": "k=10;seed=1"}
    ),
    "evaluate": small_config(
      job="evaluate",
      **{
        "evaluate.sets": "base;novel",
        "data.n_classes": _N,
        "evaluate.images": _N,
        "evaluate.batch_size": 16,
        "evaluate.prompts": f"hand_written;{prompt}",
      },
    ),
    "export": small_config(
      job="export",
      **{
        "export.prompt": prompt,
        "export.format": "open_clip",
        "export.names": str(folder / "names.txt"),
      },
    ),
  }


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
  """Of a layout the folder, with a run's folder for each job."""

  @functools.cache
  def run(count, devices):
    folder = tmp_path_factory.mktemp(f"{count}x{devices}")
    (folder / "names.txt").write_text("red circle\nblue square\ngreen star\n")
    others = [folder / f"of_{index}" for index in range(1, count)]
    some = []
    for name, config in jobs(folder, count * devices).items():
      name = name.removesuffix(" again")
      some.append((config, [folder / name, *(other / name for other in others)]))
    run_in_processes(some, folder / "jobs.json", count=count, devices=devices, seconds=1200)
    assert not any(other.exists() for other in others)
    return folder

  return run


@pytest.fixture
def both(folder_of, count, devices):
  """The folders of one process with as many devices, and of these processes."""
  return folder_of(1, count * devices), folder_of(count, devices)


def cells(folder, job):
  """Of an ablation each cell's context, by its file's name."""
  files = sorted((folder / job / "cells").glob("*.npz"))
  return {file.name: load_prompt(file).context for file in files}


def results(folder, job):
  return json.loads((folder / job / "results.json").read_text())


@pytest.mark.parametrize(("count", "devices"), _LAYOUTS)
class TestTheSame:
  @pytest.mark.parametrize("job", ["sampled", "all"])
  def test_training(self, both, job):
    one, several = (load_prompt(folder / job / "prompt.npz").context for folder in both)
    np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
    one, several = (results(folder, job) for folder in both)
    assert several["eval"] == one["eval"]
    assert several["k"] == one["k"] == (_N if job == "all" else 20)

  def test_prompted_images(self, both):
    one, several = (results(folder, "vpt") for folder in both)
    assert several["eval"] == one["eval"]
    one, several = (RunFolder(folder / "vpt").scalars() for folder in both)
    assert several["validation_top1"] == one["validation_top1"] == ([5], one["validation_top1"][1])

  def test_features(self, both):
    one, several = (sorted((folder / "features").glob("block-*.npy")) for folder in both)
    assert [file.name for file in several] == [file.name for file in one]
    for file, expected in zip(several, one, strict=True):
      np.testing.assert_allclose(np.load(file), np.load(expected), rtol=1e-5, atol=1e-5)
    one, several = (results(folder, "cache") for folder in both)
    assert several["computed_features"] == one["computed_features"] == 2 * _N

    files = sorted((both[1] / "once").glob("block-*.npy"))
    assert sum(len(np.load(file)) for file in files) == 2 * _N

  def test_ablation(self, both):
    one, several = (cells(folder, "ablate") for folder in both)
    assert list(several) == list(one)
    first, second = one.values()
    # Seeds differ by far more than the tolerance.
    assert np.abs(first - second).max() > 100 * _TOLERANCE
    for name, expected in one.items():
      np.testing.assert_allclose(several[name], expected, rtol=0, atol=_TOLERANCE)
    one, several = (results(folder, "ablate") for folder in both)
    assert several["missing"] == []
    for cell, expected in zip(several["cells"], one["cells"], strict=True):
      assert cell["error"] is None
      for figure in ("name", "values", "top1", "top5", "by_hand"):
        assert cell[figure] == expected[figure]
      assert cell["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert (both[1] / "ablate" / "report.html").exists()

  def test_ablation_from_features(self, both):
    (one,), (several,) = (cells(folder, "ablate_cached").values() for folder in both)
    np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)

  def test_evaluation(self, both):
    one, several = (results(folder, "evaluate")["sets"] for folder in both)
    assert list(several) == list(one) == ["base", "novel"]
    for name, expected in one.items():
      for found, figures in zip(
        several[name]["prompts"].values(), expected["prompts"].values(), strict=True
      ):
        assert found["images"] == figures["images"] == _N
        for figure in ("top1", "top5", "macro_top1", "mean_confidence"):
          assert found[figure] == pytest.approx(figures[figure], abs=1e-5)

  def test_exported_features(self, both):
    one, several = (np.load(next((folder / "export").glob("*.npy"))) for folder in both)
    assert one.shape == (128, 3)
    np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
