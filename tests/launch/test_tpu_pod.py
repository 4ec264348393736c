"""launch/tpu_pod.sh: the commands of a dry run, and whole runs where a folder plays the cloud."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
POD = ["--name=pomp", "--zone=us-central2-b", "--type=v4-32"]
# What a config may hold, and a shell would love to run.
NASTY = [
  "--config=configs/demo.py:k=64",
  "--workdir=runs/$(touch evil1)",
  "--config.prompt.init=a 'photo' of \"a\"",
  "--config.eval.template=`touch evil2`; touch evil3 && {} | touch evil4 > evil5",
  "--config.predict.prompt=\\n\nnew line\t*",
  "--config.predict.images=--command=touch evil6",
  "",
]

# A queued resource is a file that holds its state; a worker is a folder, and ssh is bash.
_GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
state="$CLOUD/state"
case "$3 $4" in
  "queued-resources describe") [[ -e "$state" ]] && cat "$state" ;;
  "queued-resources create") [[ ! -e "$state" ]] && echo ACTIVE > "$state" ;;
  "queued-resources delete") rm "$state" ;;
  "tpu-vm scp") cp "$5" "$CLOUD/worker/${6#*:}" ;;
  "tpu-vm ssh")
    for argument; do [[ "$argument" == --command=* ]] && command="${argument#--command=}"; done
    cd "$CLOUD/worker" && bash -c "$command" ;;
  *) exit 9 ;;
esac
"""
# Python on the worker: keeps what it was given, and ends as it is told.
_PYTHON = """#!/usr/bin/env bash
[[ "$1" == -m && "$2" == pomp_jax.main ]] || exit 0
touch ran
for argument; do printf '%s\\0' "$argument"; done > arguments
echo "a line of the log"
status="$(head -n 1 "$CLOUD/statuses")"
sed -i 1d "$CLOUD/statuses"
((status != 75)) || echo SUSPENDED > "$CLOUD/state"
exit "$status"
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
  executable(tmp_path / "bin" / "gcloud", _GCLOUD)
  venv = tmp_path / "worker" / "pomp" / ".venv"
  executable(venv / "bin" / "python", _PYTHON)
  executable(venv / "bin" / "pip", "#!/usr/bin/env bash\nexit 0\n")
  (tmp_path / "statuses").write_text("0\n")
  return tmp_path


def pod(cloud, *arguments):
  return subprocess.run(
    ["bash", "launch/tpu_pod.sh", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
    env=os.environ
    | {"PATH": f"{cloud / 'bin'}:{os.environ['PATH']}", "CLOUD": str(cloud), "POLL_SECONDS": "0"},
  )


def calls(cloud):
  lines = (cloud / "calls").read_text().splitlines()
  verbs = [line.split()[3] for line in lines if line.startswith("compute tpus")]
  return [verb for verb in verbs if verb != "describe"]


def test_a_dry_run_prints_each_command_and_runs_none(cloud):
  done = pod(cloud, "--dry-run", *POD, "--spot", "--project=p", "--", *NASTY)
  assert done.returncode == 0, done.stderr
  assert not (cloud / "calls").exists()
  # What is printed reads back as commands, one after the other.
  words = shlex.split(done.stdout)
  starts = [i for i, word in enumerate(words) if word == "gcloud"] + [len(words)]
  commands = [words[a:b] for a, b in zip(starts, starts[1:], strict=False)]
  assert [command[3:5] for command in commands] == [
    ["queued-resources", "create"],
    ["tpu-vm", "scp"],
    *[["tpu-vm", "ssh"]] * 4,
    ["queued-resources", "delete"],
  ]
  assert all("--zone=us-central2-b" in command for command in commands)
  assert all("--project=p" in command for command in commands)
  create = commands[0]
  assert {"--node-id=pomp", "--accelerator-type=v4-32", "--spot"} <= set(create)
  workers = [word for command in commands for word in command if word.startswith("--worker=")]
  assert workers == ["--worker=all"] * 4 + ["--worker=0"]


def test_arguments_arrive_as_they_are(cloud):
  done = pod(cloud, *POD, "--", *NASTY)
  assert done.returncode == 0, done.stderr
  assert "a line of the log" in done.stdout
  worker = cloud / "worker" / "pomp"
  found = (worker / "arguments").read_bytes().decode().split("\0")[:-1]
  assert found == ["-m", "pomp_jax.main", *NASTY]
  assert (worker / "pomp_jax" / "main.py").exists()
  assert not list(cloud.rglob("evil*"))
  assert not (ROOT / "evil1").exists()
  assert calls(cloud) == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]


def test_what_was_there_before_is_used_and_stays(cloud):
  (cloud / "state").write_text("ACTIVE\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert (cloud / "state").read_text() == "ACTIVE\n"
  assert "create" not in calls(cloud) and "delete" not in calls(cloud)
  (cloud / "state").write_text("SUSPENDED\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stderr) == (
    2,
    "error: pomp is SUSPENDED and was not made here; delete it\n",
  )
  assert (cloud / "state").exists()


def test_preempted_it_starts_again_on_new_machines(cloud):
  (cloud / "statuses").write_text("75\n0\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert [call for call in calls(cloud) if call not in ("ssh", "scp")] == [
    *["create", "delete"] * 2
  ]
  assert (cloud / "statuses").read_text() == ""


def test_machines_that_never_come_are_not_waited_for(cloud):
  executable(cloud / "bin" / "gcloud", _GCLOUD.replace("echo ACTIVE", "echo FAILED"))
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stderr) == (2, "error: pomp is FAILED, and gets no machines\n")
  assert calls(cloud) == ["create", "delete"]


def test_bad_input_is_not_tried_again_and_keep_keeps(cloud):
  (cloud / "statuses").write_text("2\n")
  done = pod(cloud, *POD, "--keep", "--", "--config=x")
  assert done.returncode == 2
  assert calls(cloud).count("create") == 1
  assert (cloud / "state").read_text() == "ACTIVE\n"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--name=$(touch evil)", *POD[1:], "--", "x"], "--name: got '$(touch evil)'"),
    ([*POD[:2], "--", "x"], "--type: got ''"),
    ([*POD, "--config=x"], "--config=x: unknown option; the run's own arguments stand behind --"),
    (POD, "nothing behind --"),
  ],
)
def test_a_wrong_command_line(cloud, arguments, message):
  done = pod(cloud, *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert not (cloud / "calls").exists()
