"""Starts JAX's distributed runtime, with an end to every wait."""

import glob
import importlib.util
import os
import socket
import sys
import threading
import time
from typing import NoReturn

import jax

from pomp_jax.hosts.cluster import Cluster, ClusterError
from pomp_jax.hosts.stop import Preempted
from pomp_jax.hosts.talk import LISTEN_SECONDS, HostError, LostHostError

# A launcher starts a run again that ends with this: sysexits.h's EX_TEMPFAIL.
TRY_AGAIN = 75
# By hand: what a shell calls the end by SIGINT.
_INTERRUPTED = 130
# How JAX's errors begin that are not this process's own.
_OF_OTHERS = ("UNAVAILABLE", "ABORTED", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED")


def on_tpu_vm() -> bool:
  """Whether TPU chips and their library are here."""
  chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start(
  cluster: Cluster | None, *, start_timeout: int = 300, heartbeat_timeout: int = 60
) -> None:
  """Joins the other processes; for a process alone nothing is started.

  SIGTERM (where its handler raises `Preempted`) and SIGINT meanwhile end the process at once, with
  status 75 and 130.

  Args:
    cluster: from `detect`.
    start_timeout: seconds within which all processes must have arrived. Else one line on standard
      error, and the process ends with status 75.
    heartbeat_timeout: seconds of silence after which a process counts as lost, and JAX ends the
      others.

  Raises:
    ClusterError: this is to be process 0, and its port is taken on this host.
    HostError: JAX can't start; one line.
    LostHostError: nor can it, but perhaps another time: the others, or the way to them, are gone.
  """
  if cluster is None:
    return
  if cluster.process_id == 0 and cluster.coordinator is not None:
    _check_port(cluster)
  # Collectives between processes on CPUs; an accelerator does not look at it.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  errors: list[Exception] = []
  # In a thread: JAX waits deaf to signals, and its own way to end that is an abort with a trace.
  arguments = (cluster, start_timeout, heartbeat_timeout, errors)
  joining = threading.Thread(target=_join, args=arguments, name="joining", daemon=True)
  try:
    joining.start()
    end = time.monotonic() + start_timeout
    while joining.is_alive() and (left := end - time.monotonic()) > 0:
      joining.join(min(left, LISTEN_SECONDS))
  except (Preempted, KeyboardInterrupt) as error:
    message = str(error) or f"{_who(cluster)} was interrupted while it waited for the others"
    _give_up(message, TRY_AGAIN if isinstance(error, Preempted) else _INTERRUPTED)
  if joining.is_alive():
    _give_up(
      f"after {start_timeout} s not all processes have arrived at {cluster.coordinator or 'JAX'};"
      f" this is {_who(cluster)}. Look at the logs of the others, or raise --start_timeout",
      TRY_AGAIN,
    )
  for error in errors:
    if not isinstance(error, RuntimeError | ValueError):
      raise error
    kind = LostHostError if str(error).startswith(_OF_OTHERS) else HostError
    raise kind(f"{_who(cluster)} can't start: {' '.join(str(error).split())}") from error


def _check_port(cluster: Cluster) -> None:
  """JAX itself ends with a segmentation fault where it can't listen.

  Its server shares the port with whoever allows that, so one that listens there is called first.

  Raises:
    ClusterError: the port is taken.
  """
  port = int(cluster.coordinator.rpartition(":")[2])
  problem = None
  with socket.socket() as caller:
    caller.settimeout(1.0)
    if caller.connect_ex(("127.0.0.1", port)) == 0:
      problem = "another program listens there"
  with socket.socket() as listener:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
      listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
      listener.bind(("", port))
    except OSError as error:
      problem = problem or error.strerror
  if problem:
    raise ClusterError(
      f"--coordinator: port {port} of {cluster.coordinator} is taken on {socket.gethostname()}"
      f" ({problem}); takes host:port of process 0 with a port that is free there"
    )


def _join(
  cluster: Cluster, start_timeout: int, heartbeat_timeout: int, errors: list[Exception]
) -> None:
  try:
    jax.distributed.initialize(
      coordinator_address=cluster.coordinator,
      num_processes=cluster.num_processes,
      process_id=cluster.process_id,
      local_device_ids=cluster.local_device_ids,
      # What we found is complete; only on Cloud TPU JAX looks for itself.
      cluster_detection_method=None if cluster.coordinator is None else "deactivate",
      initialization_timeout=start_timeout + 60,
      heartbeat_timeout_seconds=heartbeat_timeout,
    )
  except Exception as error:  # the main thread's to deal with
    errors.append(error)


def _give_up(message: str, status: int) -> NoReturn:
  """Ends a process that may have a thread within JAX, which nothing else would end."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def _who(cluster: Cluster) -> str:
  # On Cloud TPU only JAX knows the numbers.
  number = "" if cluster.process_id is None else f" {cluster.process_id}"
  count = "" if cluster.num_processes is None else f" of {cluster.num_processes}"
  return f"process{number}{count} on {socket.gethostname()}"


def describe(cluster: Cluster | None, class_size: int) -> str:
  """One line: this process, its devices, and the mesh they are part of."""
  local, n_devices = jax.local_devices(), jax.device_count()
  devices = f"{len(local)} of {n_devices} devices ({local[0].device_kind})"
  mesh = f"mesh data {n_devices // class_size} x class {class_size}"
  return (
    f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: {devices},"
    f" {mesh}, started by {cluster.engine if cluster else 'hand'}"
  )
