"""launch/tpu_pod.sh: the commands of a dry run, and whole runs where a folder plays the cloud."""

import fcntl
import os
import shlex
import signal
import threading
import time
from typing import NamedTuple

import pytest

from tests.support.fake_gcloud import (
  ROOT,
  calls,
  executable,
  make_cloud,
  pod,
  release,
  start,
  wait_for,
)

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
  release(tmp_path)


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
    ["tpu-vm", "ssh"],
    ["tpu-vm", "scp"],
    *[["tpu-vm", "ssh"]] * 4,
    ["queued-resources", "delete"],
  ]
  assert all("--zone=us-central2-b" in command for command in commands)
  assert all("--project=p" in command for command in commands)
  create = commands[0]
  assert {"--node-id=pomp", "--accelerator-type=v4-32", "--spot"} <= set(create)
  workers = [word for command in commands for word in command if word.startswith("--worker=")]
  assert workers == ["--worker=0", *["--worker=all"] * 4, "--worker=0"]


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
  assert calls(cloud) == ["create", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]


def runs(cloud):
  """Number of times that the program was started on the worker."""
  ran = cloud / "worker" / "pomp" / "ran"
  return ran.read_text().count("run") if ran.exists() else 0


class Case(NamedTuple):
  """A whole run of the launcher.

  Attributes:
    files: answers of the cloud: name of a file -> its lines, separated by blanks.
    status: exit status of the launcher.
    runs: number of starts of the program.
    machines: first letters of the calls that create and delete them, and k if they are kept.
    says: part of standard error.
    more: a further option.
  """

  files: dict[str, str]
  status: int = 0
  runs: int = 1
  machines: str = "cd"
  says: str = ""
  more: str = "--mount=true"


