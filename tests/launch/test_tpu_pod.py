"""launch/tpu_pod.sh: the commands of a dry run, and whole runs where a folder plays
the cloud."""

import os
import re
import shlex
import signal
from typing import NamedTuple

import pytest

from tests.support.fake_gcloud import calls, make_cloud, pod, start
from tests.support.processes import ROOT

_MACHINES = ["--name=pomp", "--zone=us-central2-b", "--type=v4-32"]
POD = [*_MACHINES, "--mount=true"]
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


@pytest.fixture
def cloud(tmp_path):
  make_cloud(tmp_path)
  yield tmp_path
  (tmp_path / "hold").unlink(missing_ok=True)


def test_a_dry_run_prints_each_command_and_runs_none(cloud):
  done = pod(cloud, "--dry-run", *POD, "--spot", "--project=p", "--", *NASTY)
  assert done.returncode == 0, done.stderr
  assert not (cloud / "calls").exists()
  # What is printed reads back as commands, one after the other.
  words = shlex.split(done.stdout)
  starts = [i for i, word in enumerate(words) if word == "gcloud"] + [len(words)]
  commands = [words[a:b] for a, b in zip(starts, starts[1:], strict=False)]
  verbs = [command[4] for command in commands]
  assert verbs == ["create", "ssh", "scp", *["ssh"] * 3, "delete"]
  assert all("--zone=us-central2-b" in command for command in commands)
  assert all("--project=p" in command for command in commands)
  assert {"--node-id=pomp", "--accelerator-type=v4-32", "--spot"} <= set(commands[0])


def test_arguments_arrive_as_they_are(cloud):
  done = pod(cloud, *POD, "--", *NASTY)
  assert done.returncode == 0, done.stderr
  assert "a line of the log" in done.stdout
  worker = cloud / "worker" / "pomp"
  found = (worker / "arguments").read_bytes().decode().split("\0")[:-1]
  assert found == ["-m", "pomp_jax.main", *NASTY]
  assert not list(cloud.rglob("evil*"))
  assert not (ROOT / "evil1").exists()
  assert calls(cloud) == ["create", "ssh", "scp", "ssh", "ssh", "ssh", "delete"]


def runs(cloud):
  """Number of times that the program was started on the worker."""
  ran = cloud / "worker" / "pomp" / "ran"
  return ran.read_text().count("run") if ran.exists() else 0


class Case(NamedTuple):
  """A whole run of the launcher."""

  # answers of the cloud: name of a file -> its lines, separated by blanks
  files: dict[str, str]
  status: int = 0
  runs: int = 1  # starts of the program
  # first letters of the calls that create and delete them; k: kept
  machines: str = "cd"
  says: str = ""  # on standard error
  more: str = "--mount=true"


