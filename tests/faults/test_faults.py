"""A few runs of the fault campaign; all of it: `python -m tests.faults.campaign`."""

import dataclasses
import signal
import time

import pytest

from tests.faults import cases
from tests.faults.campaign import kinds, run_kind
from tests.faults.lab import Lab, config_of
from tests.support.processes import Processes

# Of these kinds one run.
SELECTED = (
  "SIGTERM at any step",
  "SIGKILL during a save",
  "newest checkpoint bit-flipped",
  "disk full, retry",
  "NaN, roll back",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  return Lab(config_of(), tmp_path_factory.mktemp("faults") / "reference")


@pytest.mark.parametrize("name", SELECTED)
def test_a_fault(lab, name, tmp_path):
  ((number, kind),) = [(n, kind) for n, kind in enumerate(kinds()) if kind.name == name]
  try:
    (outcome,) = run_kind(lab, dataclasses.replace(kind, runs=1), number, 1, tmp_path)
  except cases.Skip as skip:
    pytest.skip(str(skip))
  assert outcome.survived and outcome.equal
  assert 0 <= outcome.lost <= 8


def test_the_program_says_that_it_wants_to_be_started_again(tmp_path):
  arguments = [
    "--config=configs/demo.py",
    f"--workdir={tmp_path}/run",
    "--config.data.n_classes=300",
    "--config.data.images_per_class=2",
    "--config.k=20",
    "--config.batch_size=16",
    "--config.steps=100000",
    "--config.eval.images=64",
    "--config.checkpoint.every=20",
  ]
  with Processes(1, ["-m", "pomp_jax.main", *arguments]) as run:
    while not (tmp_path / "run" / "checkpoints" / "20").exists():
      assert run.processes[0].poll() is None
      time.sleep(0.05)
    run.processes[0].send_signal(signal.SIGTERM)
    ((status, output),) = run.finish().values()
  assert status == 75, output
  (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
  assert line.startswith("error: asked to stop: everything is saved at step ")
  assert line.endswith(f"of 100000; the same command goes on from {tmp_path}/run")
  step = int(line.split(" of 100000")[0].split()[-1])
  assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
