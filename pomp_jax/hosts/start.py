"""Finding the other processes of a run, and starting JAX's distributed runtime with
timeouts.

JAX's own classes read what SLURM, Open MPI and Cloud TPU leave in the environment.
Added here: flags, JobSet and Open MPI 5, one-line errors, and all accelerators for a
process alone on its node.
"""

from collections.abc import Mapping
import itertools
import os
import re
import socket
import sys
import threading
import time
from typing import NamedTuple, NoReturn

import jax

# `jax.distributed.initialize` uses these and names no public API.
from jax._src import clusters

from pomp_jax.errors import TryAgain
from pomp_jax.hosts.messages import LISTEN_SECONDS, HostError, LostHostError
from pomp_jax.hosts.resources import devices
from pomp_jax.hosts.stop import OF_OTHERS, Preempted

_INTERRUPTED = 130  # exit status after SIGINT, by the convention of shells
# JAX's names, in this order. Open MPI's processes also see the SLURM step of their
# daemons.
_TPU, _OTHER = ("gketpu", "gcetpu"), ("ompi", "slurm")
# Variables with the number and the index of processes, where JAX does not find the
# launcher: launch/gke_jobset_gpu.yaml sets the first; Open MPI 5 names no coordinator.
_COUNTED = {
  "jobset": ("JOBSET_NUM_PROCESSES", "JOB_COMPLETION_INDEX"),
  "ompi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
_JOBSET_PORT = 8476


class Cluster(NamedTuple):
  """Arguments of `jax.distributed.initialize`."""

  launcher: str  # "flags", "jobset", or JAX's name for it
  coordinator: str  # host:port of process 0
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] = ()  # empty: all that the process sees


def detect(
  *,
  coordinator: str | None = None,  # host:port; alone it replaces the launcher's
  num_processes: int | None = None,  # 1: alone, whatever the environment says
  process_id: int | None = None,
  timeout: int = 300,  # seconds for the name of a Cloud TPU's coordinator to resolve
) -> Cluster | None:
  """Returns the cluster of this process, or None if it runs alone.

  HostError for flags that are incomplete or out of range, or variables that can't be
  read.
  """
  if coordinator is not None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise HostError(f"--coordinator: got {coordinator!r}, expected host:port")
  launcher = "flags"
  if num_processes is None and process_id is None:
    uses_tpu = os.environ.get("JAX_PLATFORMS", "").split(",")[0] in ("", "tpu")
    known = filter(_is_present, (*(_TPU if uses_tpu else ()), *_OTHER))
    counted = (name for name, (count, _) in _COUNTED.items() if count in os.environ)
    launcher = next(itertools.chain(known, counted), "")
    if launcher:
      coordinator, num_processes, process_id = _read(launcher, coordinator, timeout)
    elif coordinator is None:
      return None
  if num_processes is None or num_processes < 1:
    raise HostError(f"--num_processes: got {num_processes}, expected 1 or more")
  if num_processes == 1 and not process_id:
    return None
  if process_id is None or not 0 <= process_id < num_processes:
    raise HostError(
      f"--process_id: got {process_id} from {launcher}, expected 0 to {num_processes - 1}"
    )
  if coordinator is None:
    raise HostError(
      f"--coordinator: got nothing from {launcher}, expected host:port of process 0"
    )
  accelerators = _own_accelerator(launcher, os.environ)
  return Cluster(launcher, coordinator, num_processes, process_id, accelerators)


def _is_present(launcher: str) -> bool:
  kinds = clusters.ClusterEnv._cluster_types
  # Before JAX 0.9.1 that of Kubernetes, which is not asked for, has no name.
  return any(
    getattr(kind, "name", "") == launcher and kind.is_env_present() for kind in kinds
  )


def _read(
  launcher: str, coordinator: str | None, timeout: int
) -> tuple[str | None, int | None, int | None]:
  """Address of process 0, number of processes and index of this one, from the
  environment."""
  try:
    if _is_present(launcher):
      return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, None, None, (), launcher, timeout
      )[:3]
    if (
      launcher == "jobset"
      and coordinator is None
      and "JOBSET_COORDINATOR" in os.environ
    ):
      coordinator = f"{os.environ['JOBSET_COORDINATOR']}:{_JOBSET_PORT}"
    count, index = _COUNTED[launcher]
    return coordinator, int(os.environ[count]), int(os.environ[index])
  except (LookupError, ValueError, RuntimeError) as error:
    problem = f"{type(error).__name__}: {error}"
    raise HostError(f"{launcher}: can't read its environment ({problem})") from error


