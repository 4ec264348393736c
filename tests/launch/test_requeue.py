"""launch/slurm.sbatch at its end: whether the job goes back, where scripts play SLURM."""

import os
import subprocess

import pytest

from tests.support.fake_gcloud import executable
from tests.support.processes import ROOT

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


def job(folder, status, answers, **variables):
  """The script's status and output, and what it had of scontrol."""
  for name, text in _COMMANDS.items():
    executable(folder / name, f"#!/usr/bin/env bash\n{text}\n")
  (folder / "answers").write_text("".join(f"{answer}\n" for answer in answers))
  (folder / "calls").touch()
  environ = {
    "PATH": f"{folder}:{os.environ['PATH']}",
    "CLUSTER": str(folder),
    "STATUS": str(status),
    "SLURM_SUBMIT_DIR": str(folder),
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "here",
  }
  done = subprocess.run(
    ["bash", "launch/slurm.sbatch", "--config=x"],
    cwd=ROOT,
    env=environ | variables,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == status
  return done.stdout, (folder / "calls").read_text().split()


_RESTARTED = {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}


# Answers of SLURM, lines; what is called; and how the output ends.
@pytest.mark.parametrize(
  ("status", "answers", "variables", "calls", "says"),
  [
    # What was stopped goes back; what is done or can't resume does not.
    *[(status, ["RUNNING"], {}, ["show", "requeue"], "") for status in (75, 134, 137, 143)],
    *[(status, ["RUNNING"], {}, [], "") for status in (0, 1, 2, 130)],
    (75, ["CANCELLED"], {}, ["show"], "job 7 was cancelled or preempted\n"),
    # No answer is no cancellation.
    (75, ["", "", "RUNNING"], {}, [*["show"] * 3, "requeue"], ""),
    (75, [""] * 100, {}, ["show"] * 6, "not requeued: SLURM did not answer\n"),
    (75, ["RUNNING"], _RESTARTED, ["show"], "3 times and is not requeued\n"),
  ],
)
def test_whether_it_goes_back(tmp_path, status, answers, variables, calls, says):
  output, found = job(tmp_path, status, answers, **variables)
  assert found == calls
  assert output.endswith(says)
