"""launch/slurm.sbatch at its end: whether the job goes back, where scripts play SLURM."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

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
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)
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


@pytest.mark.parametrize("status", [75, 134, 137, 143])
def test_what_was_stopped_goes_back(tmp_path, status):
  assert job(tmp_path, status, ["RUNNING"])[1] == ["show", "requeue"]


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_is_done_or_can_not_go_on_does_not(tmp_path, status):
  assert job(tmp_path, status, ["RUNNING"])[1] == []


@pytest.mark.parametrize(("found", "platforms", "status"), [(0, "", 0), (1, "", 2), (1, "cpu", 0)])
def test_gpus_without_a_jax_for_them_are_an_error(tmp_path, found, platforms, status):
  python = tmp_path / "python"
  python.write_text(
    f'#!/usr/bin/env bash\n[[ "$1" == -c && "$2" == *jax_plugins* ]]; exit {found}\n'
  )
  python.chmod(0o755)
  given = {"SLURM_GPUS_ON_NODE": "8", "PYTHON": str(python), "JAX_PLATFORMS": platforms}
  output, calls = job(tmp_path, status, [], **given)
  assert (calls, bool(output)) == ([], not status)


def test_cancelled_it_stays_so(tmp_path):
  output, calls = job(tmp_path, 75, ["CANCELLED"])
  assert calls == ["show"]
  assert output.endswith("job 7 was cancelled or preempted\n")


def test_no_answer_is_no_cancellation(tmp_path):
  assert job(tmp_path, 75, ["", "", "RUNNING"])[1] == [*["show"] * 3, "requeue"]


def test_without_any_answer_it_says_so(tmp_path):
  output, calls = job(tmp_path, 75, [""] * 100)
  assert calls == ["show"] * 6
  assert output.endswith("not requeued: SLURM did not answer\n")


def test_restarts_are_bounded(tmp_path):
  output, calls = job(tmp_path, 75, ["RUNNING"], SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
  assert calls == ["show"]
  assert output.endswith("3 times and is not requeued\n")
