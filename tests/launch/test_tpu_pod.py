"""launch/tpu_pod.sh: the commands of a dry run, and whole runs where a folder plays the cloud."""

import fcntl
import os
import shlex
import signal
import threading
import time

import pytest

from tests.support.fake_gcloud import (
  GCLOUD,
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


def test_existing_machines_are_used_and_kept(cloud):
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


def test_a_preempted_run_restarts_on_new_machines(cloud):
  (cloud / "statuses").write_text("75\n0\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert [call for call in calls(cloud) if call not in ("ssh", "scp")] == [
    *["create", "delete"] * 2
  ]
  assert (cloud / "statuses").read_text() == ""


def runs(cloud):
  return (cloud / "worker" / "pomp" / "ran").read_text().count("run")


def test_a_killed_run_restarts_on_the_same_machines(cloud):
  (cloud / "statuses").write_text("134\n137\n143\n0\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert runs(cloud) == 4
  assert calls(cloud).count("create") == 1


@pytest.mark.parametrize("status", [1, 130])
def test_a_failed_run_is_not_restarted(cloud, status):
  (cloud / "statuses").write_text(f"{status}\n0\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == status
  assert runs(cloud) == 1
  assert not (cloud / "state").exists()


def test_a_broken_connection_is_retried(cloud):
  """255 is ssh's status; 1 is gcloud's, which can't find the machine."""
  (cloud / "broken").write_text("255\n1\n255\n")
  (cloud / "statuses").write_text("2\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 2
  assert runs(cloud) == 1


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


def test_machines_of_unknown_state_are_kept(cloud):
  (cloud / "statuses").write_text("75\n0\n")
  (cloud / "healthy").touch()
  (cloud / "broken").write_text("255\n")
  # One outage before anything is made, one when the connection broke, and then for good.
  (cloud / "outages").write_text("down\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert "the network is down" in done.stderr
  assert (calls(cloud).count("create"), calls(cloud).count("delete"), runs(cloud)) == (1, 1, 2)

  (cloud / "outages").write_text("down\n" * 1000)
  (cloud / "state").write_text("ACTIVE\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 75
  assert "the state of pomp is unknown" in done.stderr.splitlines()[-1]
  assert (cloud / "state").exists()


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


def test_machines_that_fail_to_start_end_it(cloud):
  executable(cloud / "bin" / "gcloud", GCLOUD.replace("echo ACTIVE", "echo FAILED"))
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stderr) == (1, "error: pomp is FAILED, and gets no machines\n")
  assert calls(cloud) == ["create", "delete"]


def test_an_interrupted_create_is_deleted(cloud):
  (cloud / "slow create").touch()
  launcher = start(cloud, *POD, "--", "--config=x")
  wait_for((cloud / "state").exists)
  os.killpg(launcher.pid, signal.SIGTERM)
  assert launcher.wait(300) == 130
  assert not (cloud / "state").exists()


def test_machines_are_deleted_when_the_create_call_failed(cloud):
  (cloud / "refused").write_text("ERROR: the network is down\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, done.stderr) == (
    1,
    "ERROR: the network is down\nerror: pomp was not made\n",
  )
  assert not (cloud / "state").exists()


def test_machines_of_somebody_else_are_kept(cloud):
  (cloud / "refused").write_text("ERROR: ALREADY_EXISTS: there is one\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 1
  assert calls(cloud) == ["create"]
  assert (cloud / "state").exists()


def test_deletion_is_retried_and_a_failure_reported(cloud):
  (cloud / "statuses").write_text("2\n")
  (cloud / "undeleted").write_text("1\n1\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 2
  assert not (cloud / "state").exists()

  (cloud / "statuses").write_text("130\n")
  (cloud / "undeleted").write_text("1\n" * 1000)
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 130
  assert done.stderr.endswith("error: pomp may still be there; delete it\n")


def test_a_failed_deletion_is_retried_at_the_end(cloud):
  (cloud / "statuses").write_text("75\n")
  (cloud / "undeleted").write_text("1\n" * 5)
  done = pod(cloud, *POD, "--", "--config=x")
  assert (done.returncode, calls(cloud).count("create")) == (1, 1)
  assert "error: pomp is SUSPENDED and can't be deleted\n" in done.stderr
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


def test_a_connection_that_breaks_during_the_start_is_retried(cloud):
  statuses = {"scp": 1, "unpack": 255, "install": 2, "start": 1}
  for step, status in statuses.items():
    (cloud / f"broken {step}").write_text(f"{status}\n")
  done = pod(cloud, *POD, "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert all(f"ERROR: {cloud}/broken {step}" in done.stderr for step in statuses)
  assert runs(cloud) == 1
  assert calls(cloud).count("create") == 1


def test_it_ends_without_any_connection(cloud):
  (cloud / "broken scp").write_text("1\n" * 1000)
  executable(cloud / "bin" / "sleep", "#!/usr/bin/env bash\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 255
  assert calls(cloud).count("scp") == 100
  assert not (cloud / "state").exists()


def test_a_failed_installation_ends_it(cloud):
  executable(cloud / "worker" / "pomp" / ".venv" / "bin" / "pip", "#!/usr/bin/env bash\nexit 1\n")
  assert pod(cloud, *POD, "--", "--config=x").returncode == 4
  assert calls(cloud).count("scp") == 1
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
  done = pod(cloud, *fetching(cloud))
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in (cloud / "results").iterdir()) == ["plots", "steps"]
  assert not (cloud / "state").exists()
  # The same command has new machines, which resume from the copy.
  (cloud / "statuses").write_text("1\n")
  assert pod(cloud, *fetching(cloud)).returncode == 1
  assert (cloud / "results" / "steps").read_text() == "run\n" * 2
  assert calls(cloud).count("create") == calls(cloud).count("delete") == 2


def test_new_machines_after_a_preemption_resume_from_the_copy(cloud):
  (cloud / "statuses").write_text("75\n137\n0\n")
  done = pod(cloud, *fetching(cloud))
  assert done.returncode == 0, done.stderr
  assert (cloud / "results" / "steps").read_text() == "run\n" * 3
  assert calls(cloud).count("create") == 2


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
  ("machines", "runtime"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_the_runtime_is_that_of_the_type(cloud, machines, runtime):
  arguments = [*POD[:2], f"--type={machines}", "--mount=true", "--dry-run"]
  done = pod(cloud, *arguments, "--", "--config=x")
  assert f" --runtime-version={runtime} " in done.stdout
  done = pod(cloud, *arguments, "--runtime=other", "--", "--config=x")
  assert " --runtime-version=other " in done.stdout


@pytest.mark.parametrize("mount", ["touch mounted;", "touch mounted # as always"])
def test_a_mount_is_any_command(cloud, mount):
  done = pod(cloud, *POD, f"--mount={mount}", "--", "--config=x")
  assert done.returncode == 0, done.stderr
  assert (cloud / "worker" / "mounted").exists()


@pytest.mark.parametrize("mount", ["false;", "exit 1"])
def test_a_mount_that_fails_ends_it(cloud, mount):
  assert pod(cloud, *POD, f"--mount={mount}", "--", "--config=x").returncode == 4
  assert calls(cloud).count("scp") == 1
  assert not (cloud / "worker" / "pomp" / "ran").exists()


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
