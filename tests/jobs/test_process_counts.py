"""Four devices, of one process, of two or of four: the same contexts and the same figures.

Not bit for bit: how a sum over devices is ordered depends on which of them share a process, and
each step starts from the rounding of the one before.
"""

import functools
import json

from job_processes import run_in_processes
import numpy as np
import pytest
from small_run import small_config

from pomp_jax.config import validate
from pomp_jax.files.prompt_file import load_prompt

_TOLERANCE = 1e-5
_SMALL = {"data.n_classes": 60, "steps": 5, "checkpoint.every": 5, "eval.images": 32}
# Devices that split the images, and devices that split the classes: then those of several processes
# take the same images.
_JOBS = {
  "sampled": small_config(**_SMALL),
  "all": small_config(negatives="all", **_SMALL, **{"mesh.class_size": 4}),
  "ablate": small_config(
    job="ablate", **_SMALL, **{"mesh.class_size": 2, "ablate.grid": "k=10;seed=0|1"}
  ),
}


# Four processes compile everything four times, which takes minutes on two cores.
_COUNTS = [2, pytest.param(4, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
  """Of a number of processes the folder, with a run's folder for each job."""
  for config in _JOBS.values():
    validate(config)

  @functools.cache
  def run(count):
    folder = tmp_path_factory.mktemp(f"processes_{count}")
    # The ablation a second time: nothing is left to do, and all processes have to find that.
    jobs = [*_JOBS.items(), ("ablate", _JOBS["ablate"])]
    run_in_processes(
      [(config, [folder / name] * count) for name, config in jobs],
      folder / "jobs.json",
      count=count,
      devices=4 // count,
      seconds=480,
    )
    return folder

  return run


def results(folder, job):
  return json.loads((folder / job / "results.json").read_text())


@pytest.mark.parametrize("count", _COUNTS)
@pytest.mark.parametrize("job", ["sampled", "all"])
def test_a_training_is_the_same(folder_of, count, job):
  one, several = (load_prompt(folder_of(n) / job / "prompt.npz").context for n in (1, count))
  np.testing.assert_allclose(several, one, rtol=0, atol=_TOLERANCE)
  one, several = (results(folder_of(n), job) for n in (1, count))
  assert several["eval"] == one["eval"]
  assert several["k"] == one["k"] == (60 if job == "all" else 20)


@pytest.mark.parametrize("count", _COUNTS)
def test_an_ablation_is_the_same(folder_of, count):
  one, several = (sorted((folder_of(n) / "ablate" / "cells").glob("*.npz")) for n in (1, count))
  assert [file.name for file in several] == [file.name for file in one]
  assert len(one) == 2
  contexts = [load_prompt(file).context for file in one]
  # Cells differ by far more than the tolerance.
  assert np.abs(contexts[0] - contexts[1]).max() > 100 * _TOLERANCE
  for file, expected in zip(several, contexts, strict=True):
    np.testing.assert_allclose(load_prompt(file).context, expected, rtol=0, atol=_TOLERANCE)
  one, several = (results(folder_of(n), "ablate") for n in (1, count))
  assert several["missing"] == []
  for cell, expected in zip(several["cells"], one["cells"], strict=True):
    assert cell["error"] is None
    for figure in ("name", "values", "top1", "top5", "by_hand"):
      assert cell[figure] == expected[figure]
    assert cell["loss"] == pytest.approx(expected["loss"], rel=1e-5)
  assert (folder_of(count) / "ablate" / "report.html").exists()
