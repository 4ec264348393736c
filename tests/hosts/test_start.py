"""Several processes, for real: they join and stop together, or say why not and end.

The job of most does nothing but what is tested. Two processes that train: tests/faults.
"""

import functools
import signal
import socket
from unittest import mock

import jax
import pytest

from pomp_jax import hosts
from tests.support.processes import Processes, small_demo, wait_until

SMALL = small_demo(**{"steps": 4, "checkpoint.every": 2})
# The program with another job: `run`, in which `first` says whether this is process 0.
PLAYED = """
import pathlib, sys, time, types
from pomp_jax import hosts, main
def run(config, workdir):
  first = hosts.is_first()
  there = pathlib.Path(sys.argv[0]).with_name(f"process-{{int(first)}}").touch
{body}
main.load_job = lambda name: types.SimpleNamespace(check=lambda *_: None, run=run)
sys.exit(main.main(sys.argv[1:]))
"""


def command(workdir, *more):
  return ["-m", "pomp_jax.main", *SMALL, f"--workdir={workdir}", *more]


def played(folder, body, *more):
  file = folder / "start.py"
  file.write_text(PLAYED.format(body=body))
  return [str(file), *SMALL, f"--workdir={folder}/run", *more]


def stopped(folder, body, *more):
  """Errors of both after SIGTERM to the second, once each has called `there`."""
  with Processes(2, played(folder, body, *more)) as run:
    for index in (0, 1):
      wait_until((folder / f"process-{index}").exists, run.processes[1])
    run.processes[1].send_signal(signal.SIGTERM)
    found = run.finish()
  assert [status for status, _ in found.values()] == [75, 75], found
  return [line for _, output in found.values() for line in errors(output)]


def errors(output):
  return [line for line in output.splitlines() if line.startswith("error: ")]


def listens(port):
  with socket.socket() as caller:
    return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_process_whose_peer_never_arrives(tmp_path):
  with Processes(2, command(tmp_path / "run", "--start_timeout=3"), absent=[0]) as run:
    status, output = run.finish()[1]
  assert status == 75
  (line,) = errors(output)
  assert "--start_timeout" in line and "process 1 of 2 on " in line
  assert not (tmp_path / "run").exists()


def test_a_signal_while_it_waits_for_the_others(tmp_path):
  arguments = command(tmp_path / "run", "--start_timeout=3600")
  start = functools.partial(Processes, 2, arguments, absent=[1])
  with start() as stopped, start() as interrupted:
    for run, number in ((stopped, signal.SIGTERM), (interrupted, signal.SIGINT)):
      wait_until(lambda run=run: listens(run.port), run.processes[0])
      run.processes[0].send_signal(number)
    found = [run.finish()[0] for run in (stopped, interrupted)]
  (status, output), (status_by_hand, output_by_hand) = found
  assert (status, status_by_hand) == (75, 130)
  assert "stopped by SIGTERM" in errors(output)[0]
  (line,) = errors(output_by_hand)
  assert line.startswith("error: process 0 of 2 on ")