def _own_accelerator(launcher: str, environ: Mapping[str, str]) -> tuple[int, ...]:
  """One accelerator per process where several share a node and see them all.

  Without CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES they are assumed to see one each.
  """
  if launcher == "ompi":
    n_local, index = (
      int(environ.get(f"OMPI_COMM_WORLD_LOCAL_{k}", 0)) for k in ("SIZE", "RANK")
    )
  elif launcher == "slurm":
    # "2(x3),1" stands for nodes of 2, 2, 2 and 1 tasks.
    text, index = (
      environ.get("SLURM_STEP_TASKS_PER_NODE", "1"),
      int(environ["SLURM_LOCALID"]),
    )
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, times in found for _ in range(int(times or 1))]
    try:
      n_local = counts[int(environ.get("SLURM_NODEID", 0))]
    except (IndexError, ValueError):
      expected = "expected tasks per node"
      raise HostError(f"SLURM_STEP_TASKS_PER_NODE: got {text!r}, {expected}") from None
  else:
    return ()
  visible = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES")
  n_visible = len(visible.split(",")) if visible else n_local
  # SLURM binds a task to its own GPUs with --gpus-per-task=2, or =h100:2.
  n_own = environ.get("SLURM_GPUS_PER_TASK", "1") if launcher == "slurm" else "1"
  if n_local <= 1 or (visible and str(n_visible) in ("1", n_own.rpartition(":")[2])):
    return ()
  if n_visible != n_local and not environ.get("JAX_PLATFORMS", "").startswith("cpu"):
    raise HostError(
      f"{launcher}: {n_local} processes on this node see {n_visible} GPUs ({visible}), expected"
      " one each; start one per GPU (SLURM: --gpus-per-task=1) or one per node, which takes all"
    )
  return (index,)


def start(
  cluster: Cluster, *, start_timeout: int = 300, heartbeat_timeout: int = 60
) -> None:
  """Joins the other processes.

  While it waits, SIGTERM (if its handler raises `Preempted`) and SIGINT end the process
  at once. If not all processes arrive within `start_timeout` seconds, it exits with
  status 75. After `heartbeat_timeout` seconds of silence JAX ends the other processes.

  HostError: JAX can't start, or the port of process 0 is taken on this host.
  LostHostError: the other processes can't be reached; another start may succeed.

  Args:
    cluster: processes of the run, and this one's place.
    start_timeout: time for all processes to arrive, s.
    heartbeat_timeout: silence after which a process counts as lost, s.
  """
  if cluster.process_id == 0:
    _check_port(cluster)
  # Collectives between processes on CPUs; ignored by accelerators.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  errors: list[Exception] = []

  def join() -> None:
    try:
      jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.num_processes,
        process_id=cluster.process_id,
        local_device_ids=cluster.local_device_ids or None,
        cluster_detection_method="deactivate",
        initialization_timeout=start_timeout + 60,
        heartbeat_timeout_seconds=heartbeat_timeout,
      )
    except Exception as error:  # Raised by the main thread, below.
      errors.append(error)

  # In a thread: JAX handles no signals while it waits, and aborts with a stack trace on
  # a timeout.
  joining = threading.Thread(target=join, name="joining", daemon=True)
  who = (
    f"process {cluster.process_id} of {cluster.num_processes} on {socket.gethostname()}"
  )
  try:
    joining.start()
    end = time.monotonic() + start_timeout
    while joining.is_alive() and (left := end - time.monotonic()) > 0:
      joining.join(min(left, LISTEN_SECONDS))
  except (Preempted, KeyboardInterrupt) as error:
    message = str(error) or f"{who} was interrupted while it waited for the others"
    _exit(message, TryAgain.status if isinstance(error, Preempted) else _INTERRUPTED)
  if joining.is_alive():
    _exit(
      f"after {start_timeout} s not all processes have arrived at {cluster.coordinator};"
      f" this is {who}. Look at the logs of the others, or raise --start_timeout",
      TryAgain.status,
    )
  for failed in errors:
    if not isinstance(failed, RuntimeError | ValueError):
      raise failed
    kind = LostHostError if OF_OTHERS.match(str(failed)) else HostError
    raise kind(f"{who} can't start: {' '.join(str(failed).split())}") from failed


def _check_port(cluster: Cluster) -> None:
  """Checks that process 0 can listen, since JAX ends with a segmentation fault where
  it can't."""
  port = int(cluster.coordinator.rpartition(":")[2])
  with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(("", port))
    except OSError as error:
      raise HostError(
        f"--coordinator: port {port} of {cluster.coordinator} is taken on {socket.gethostname()}"
        f" ({error.strerror}); expected host:port of process 0 with a port that is free there"
      ) from error


def _exit(message: str, status: int) -> NoReturn:
  """Ends a process whose thread may hang within JAX, which nothing else would end."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def describe(cluster: Cluster | None, class_size: int, dtype: str) -> str:
  """One line: this process, its devices, the mesh with its class axis, and the
  compute type.

  Args:
    cluster: processes of the run; None if this one runs alone.
    class_size: devices along the class axis.
    dtype: compute type.
  """
  local, n_devices = devices(local=True), len(devices())
  found = f"{len(local)} of {n_devices} devices ({local[0].device_kind})"
  mesh = f"mesh data {n_devices // class_size} x class {class_size}"
  launcher = "" if cluster is None else f", started by {cluster.launcher}"
  return (
    f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: {found},"
    f" {dtype}, {mesh}{launcher}"
  )