CASES = {
  "an outage, and another when the connection breaks, are waited for": Case(
    {"statuses": "75 0", "healthy": "", "broken": "255", "outages": "down down"},
    runs=2,
    says="the network is down",
  ),
  "existing machines are waited for, used and kept": Case(
    {"waits": "WAITING_FOR_RESOURCES - PROVISIONING", "state": "ACTIVE"},
    machines="k",
    says="pomp is WAITING_FOR_RESOURCES",
  ),
  "a preempted run restarts on new machines": Case({"statuses": "75 0"}, 0, 2, "cdcd"),
  "a failed run is not restarted": Case({"statuses": "1 0"}, 1),
  # 255 is ssh's status; 1 is gcloud's, which can't find the machine.
  "a broken connection is retried": Case({"broken": "255 1 255", "statuses": "2"}, 2),
  "bad input is not tried again, and --keep keeps": Case(
    {"statuses": "2"}, 2, machines="ck", more="--keep"
  ),
  "a deletion that fails is reported": Case(
    {"statuses": "130", "undeleted": "1 " * 1000},
    status=130,
    machines="c" + "d" * 20 + "k",
    says="error: pomp may still be there; delete it\n",
  ),
  "a connection that breaks during the start is retried": Case(
    {"broken scp": "1", "broken start": "1"}
  ),
  "an answer that gets lost may have created it": Case(
    {"refused": "network"}, 1, 0, "cd", "error: pomp was not made: network"
  ),
  "what somebody else created is kept": Case(
    {"refused": "ALREADY_EXISTS"}, 1, 0, "ck", "error: pomp was not made"
  ),
  "what gets no machines is deleted": Case(
    {"created": "FAILED"}, 1, 0, "cd", "error: pomp is FAILED and gets no machines\n"
  ),
  "what was not made here and has none is kept": Case(
    {"state": "SUSPENDED"},
    2,
    0,
    "k",
    "error: pomp is SUSPENDED and was not made here; delete it\n",
  ),
  "nothing is deleted whose state is unknown": Case(
    {"statuses": "75", "healthy": "", "later outages": "down " * 20},
    status=75,
    machines="ck",
    says="error: the state of pomp is unknown; nothing is deleted\n",
  ),
  "a worker that is never reached may run": Case(
    {"broken": "255 " * 100}, 75, 1, "ck", "error: gave up after 100 attempts"
  ),
  "a mount that fails ends it": Case({}, 4, 0, more="--mount=false;"),
  "a mount is any command": Case({}, more="--mount=touch mounted;"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run(cloud, name):
  case = CASES[name]
  for file, lines in case.files.items():
    (cloud / file).write_text("\n".join(lines.split()) + "\n")
  done = pod(cloud, *POD, case.more, "--", "--config=x")
  assert done.returncode == case.status, done.stderr
  assert case.says in done.stderr
  assert runs(cloud) == case.runs
  machines = "".join(call[0] for call in calls(cloud) if call in ("create", "delete"))
  assert machines + "k" * (cloud / "state").exists() == case.machines
  assert not any(file.read_text() for file in cloud.glob("broken*"))
  assert (cloud / "worker" / "mounted").exists() == ("mounted" in case.more)


@pytest.mark.parametrize(
  "error", ["PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT"]
)
def test_what_the_cloud_refuses_is_not_asked_again(cloud, error):
  (cloud / "denied").write_text(
    f"ERROR: (gcloud.compute.tpus) {error}: no tpu.nodes.get\n"
  )
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 2 and error in done.stderr
  assert done.stderr.count("\n") == 2  # the cloud's line and ours
  assert len((cloud / "calls").read_text().splitlines()) == 1


def test_what_it_waits_for_is_a_line(cloud):
  """And since when, once until it changes."""
  states = [
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
  ]
  (cloud / "waits").write_text("\n".join(states) + "\n")
  (cloud / "state").write_text("ACTIVE\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  lines = re.findall(
    r"\d\d:\d\d:\d\d  waiting since \d\d:\d\d:\d\d: pomp is (\w+)", done.stderr
  )
  assert lines == ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]


def test_a_kept_run_is_followed_again_and_not_started_twice(cloud):
  (cloud / "hold").touch()
  first = start(cloud, *POD, "--keep", "--", "--config=x", "--workdir=a b")
  # Its log on this side means that ssh is waited for. Any earlier, bash may be between
  # its fork and its exec, where a process forgets a signal.
  assert "a line of the log\n" in first.stdout
  os.killpg(first.pid, signal.SIGINT)
  assert first.wait(300) == 130
  assert (cloud / "state").read_text() == "ACTIVE\n"

  other = pod(cloud, *POD, "--", "--config=y")
  assert other.returncode == 2
  assert other.stderr == "error: pomp is busy with another run; stop that first\n"
  again = start(cloud, *POD, "--", "--config=x", "--workdir=a b")
  assert again.stdout.readline() == "a line of the log\n"
  (cloud / "hold").unlink()
  assert again.wait(300) == 0
  assert runs(cloud) == 1


def test_a_machine_without_gcloud(cloud):
  (cloud / "bin" / "gcloud").unlink()
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert done.stderr.startswith("error: no gcloud on this machine")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--name=$(touch evil)", *POD[1:], "--", "x"], "--name: got '$(touch evil)'"),
    ([*POD[:2], "--type=v9-8", "--mount=true", "--", "x"], "--type: got 'v9-8'"),
    ([*POD, "--fetch=a", "--", "--config=x"], "--fetch=a: unknown option"),
    (
      [*_MACHINES, "--", "--config=gs://a", "--workdir", "runs/a"],
      "--workdir: is deleted",
    ),
    (POD, "nothing behind --"),
  ],
)
def test_a_wrong_command_line(cloud, arguments, message):
  done = pod(cloud, *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert not (cloud / "calls").exists()