CASES = {
  "existing machines are used and kept": Case({"state": "ACTIVE"}, machines="k"),
  "but for those without machines": Case(
    {"state": "SUSPENDED"}, 2, 0, "k", "error: pomp is SUSPENDED and was not made here; delete it\n"
  ),
  "machines that fail to start end it": Case(
    {"created": "FAILED"}, 1, 0, "cd", "error: pomp is FAILED, and gets no machines\n"
  ),
  "an outage, and another when the connection breaks, are waited for": Case(
    {"statuses": "75 0", "healthy": "", "broken": "255", "outages": "down down"},
    runs=2,
    says="the network is down",
  ),
  "machines of unknown state are kept": Case(
    {"state": "ACTIVE", "outages": "down " * 1000}, 75, 0, "k", "the state of pomp is unknown"
  ),
  "a preempted run restarts on new machines": Case({"statuses": "75 0"}, 0, 2, "cdcd"),
  "a killed run restarts on the same machines": Case({"statuses": "134 137 143 0"}, 0, 4),
  "a failed run is not restarted": Case({"statuses": "1 0"}, 1),
  "an interrupted run is not restarted": Case({"statuses": "130 0"}, 130),
  # 255 is ssh's status; 1 is gcloud's, which can't find the machine.
  "a broken connection is retried": Case({"broken": "255 1 255", "statuses": "2"}, 2),
  "bad input is not tried again, and --keep keeps": Case(
    {"statuses": "2"}, 2, machines="ck", more="--keep"
  ),
  "a failed create call is followed by a deletion": Case(
    {"refused": "none-left"}, 1, 0, "cd", "none-left\nerror: pomp was not made\n"
  ),
  "machines of somebody else are kept": Case({"refused": "ERROR: ALREADY_EXISTS"}, 1, 0, "ck"),
  "a deletion is retried": Case({"statuses": "2", "undeleted": "1 1"}, 2, 1, "cddd"),
  "a deletion that fails is reported": Case(
    {"statuses": "130", "undeleted": "1 " * 1000},
    status=130,
    machines="cdddddk",
    says="error: pomp may still be there; delete it\n",
  ),
  "a failed deletion is retried at the end": Case(
    {"statuses": "75", "undeleted": "1 " * 5},
    status=1,
    machines="cdddddd",
    says="error: pomp is SUSPENDED and can't be deleted\n",
  ),
  "a connection that breaks during the start is retried": Case(
    {"broken scp": "1", "broken unpack": "255", "broken install": "2", "broken start": "1"}
  ),
  "a mount is any command": Case({}, more="--mount=touch mounted;"),
  "also one with a comment": Case({}, more="--mount=touch mounted # as always"),
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


@pytest.mark.parametrize(("mount", "pip"), [("true", 1), ("false;", 0), ("exit 1", 0)])
def test_what_fails_on_a_worker_ends_it(cloud, mount, pip):
  """The installation, or the mount before it."""
  venv = cloud / "worker" / "pomp" / ".venv"
  executable(venv / "bin" / "pip", f"#!/usr/bin/env bash\nexit {pip}\n")
  assert pod(cloud, *POD, f"--mount={mount}", "--", "--config=x").returncode == 4
  assert calls(cloud).count("scp") == 1 and runs(cloud) == 0
  assert not (cloud / "state").exists()


def test_the_wait_for_an_unreachable_worker_ends(cloud):
  # From the start: no run is on it.
  (cloud / "unreachable").touch()
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stderr) == (75, "error: worker 0 of pomp can't be reached\n")
  assert calls(cloud) == ["create", *["ssh"] * 20, "delete"]
  # Once it is followed: the run may continue.
  (cloud / "unreachable").unlink()
  (cloud / "soon unreachable").touch()
  (cloud / "broken").write_text("255\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 75
  assert "worker 0 of pomp can't be reached" in done.stderr.splitlines()[-1]
  assert (cloud / "state").read_text() == "ACTIVE\n"


def test_a_kept_run_is_followed_again_and_not_started_twice(cloud):
  (cloud / "hold").touch()
  first = start(cloud, *POD, "--keep", "--", "--config=x", "--workdir=a b")
  ran = cloud / "worker" / "pomp" / "ran"
  wait_for(ran.exists)
  os.killpg(first.pid, signal.SIGINT)
  assert first.wait(300) == 130
  assert (cloud / "state").read_text() == "ACTIVE\n"

  other = pod(cloud, *POD, "--", "--config=y")
  assert (other.returncode, other.stderr) == (
    2,
    "error: pomp is busy with another run; stop that first\n",
  )
  again = start(cloud, *POD, "--", "--config=x", "--workdir=a b")
  assert again.stdout.readline() == "a line of the log\n"
  (cloud / "hold").unlink()
  assert again.wait(300) == 0
  assert runs(cloud) == 1


def test_a_restart_waits_for_all_processes_of_the_last_run(cloud):
  """Another worker's, here: after a status that asks for another start its lock is still held."""
  (cloud / "statuses").write_text("75\n0\n")
  (cloud / "healthy").touch()
  (cloud / "hold").touch()
  launcher = start(cloud, *POD, "--", "--config=x")
  worker = cloud / "worker" / "pomp"
  wait_for((worker / "ran").exists)
  with open(worker / "lock", "a") as lock:
    # Waits its turn behind the first run, which ends meanwhile, before the second.
    threading.Timer(0.5, (cloud / "hold").unlink).start()
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert (cloud / "statuses").read_text() == "0\n"
    time.sleep(2)
    assert runs(cloud) == 1
  assert launcher.wait(300) == 0
  assert runs(cloud) == 2


def test_an_interrupted_create_is_deleted(cloud):
  (cloud / "slow create").touch()
  launcher = start(cloud, *POD, "--", "--config=x")
  wait_for((cloud / "state").exists)
  os.killpg(launcher.pid, signal.SIGTERM)
  assert launcher.wait(300) == 130
  assert not (cloud / "state").exists()


def test_further_interrupts_do_not_stop_the_deletion(cloud):
  (cloud / "hold").touch()
  (cloud / "slow delete").touch()
  launcher = start(cloud, *POD, "--", "--config=x")
  wait_for((cloud / "worker" / "pomp" / "ran").exists)
  os.killpg(launcher.pid, signal.SIGINT)
  wait_for(lambda: "delete" in calls(cloud))
  for number in (signal.SIGINT, signal.SIGTERM):
    os.killpg(launcher.pid, number)
  (cloud / "slow delete").unlink()
  assert launcher.wait(300) == 130
  assert calls(cloud).count("delete") == 1
  assert not (cloud / "state").exists()
  (cloud / "hold").unlink()


@pytest.mark.slow("a hundred retries; a few are in CASES")
def test_it_ends_without_any_connection(cloud):
  (cloud / "broken scp").write_text("1\n" * 1000)
  executable(cloud / "bin" / "sleep", "#!/usr/bin/env bash\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 255
  assert calls(cloud).count("scp") == 100
  assert not (cloud / "state").exists()


def test_locked_package_lists_are_retried(cloud):
  """The updates of a new machine: apt-get ends at once, whatever time-out it is given."""
  venv = cloud / "worker" / "pomp" / ".venv"
  (cloud / "busy").write_text("busy\nbusy\n")
  # No Python is new enough before apt-get has brought one.
  for name in ("python3", "python3.13", "python3.12"):
    executable(cloud / "bin" / name, "#!/usr/bin/env bash\nexit 1\n")
  executable(cloud / "bin" / "python3.11", '#!/usr/bin/env bash\n[[ -e "$CLOUD/installed" ]]\n')
  executable(cloud / "bin" / "sudo", '#!/usr/bin/env bash\nexec "$@"\n')
  executable(
    cloud / "bin" / "apt-get",
    """#!/usr/bin/env bash
if [[ "$*" == *install* ]]; then touch "$CLOUD/installed"; fi
[[ "$*" != *update* || ! -s "$CLOUD/busy" ]] || { sed -i 1d "$CLOUD/busy"; exit 100; }
""",
  )
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert (cloud / "installed").exists() and (venv / "installed-requirements.txt").exists()
  assert runs(cloud) == 1


def test_a_lock_that_is_never_released_ends_it(cloud):
  executable(
    cloud / "bin" / "flock",
    '#!/usr/bin/env bash\nexec /usr/bin/flock "${@/--timeout=600/--timeout=0}"\n',
  )
  with open(cloud / "worker" / "pomp" / "lock", "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert pod(cloud, *POD, "--", "--config=x").returncode == 3
  assert not (cloud / "worker" / "pomp" / "ran").exists()


def test_a_workdir_that_dies_with_the_machines_is_an_error(cloud):
  for more in ([], ["--dry-run"], ["--spot"]):
    done = pod(cloud, *_MACHINES, *more, "--", "--config=x", "--workdir=runs/a")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --workdir: got 'runs/a', which is deleted with the machines")
  assert not (cloud / "calls").exists()
  # Those that are kept keep them.
  assert pod(cloud, *_MACHINES, "--keep", "--", "--config=x", "--workdir=a").returncode == 0
  assert (cloud / "state").read_text() == "ACTIVE\n"


@pytest.mark.parametrize(
  ("workdir", "package"), [("gs://bucket/a", "gcsfs"), ("s3://bucket/a", "s3fs")]
)
def test_a_bucket_outlives_the_machines(cloud, workdir, package):
  done = pod(cloud, *_MACHINES, "--", "--config=x", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert (cloud / "packages").read_text() == f"install -q jax[tpu] {package}\n"
  assert not (cloud / "state").exists()


def fetching(cloud, *arguments, workdir="runs/a 'b'"):
  (cloud / "leaves").touch()
  copied = [f"--fetch={cloud}/results", "--", "--config=x", f"--workdir={workdir}"]
  return [*_MACHINES, *arguments, *copied]


def test_results_are_copied_before_the_machines_are_deleted(cloud):
  """New machines resume from the copy: after a preemption, and by the same command."""
  (cloud / "statuses").write_text("75\n137\n0\n1\n")
  for n_runs, n_created, status in ((3, 2, 0), (4, 3, 1)):
    done = pod(cloud, *fetching(cloud))
    assert done.returncode == status, done.stderr
    assert sorted(path.name for path in (cloud / "results").iterdir()) == ["plots", "steps"]
    assert (cloud / "results" / "steps").read_text() == "run\n" * n_runs
    assert calls(cloud).count("create") == calls(cloud).count("delete") == n_created
    assert not (cloud / "state").exists()


def test_results_that_can_not_be_copied_keep_the_machines(cloud):
  (cloud / "broken copy").write_text("1\n" * 2)
  done = pod(cloud, *fetching(cloud))
  assert done.returncode == 75
  assert done.stderr.splitlines()[-1] == (
    f"error: --workdir can't be copied to {cloud}/results; pomp is kept"
  )
  assert (cloud / "state").exists() and not (cloud / "results").exists()
  # A failed copy is retried at the end.
  (cloud / "statuses").write_text("0\n")
  (cloud / "broken copy").write_text("1\n")
  assert pod(cloud, *fetching(cloud)).returncode == 0
  assert (cloud / "results" / "steps").read_text() == "run\n" * 2


def test_a_run_that_leaves_nothing_has_nothing_to_copy(cloud):
  (cloud / "statuses").write_text("2\n")
  arguments = fetching(cloud)
  (cloud / "leaves").unlink()
  done = pod(cloud, *arguments)
  assert (done.returncode, done.stderr.count("error: ")) == (2, 0)
  assert not (cloud / "state").exists() and not (cloud / "results").exists()


@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_run_is_copied_if_its_machines_are_deleted(cloud, keep):
  (cloud / "hold").touch()
  launcher = start(cloud, *fetching(cloud, *(["--keep"] if keep else [])))
  wait_for((cloud / "worker" / "pomp" / "ran").exists)
  wait_for(lambda: "tpu_worker.sh follow" in (cloud / "calls").read_text())
  os.killpg(launcher.pid, signal.SIGINT)
  assert launcher.wait(300) == 130
  assert (cloud / "results" / "steps").exists() == (not keep)
  assert (cloud / "state").exists() == keep


@pytest.mark.parametrize(
  ("options", "runtime"),
  [
    (["--type=v4-32"], "tpu-ubuntu2204-base"),
    (["--type=v5litepod-16"], "v2-alpha-tpuv5-lite"),
    (["--type=v5p-8"], "v2-alpha-tpuv5"),
    (["--type=v6e-16"], "v2-alpha-tpuv6e"),
    (["--type=v6e-16", "--runtime=other"], "other"),
  ],
)
def test_the_runtime_is_that_of_the_type(cloud, options, runtime):
  done = pod(cloud, *POD[:2], *options, "--mount=true", "--dry-run", "--", "--config=x")
  assert f" --runtime-version={runtime} " in done.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--name=$(touch evil)", *POD[1:], "--", "x"], "--name: got '$(touch evil)'"),
    ([*POD[:2], "--mount=true", "--", "x"], "--type: got ''"),
    ([*POD[:2], "--type=v9-8", "--mount=true", "--", "x"], "--type: got 'v9-8'"),
    ([*POD, "--fetch=a", "--", "--workdir=gs://b/c"], "--fetch: got 'a'"),
    ([*POD, "--fetch=a", "--", "--config=x"], "--workdir: nothing given"),
    ([*_MACHINES, "--", "--workdir", "runs/a"], "--workdir: got 'runs/a'"),
    ([*POD, "--config=x"], "--config=x: unknown option; the run's own arguments follow --"),
    (POD, "nothing behind --"),
  ],
)
def test_a_wrong_command_line(cloud, arguments, message):
  done = pod(cloud, *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert not (cloud / "calls").exists()
