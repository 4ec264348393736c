"""launch/slurm.sbatch: whether the job goes back at its end, and preempted under a
real SLURM."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pomp_jax.files.prompt_file import load_prompt
from tests.support.fake_gcloud import executable
from tests.support.processes import ROOT, Processes, environment, small_demo, wait_until

_COMMANDS = {
  "srun": 'exit "$STATUS"',
  "sleep": "exit 0",
  # Answers with the next line of a file; an empty one is an error.
  "scontrol": """
echo "$1" >> "$CLUSTER/calls"
[[ "$1" == show ]] || exit 0
answer="$(head -n 1 "$CLUSTER/answers")"
sed -i 1d "$CLUSTER/answers"
[[ -n "$answer" ]] || { echo "slurm_load_jobs error: Unable to contact slurm controller"; exit 1; }
echo "JobId=7 JobName=pomp JobState=$answer Reason=None"
""",
}


def ended(folder, status, answers, **variables):
  """The script's status and output, and what it had of scontrol."""
  for name, text in _COMMANDS.items():
    executable(folder / name, f"#!/usr/bin/env bash\n{text}\n")
  (folder / "answers").write_text("".join(f"{answer}\n" for answer in answers))
  (folder / "calls").touch()
  path = f"{folder}:{os.environ['PATH']}"
  environ = {"PATH": path, "CLUSTER": str(folder), "STATUS": str(status)}
  environ |= {
    "SLURM_SUBMIT_DIR": str(folder),
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "here",
  }
  command = ["bash", "launch/slurm.sbatch", "--config=x"]
  options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
  done = subprocess.run(command, cwd=ROOT, env=environ | variables, **options)
  assert done.returncode == status
  return done.stdout, (folder / "calls").read_text().split()


_RESTARTED = {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}


# Answers of SLURM, lines; what is called; and how the output ends.
@pytest.mark.parametrize(
  ("status", "answers", "variables", "calls", "says"),
  [
    # What was stopped goes back; what is done or can't resume does not.
    *[
      (status, ["RUNNING"], {}, ["show", "requeue"], "")
      for status in (75, 134, 137, 143)
    ],
    *[(status, ["RUNNING"], {}, [], "") for status in (0, 1, 2, 130)],
    (75, ["CANCELLED"], {}, ["show"], "job 7 was cancelled or preempted\n"),
    # No answer is no cancellation.
    (75, ["", "", "RUNNING"], {}, [*["show"] * 3, "requeue"], ""),
    (75, [""] * 100, {}, ["show"] * 6, "not requeued: SLURM did not answer\n"),
    (75, ["RUNNING"], _RESTARTED, ["show"], "3 times and is not requeued\n"),
  ],
)
def test_whether_it_goes_back(tmp_path, status, answers, variables, calls, says):
  output, found = ended(tmp_path, status, answers, **variables)
  assert found == calls
  assert output.endswith(says)


_MISSING = [
  name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)
]
STEPS, EVERY = 200, 40
DEMO = small_demo(**{"steps": STEPS, "checkpoint.every": EVERY})


@pytest.fixture
def slurm():
  """Runs SLURM's commands in a cluster of this machine (apt-get install slurm-wlm
  munge)."""
  script = pathlib.Path(__file__).parent / "slurm_here.sh"
  server = subprocess.Popen(
    ["bash", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  folder = pathlib.Path(server.stdout.readline().strip())
  assert folder.name, "no SLURM: see what slurm_here.sh says"
  environ = environment(1, SLURM_CONF=str(folder / "slurm.conf"), PYTHON=sys.executable)

  def run(*command):
    return subprocess.check_output(command, cwd=ROOT, env=environ, text=True).strip()

  yield run
  server.stdin.close()
  assert server.wait(300) == 0
  assert not folder.exists()


@pytest.mark.slow("a cluster of SLURM; above, scripts are in its place")
@pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root")
@pytest.mark.skipif(
  bool(_MISSING), reason=f"no SLURM: {', '.join(_MISSING)} not installed"
)
def test_preempted_and_requeued_it_ends_as_if_it_had_never_stopped(slurm, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "job.log"
  job = slurm(
    *("sbatch", "--parsable", "--partition=low", "--nodes=1", "--ntasks-per-node=2"),
    *(f"--output={log}", "launch/slurm.sbatch", f"--workdir={workdir}", *DEMO),
  )

  def state():
    return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))[1]

  # Something is saved, and it is not over.
  wait_until(
    lambda: (workdir / "checkpoints" / str(EVERY)).exists() or state() == "FAILED"
  )
  slurm(
    "sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
  )
  wait_until(lambda: state() in ("COMPLETED", "FAILED"))
  text = log.read_text()
  assert state() == "COMPLETED", text[-3000:]
  assert f"job {job} on localhost, restart 0" in text
  assert f"job {job} on localhost, restart 1" in text
  assert "process 1 of 2 on" in text
  (resumed,) = re.findall(r"resuming from the checkpoint of step (\d+)", text)
  assert EVERY <= int(resumed) < STEPS

  whole = tmp_path / "whole"
  with Processes(2, ["-m", "pomp_jax.main", f"--workdir={whole}", *DEMO]) as processes:
    processes.succeed()
  contexts = [load_prompt(folder).context for folder in (workdir, whole)]
  np.testing.assert_array_equal(*contexts)
