"""Several processes leave what one device leaves: the same contexts and the same figures.

The one device computes the groups of a batch one after the other (`accumulate`) that the others
share. Contexts are not equal bit for bit: the order of the sums differs, and each step starts from
the rounding of the one before.

Every process is given a folder of its own for the run: only the first may touch it.
"""

import functools
import json

import numpy as np
import pytest

from pomp_jax.config import load_job
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.support.data_files import write_unreadable_set
from tests.support.processes import run_in_processes
from tests.support.small_run import small_config, training_features

_TOLERANCE = 1e-5
_STEPS = 2
# Each process starts and compiles for itself, so the two of the first tier run the jobs alone that
# divide what they read among processes: 30 core-seconds, started once for all tests.
_QUICK = ("sampled", "views", "evaluate")
_MORE = pytest.mark.slow("all jobs, and layouts beyond two processes of one device: minutes each")
_LARGER = [
  pytest.param((count, devices), id=f"{count}x{devices}", marks=_MORE)
  for count, devices in [(2, 2), (4, 1), (2, 4)]
]
_ALL = [pytest.param((2, 1), id="2x1"), *_LARGER]


def jobs(folder, images, clip, size, *, one_device=False):
  """The jobs by name, in an order in which they find what they read.

  Args:
    folder: for the features and the runs.
    images: folder of `write_unreadable_set`.
    clip: path of the CLIP.
    size: devices of all processes.
    one_device: whether one device computes what they would.
  """

  def of(class_size=1, **changes):
    groups = {"accumulate": size // class_size} if one_device else {"mesh.class_size": class_size}
    data = {"data.source": "folder", "data.root": str(images / "eurosat"), "data.n_classes": 0}
    data |= {"data.max_corrupt": 0.1, "eval.images": 0}
    fields = {"clip.model": clip, "k": 4, "steps": _STEPS, "checkpoint.every": _STEPS}
    return small_config(**data | fields | {"probe.iterations": 20} | groups | changes)

  # Views of images, so that each image has features of its own in each epoch. All processes see
  # the folder of features.
  stored = {"data.features": "stored", "data.feature_store": str(folder / "features")}
  views = stored | {"data.augment": "recipe", "data.views": 2, "data.view_epochs": 2}
  # Devices that split the images, and devices that split the classes.
  ablation = of(min(size, 2), job="ablate", **{"ablate.grid": "k=4;seed=0|1"})
  evaluated = {"evaluate.suite": "base_to_new", "evaluate.source": "folder"}
  evaluated |= {"evaluate.root": str(images), "evaluate.sets": "eurosat", "evaluate.batch_size": 16}
  evaluated |= {"evaluate.prompts": f"{{}}.;{folder / 'sampled' / 'prompt.npz'}"}
  found = {
    # Each process computes its part of the features.
    "sampled": of(**stored),
    "views": of(**views),
    # All devices split the classes: those of several processes take the same images.
    "all": of(size, negatives="all", **views),
    "ablate": ablation,
    # Nothing is left to do, and all processes have to find that.
    "ablate again": ablation,
    # Validated on images: each process reads those of its devices.
    "vpt": of(method="vpt_shallow"),
    "probe": of(method="linear_probe"),
    "evaluate": of(job="evaluate", **evaluated),
  }
  return {name: found[name] for name in _QUICK} if size == 2 else found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  write_unreadable_set(root / "eurosat")
  # No number of images is a multiple of the devices or of a batch.
  for split in ("train", "val", "test"):
    source = root / "eurosat" / split / "Forest" / "0.png"
    assert source.exists()
    (source.parent / "more.png").write_bytes(source.read_bytes())
  return root


@pytest.fixture(scope="module")
def folders_of(images, one_layer, tmp_path_factory):
  """A function: layout -> the folders of one device and of these processes, with all runs."""

  @functools.cache
  def run(layout):
    count, devices = layout
    one, several = (tmp_path_factory.mktemp(f"{count}x{devices}") for _ in range(2))
    for name, config in jobs(one, images, one_layer, count * devices, one_device=True).items():
      load_job(config.job).run(config, str(one / name.removesuffix(" again")))
    others = [several / f"of_{index}" for index in range(1, count)]
    some = []
    for name, config in jobs(several, images, one_layer, count * devices).items():
      name = name.removesuffix(" again")
      some.append((config, [several / name, *(other / name for other in others)]))
    run_in_processes(some, several / "jobs.json", count=count, devices=devices, seconds=1200)
    assert not any(other.exists() for other in others)
    return one, several

  return run


@pytest.fixture
def both(folders_of, layout):
  """The folders of one device, and of these processes."""
  return folders_of(layout)


def cells(folder):
  """Of the ablation each cell's context, by its file's name without the key."""
  files = sorted((folder / "ablate" / "cells").glob("*.npz"))
  return {file.stem.rpartition("_")[0]: load_prompt(file).context for file in files}


def results(folder, job):
  return json.loads((folder / job / "results.json").read_text())


def but_for_rounding(splits):
  """Figures of prompts by split; a calibration error is a mean of probabilities."""
  close = lambda figures: (
    figures | {name: pytest.approx(figures[name], abs=1e-4) for name in ("ece",) if name in figures}
  )
  return {split: {name: close(f) for name, f in found.items()} for split, found in splits.items()}


@pytest.mark.parametrize("layout", _ALL)
def test_training(both, layout):
  # The images of the evaluation of `views` are those of `sampled`, whose features are stored.
  expected_k = {"sampled": 4, "views": 4} | ({} if layout == (2, 1) else {"all": 10})
  for job, k in expected_k.items():
    one, several = (load_prompt(folder / job / "prompt.npz").context for folder in both)
    np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
    one, several = (results(folder, job) for folder in both)
    assert several["eval_unreadable"] == one["eval_unreadable"]
    assert several["eval"] == but_for_rounding(one["eval"])
    assert several["k"] == one["k"] == k


@pytest.mark.parametrize("layout", _LARGER)
def test_other_methods(both):
  one, several = (results(folder, "vpt") for folder in both)
  assert several["eval"] == but_for_rounding(one["eval"])
  one, several = (RunFolder(folder / "vpt").scalars() for folder in both)
  expected = one["validation_top1"]
  assert several["validation_top1"] == expected and expected[0] == [_STEPS]
  one, several = (results(folder, "probe") for folder in both)
  assert several["eval_unreadable"] == one["eval_unreadable"] == {"test": 2}
  assert several["top1"] == one["top1"]


@pytest.mark.parametrize("layout", _ALL)
def test_features(both):
  for shape in ((21, 1), (21, 4)):
    one, several = (training_features(folder / "features", shape) for folder in both)
    np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", _LARGER)
def test_ablation(both):
  one, several = (cells(folder) for folder in both)
  assert list(several) == list(one)
  for name, expected in one.items():
    np.testing.assert_allclose(several[name], expected, rtol=0, atol=_TOLERANCE)
  first, second = one.values()
  # Seeds differ by far more than the tolerance.
  assert np.abs(first - second).max() > 100 * _TOLERANCE
  one, several = (results(folder, "ablate") for folder in both)
  assert several["missing"] == []
  for cell, expected in zip(several["cells"], one["cells"], strict=True):
    assert cell["error"] is None
    for figure in ("name", "values", "top1", "top5", "by_hand"):
      assert cell[figure] == expected[figure]
    assert cell["loss"] == pytest.approx(expected["loss"], rel=1e-5)
  assert (both[1] / "ablate" / "report.html").exists()


@pytest.mark.parametrize("layout", _ALL)
def test_evaluation_leaves_out_the_same_images(both):
  """Each decodes a part of a batch: what one can't read, all leave out."""
  one, several = (results(folder, "evaluate") for folder in both)
  assert [found["unreadable"] for found in several["sets"].values()] == [1, 1]
  for name, expected in one["sets"].items():
    for found, figures in zip(
      several["sets"][name]["prompts"].values(), expected["prompts"].values(), strict=True
    ):
      assert found["images"] == figures["images"] >= 24
      for figure in ("top1", "top5", "macro_top1", "mean_confidence"):
        assert found[figure] == pytest.approx(figures[figure], abs=1e-5)
