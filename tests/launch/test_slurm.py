"""launch/slurm.sbatch under a real SLURM: two tasks, preempted half-way and requeued.

Debian: apt-get install slurm-wlm munge
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pomp_jax.files.prompt_file import load_prompt
from tests.support.processes import Processes, environment, wait_until

ROOT = pathlib.Path(__file__).parent.parent.parent
_MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
pytestmark = [
  pytest.mark.slow("a cluster of SLURM; test_requeue.py has scripts in its place"),
  pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
  pytest.mark.skipif(bool(_MISSING), reason=f"no SLURM: {', '.join(_MISSING)} not installed"),
]

STEPS, EVERY = 200, 40
_FIELDS = {"data.n_classes": 300, "k": 20, "batch_size": 16, "eval.images": 64}
_FIELDS |= {"steps": STEPS, "checkpoint.every": EVERY}


def arguments(workdir):
  """The demo, shorter."""
  fields = [f"--config.{name}={value}" for name, value in _FIELDS.items()]
  return ["--config=configs/demo.py", f"--workdir={workdir}", *fields]


@pytest.fixture
def slurm():
  """Runs SLURM's commands in a cluster of this machine; gone afterwards."""
  script = pathlib.Path(__file__).parent / "slurm_here.sh"
  server = subprocess.Popen(
    ["bash", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  folder = pathlib.Path(server.stdout.readline().strip())
  assert folder.name, "no SLURM: see what slurm_here.sh says"
  environ = environment(1, SLURM_CONF=str(folder / "slurm.conf"), PYTHON=sys.executable)

  def run(*command):
    return subprocess.run(
      command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    ).stdout.strip()

  yield run
  server.stdin.close()
  assert server.wait(300) == 0
  assert not folder.exists()


def test_preempted_and_requeued_it_ends_as_if_it_had_never_stopped(slurm, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "job.log"
  job = slurm(
    *("sbatch", "--parsable", "--partition=low", "--nodes=1", "--ntasks-per-node=2"),
    *(f"--output={log}", "launch/slurm.sbatch", *arguments(workdir)),
  )

  def state():
    return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))[1]

  # Something is saved, and it is not over.
  wait_until(lambda: (workdir / "checkpoints" / str(EVERY)).exists() or state() == "FAILED")
  slurm("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
  wait_until(lambda: state() in ("COMPLETED", "FAILED"))
  text = log.read_text()
  assert state() == "COMPLETED", text[-3000:]
  assert f"job {job} on localhost, restart 0" in text
  assert f"job {job} on localhost, restart 1" in text
  assert "process 1 of 2 on" in text
  (resumed,) = re.findall(r"resuming from the checkpoint of step (\d+)", text)
  assert EVERY <= int(resumed) < STEPS

  with Processes(2, ["-m", "pomp_jax.main", *arguments(tmp_path / "whole")]) as processes:
    processes.succeed()
  contexts = [
    load_prompt(folder / "prompt.npz").context for folder in (workdir, tmp_path / "whole")
  ]
  np.testing.assert_array_equal(*contexts)
