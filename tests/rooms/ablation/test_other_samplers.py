"""The command of docs/studies/other_samplers.py: an ablation over rows that the
study registers."""

import json
import math
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, environment


@pytest.mark.slow("a process of its own, which compiles five steps")
def test_an_ablation_takes_the_rows_of_the_study(tmp_path):
  """A process of its own: the fields list their values once, when they are imported."""
  grid = "sampling.name=easy|top|independent & sampling.name=posterior;correction=logq|refined"
  fields = {
    "ablate.grid": grid,
    "steps": 2,
    "k": 8,
    "batch_size": 8,
    "data.n_classes": 32,
  }
  fields |= {"data.images_per_class": 1, "eval.images": 16, "data.features": "stored"}
  command = [
    sys.executable,
    "-m",
    "docs.studies.other_samplers",
    "--config=time_to_accuracy",
  ]
  command += [f"--workdir={tmp_path}", "--config.ablate.curve_every=0"]
  command += [f"--config.{field}={value}" for field, value in fields.items()]
  done = subprocess.run(
    command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  cells = json.loads((tmp_path / "results.json").read_text())["cells"]
  found = [
    (cell["values"]["sampling.name"], cell["values"]["correction"]) for cell in cells
  ]
  expected = [(name, "log") for name in ("easy", "top", "independent")]
  assert found == [*expected, ("posterior", "logq"), ("posterior", "refined")]
  assert all(math.isfinite(cell["loss"]) for cell in cells)
