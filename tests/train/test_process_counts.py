"""Several processes leave what one device leaves: the same contexts and the same
figures.

The one device computes the groups of a batch one after the other (`accumulate`) that
the others share, so contexts differ by rounding. Each process gets a run folder: only
the first may touch it.
"""

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
# Each process starts and compiles for itself, so the two of the first tier run the jobs
# alone that divide most of what they read among processes: 25 core-seconds, started
# once for all tests.
_QUICK = ("views", "evaluate")
_MORE = pytest.mark.slow(
  "all jobs, and layouts beyond two processes of one device: minutes each"
)
_LAYOUTS = [pytest.param(layout, marks=_MORE) for layout in ((2, 2), (4, 1), (2, 4))]
_OPTIONS = {"ids": lambda layout: "{}x{}".format(*layout), "indirect": True}
larger = pytest.mark.parametrize("both", _LAYOUTS, **_OPTIONS)
all_layouts = pytest.mark.parametrize("both", [(2, 1), *_LAYOUTS], **_OPTIONS)


def jobs(folder, images, clip, size, *, one_device=False):
  """The jobs by name, in an order in which they find what they read, for `size` devices
  in all.

  With `one_device` one device computes what these would.
  """

  def of(class_size=1, **changes):
    groups = (
      {"accumulate": size // class_size}
      if one_device
      else {"mesh.class_size": class_size}
    )
    data = {
      "data.source": "folder",
      "data.root": str(images / "eurosat"),
      "data.n_classes": 0,
    }
    data |= {"data.max_corrupt": 0.1, "eval.images": 0}
    fields = {"clip.model": clip, "k": 4, "steps": _STEPS, "checkpoint.every": _STEPS}
    return small_config(**data | fields | {"probe.iterations": 20} | groups | changes)

  # Views of images, so that each image has features of its own in each epoch. All
  # processes see the folder of features.
  stored = {"data.features": "stored", "data.feature_store": str(folder / "features")}
  views = stored | {"data.augment": "recipe", "data.views": 2, "data.view_epochs": 2}
  # Devices that split the images, and devices that split the classes.
  ablation = of(min(size, 2), job="ablate", **{"ablate.grid": "k=4;seed=0|1"})
  evaluated = {"evaluate.suite": "base_to_new", "evaluate.source": "folder"}
  evaluated |= {
    "evaluate.root": str(images),
    "evaluate.sets": "eurosat",
    "evaluate.batch_size": 16,
  }
  evaluated |= {"evaluate.prompts": f"{{}}.;{folder / 'views' / 'prompt.npz'}"}
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
    folder = root / "eurosat" / split / "Forest"
    (folder / "more.png").write_bytes((folder / "0.png").read_bytes())
  return root


@pytest.fixture(scope="module")
def both(request, images, one_layer, tmp_path_factory):
  """The folders of one device, and of the processes of a layout, with all runs."""
  count, devices = request.param
  one, several = (tmp_path_factory.mktemp(f"{count}x{devices}") for _ in range(2))
  for name, config in jobs(
    one, images, one_layer, count * devices, one_device=True
  ).items():
    load_job(config.job).run(config, str(one / name.removesuffix(" again")))
  others = [several / f"of_{index}" for index in range(1, count)]
  some = [
    (config, [folder / name.removesuffix(" again") for folder in (several, *others)])
    for name, config in jobs(several, images, one_layer, count * devices).items()
  ]
  run_in_processes(
    some, several / "jobs.json", count=count, devices=devices, seconds=1200
  )
  assert not any(other.exists() for other in others)
  return one, several


def results(folders, job):
  """Those of both, with the calibration error, a mean of probabilities, but for
  rounding."""
  found = [RunFolder(folder / job).read_results() for folder in folders]
  for prompts in found[0].get("eval", {}).values():
    for figures in prompts.values():
      if "ece" in figures:
        figures["ece"] = pytest.approx(figures["ece"], abs=1e-4)
  return found


@all_layouts
def test_training(both):
  # The images of the evaluation of `views` are those of `sampled`, whose features are
  # stored.
  found = {"sampled": 4, "views": 4, "all": 10}
  for job in [job for job in found if (both[0] / job).exists()]:
    one, several = (load_prompt(folder / job / "prompt.npz").context for folder in both)
    np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
    one, several = results(both, job)
    assert several["eval_unreadable"] == one["eval_unreadable"]
    assert several["eval"] == one["eval"]
    assert several["k"] == one["k"] == found[job]


@larger
def test_other_methods(both):
  one, several = results(both, "vpt")
  assert several["eval"] == one["eval"]
  one, several = (
    RunFolder(folder / "vpt").scalars()["validation_top1"] for folder in both
  )
  assert several == one and one[0] == [_STEPS]
  one, several = results(both, "probe")
  assert several["eval_unreadable"] == one["eval_unreadable"] == {"test": 2}
  assert several["top1"] == one["top1"]


@all_layouts
def test_features(both):
  shapes = [(21, 1), (21, 4)] if (both[0] / "sampled").exists() else [(21, 4)]
  for shape in shapes:
    one, several = (training_features(folder / "features", shape) for folder in both)
    np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-5)


@larger
def test_ablation(both):
  files = (sorted((folder / "ablate" / "cells").glob("*.npz")) for folder in both)
  one, several = ([load_prompt(file).context for file in found] for found in files)
  np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
  # Seeds differ by far more than the tolerance.
  assert np.abs(one[0] - one[1]).max() > 100 * _TOLERANCE
  one, several = results(both, "ablate")
  assert several["missing"] == []
  for cell, expected in zip(several["cells"], one["cells"], strict=True):
    assert cell["error"] is None
    for figure in ("name", "values", "top1", "top5", "by_hand"):
      assert cell[figure] == expected[figure]
    assert cell["loss"] == pytest.approx(expected["loss"], rel=1e-5)
  assert (both[1] / "ablate" / "report.html").exists()


@all_layouts
def test_evaluation_leaves_out_the_same_images(both):
  """Each decodes a part of a batch: what one can't read, all leave out."""
  one, several = results(both, "evaluate")
  assert [found["unreadable"] for found in several["sets"].values()] == [1, 1]
  for name, expected in one["sets"].items():
    prompts = (
      of_set["prompts"].values() for of_set in (several["sets"][name], expected)
    )
    for found, figures in zip(*prompts, strict=True):
      assert found["images"] == figures["images"] >= 24
      for figure in ("top1", "top5", "macro_top1", "mean_confidence"):
        assert found[figure] == pytest.approx(figures[figure], abs=1e-5)