@pytest.fixture
def initialized(monkeypatch):
  """The calls with which JAX's runtime would start."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda **found: calls.append(found)
  )
  monkeypatch.setattr(jax.config, "update", lambda *_: None)
  return calls


@pytest.mark.parametrize("how", ["listens", "listens and shares", "holds"])
def test_a_taken_port_is_found_before_jax_starts(initialized, how):
  """JAX would end with a segmentation fault, or share the port with another run's
  process 0."""
  with socket.socket() as taken:
    if how == "listens and shares":
      taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    taken.bind(("127.0.0.1", 0))
    if how != "holds":
      taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(hosts.HostError, match=f"^--coordinator: port {port} ") as error:
      hosts.start(hosts.Cluster("flags", f"h:{port}", 2, 0))
    assert "\n" not in str(error.value) and not initialized
    # Only process 0 needs it.
    hosts.start(hosts.Cluster("flags", f"127.0.0.1:{port}", 2, 1))
  for _ in range(2):  # it is free again
    hosts.start(hosts.Cluster("flags", f"127.0.0.1:{port}", 2, 0))
  assert len(initialized) == 3


def test_jax_gets_the_cluster_and_the_timeouts(initialized):
  """A minute more than ours, so that this process ends before JAX aborts it."""
  hosts.start(
    hosts.Cluster("slurm", "a:1", 4, 3, (2,)), start_timeout=7, heartbeat_timeout=9
  )
  hosts.start(hosts.Cluster("flags", "b:2", 2, 1))
  common = {"cluster_detection_method": "deactivate"}
  first = {"coordinator_address": "a:1", "num_processes": 4, "process_id": 3}
  first |= {
    "local_device_ids": (2,),
    "initialization_timeout": 67,
    "heartbeat_timeout_seconds": 9,
  }
  # All devices that it sees.
  second = {"coordinator_address": "b:2", "num_processes": 2, "process_id": 1}
  second |= {"local_device_ids": None, "initialization_timeout": 360}
  second |= {"heartbeat_timeout_seconds": 60}
  assert initialized == [first | common, second | common]


@pytest.mark.parametrize(
  ("text", "kind"),
  [
    ("UNAVAILABLE: failed to connect to all addresses", hosts.LostHostError),
    ("INTERNAL: Failed to register", hosts.LostHostError),
    ("INVALID_ARGUMENT: unexpected task", hosts.HostError),
  ],
)
def test_errors_of_other_processes_may_be_retried(initialized, monkeypatch, text, kind):
  monkeypatch.setattr(
    jax.distributed, "initialize", mock.Mock(side_effect=RuntimeError(text))
  )
  with pytest.raises(
    kind, match=f"^process 3 of 4 on [^ ]+ can't start: {text}"
  ) as caught:
    hosts.start(hosts.Cluster("flags", "a:1", 4, 3))
  assert type(caught.value) is kind


def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path):
  """As the loop of a training asks for it; before it, values go from each to all."""
  body = """
  found = hosts.gather(hosts.own_index(), "indices")
  assert [value for _, value in found] == [0, 1] and hosts.from_first(first, "a value")
  assert hosts.own_cores() <= max(1, len(__import__("os").sched_getaffinity(0)) // 2)
  with hosts.StopRequest() as stop:
    for step in range(1, 10**6):
      time.sleep(0.01)
      if stop.after_step():
        raise hosts.Preempted(f"asked to stop at step {step}", together=True)
      there()
"""
  line, other = stopped(tmp_path, body)
  assert line == other and line.startswith("error: asked to stop at step ")


def test_a_signal_outside_of_training(tmp_path):
  """A dry run, while it waits for the other process."""
  body = """
  there()
  if first:
    time.sleep(3600)
  hosts.from_first(None, "a value that is never sent", seconds=3600)
"""
  first, second = stopped(tmp_path, body, "--config.dry_run")
  assert second.startswith("error: stopped by SIGTERM; ")
  assert "ended: stopped by SIGTERM" in first


def test_hosts_with_different_configs_are_named(tmp_path):
  with Processes(2, command(tmp_path / "run"), own={1: ["--config.k=30"]}) as run:
    found = run.finish()
  for status, output in found.values():
    assert status == 2, output
    (line,) = errors(output)
    assert "config.k: 20 for process 0 on " in line and "30 for process 1 on" in line
  assert not (tmp_path / "run").exists()


def test_what_one_process_finds_wrong_ends_all(tmp_path):
  """Process 1 can't read its CLIP: the other does not wait for it."""
  body = """
  if not first:
    from pomp_jax.config import ConfigError
    raise ConfigError("data.source", "x", "something on this host")
  time.sleep(3600)
"""
  with Processes(2, played(tmp_path, body)) as run:
    found = run.finish()
  assert [status for status, _ in found.values()] == [2, 2]
  expected = "error: config.data.source: got 'x', expected something on this host"
  assert errors(found[1][1]) == [expected]
  (line,) = errors(found[0][1])
  assert line.startswith("error: process 1 on ")
  assert "ended: config.data.source: got 'x'" in line


def test_a_class_axis_that_does_not_fit_the_devices_of_a_process(tmp_path):
  """It would split a draw over a part of each process; each process says so, and
  what it has."""
  arguments = command(
    tmp_path / "run", "--config.mesh.class_size=2", "--config.batch_size=12"
  )
  with Processes(2, arguments, devices=3) as run:
    found = run.finish()
  for index, (status, output) in found.items():
    assert status == 2, output
    output = " ".join(output.split())  # the name of the host can be long
    assert f"process {index} of 2 on " in output
    assert (
      "3 of 6 devices (cpu), float32, mesh data 3 x class 2, started by flags" in output
    )
    assert "config.mesh.class_size: got 2" in output
  assert not (tmp_path / "run").exists()
