"""Finding the other processes of a run, and starting JAX's distributed runtime with
timeouts.

JAX's own classes read what SLURM, Open MPI and Cloud TPU leave in the environment.
This module adds flags, JobSet and Open MPI 5, one-line errors, and all accelerators for
a process alone on its node.
"""

from collections.abc import Mapping
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
from pomp_jax.hosts.failure import OF_OTHERS
from pomp_jax.hosts.messages import LISTEN_SECONDS, HostError, LostHostError
from pomp_jax.hosts.resources import devices
from pomp_jax.hosts.stop import Preempted

_INTERRUPTED = 130  # exit status after SIGINT, by the convention of shells
# JAX's names of launchers, in the order in which they are tried. Open MPI comes before
# SLURM: its processes also see the SLURM step of their daemons.
_TPU = ("gketpu", "gcetpu")
_OTHER = ("ompi", "slurm")
# Variables with the number of processes and the index of this one, for launchers that
# JAX does not find. launch/gke_jobset_gpu.yaml sets JOBSET_NUM_PROCESSES. JAX misses
# Open MPI 5, which names no coordinator.
_COUNTED = {
  "jobset": ("JOBSET_NUM_PROCESSES", "JOB_COMPLETION_INDEX"),
  "ompi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
_JOBSET_PORT = 8476


class Cluster(NamedTuple):
  """Arguments of `jax.distributed.initialize`."""

  launcher: str  # "flags", "jobset", or JAX's name of another launcher
  coordinator: str  # host:port of process 0
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] = ()  # empty: all that the process sees


class Place(NamedTuple):
  """Place of a process among the others; None for what the launcher does not say."""

  coordinator: str | None  # host:port of process 0
  num_processes: int | None
  process_id: int | None


def detect(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
) -> Cluster | None:
  """Finds the processes of this run by its flags, or by what the launcher left in the
  environment.

  Args:
    coordinator: host:port of process 0. It replaces the launcher's if the next two
      arguments are None.
    num_processes: number of processes; 1 to run alone, whatever the environment says.
    process_id: index of this process.
    timeout: time for the name of a Cloud TPU's coordinator to resolve, s.

  Returns:
    The processes, or None if this one runs alone.

  Raises:
    HostError: flags are incomplete or out of range, or variables can't be read.
  """
  if coordinator is not None:
    _check_address(coordinator)
  launcher = "flags"
  if num_processes is None and process_id is None:
    launcher = _launcher()
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
  return Cluster(
    launcher,
    coordinator,
    num_processes,
    process_id,
    local_device_ids=_own_accelerator(launcher, os.environ),
  )


def _check_address(coordinator: str) -> None:
  """Raises HostError if the text is not host:port."""
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise HostError(f"--coordinator: got {coordinator!r}, expected host:port")


def _launcher() -> str:
  """Name of the launcher that started this process; "" for none."""
  # A run on another platform is not part of a TPU slice, even on a TPU's host.
  platform = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
  uses_tpu = platform in ("", "tpu")
  launchers = (*_TPU, *_OTHER) if uses_tpu else _OTHER
  for launcher in launchers:
    if _is_present(launcher):
      return launcher
  for launcher, (count, _) in _COUNTED.items():
    if count in os.environ:
      return launcher
  return ""


def _is_present(launcher: str) -> bool:
  """Whether JAX's class of this name finds its launcher in the environment."""
  for kind in clusters.ClusterEnv._cluster_types:
    # Before JAX 0.9.1 Kubernetes' class has no name; Kubernetes is not tried here.
    if getattr(kind, "name", "") == launcher and kind.is_env_present():
      return True
  return False


def _read(launcher: str, coordinator: str | None, timeout: int) -> Place:
  """Reads the place of this process among the others from the environment.

  Args:
    launcher: "jobset", or JAX's name of another launcher.
    coordinator: host:port of process 0; None for the launcher's.
    timeout: time for the name of a Cloud TPU's coordinator to resolve, s.

  Raises:
    HostError: a variable is missing, or has no number.
  """
  try:
    if _is_present(launcher):
      detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, None, None, (), launcher, timeout
      )
      return Place(*detected[:3])
    host = os.environ.get("JOBSET_COORDINATOR")
    if launcher == "jobset" and coordinator is None and host is not None:
      coordinator = f"{host}:{_JOBSET_PORT}"
    count, index = _COUNTED[launcher]
    return Place(coordinator, int(os.environ[count]), int(os.environ[index]))
  except (LookupError, ValueError, RuntimeError) as error:
    problem = f"{type(error).__name__}: {error}"
    raise HostError(f"{launcher}: can't read its environment ({problem})") from error


def _own_accelerator(launcher: str, environ: Mapping[str, str]) -> tuple[int, ...]:
  """Chooses an accelerator for this process if several on a node see all accelerators.

  Without CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES a node is assumed to have one
  accelerator for each of its processes.

  Args:
    launcher: "flags", "jobset", or JAX's name of another launcher.
    environ: environment variables.

  Returns:
    The accelerator's number, or () for all that the process sees.

  Raises:
    HostError: a node's processes see neither the accelerators that are bound to each
      (one, or SLURM_GPUS_PER_TASK) nor as many as there are processes, or SLURM's
      variables can't be read. A run on CPUs is not checked.
  """
  match launcher:
    case "ompi":
      n_local = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 0))
      index = int(environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
      n_bound = "1"
    case "slurm":
      n_local = _tasks_of_node(environ)
      index = int(environ["SLURM_LOCALID"])
      # SLURM binds a task to its own GPUs with --gpus-per-task=2, or =h100:2.
      n_bound = environ.get("SLURM_GPUS_PER_TASK", "1").rpartition(":")[2]
    case _:
      return ()
  if n_local <= 1:
    return ()

  visible = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES")
  n_visible = n_local
  if visible:
    n_visible = len(visible.split(","))
    is_bound = str(n_visible) in ("1", n_bound)
    if is_bound:
      return ()
  on_cpus = environ.get("JAX_PLATFORMS", "").startswith("cpu")
  if n_visible != n_local and not on_cpus:
    raise HostError(
      f"{launcher}: {n_local} processes on this node see {n_visible} GPUs ({visible}), expected"
      " one each; start one per GPU (SLURM: --gpus-per-task=1) or one per node, which takes all"
    )
  return (index,)


def _tasks_of_node(environ: Mapping[str, str]) -> int:
  """Number of SLURM's tasks on this node.

  Raises:
    HostError: the variable has another form, or lists too few nodes.
  """
  text = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
  # "2(x3),1" stands for nodes of 2, 2, 2 and 1 tasks.
  tasks_of_nodes: list[int] = []
  for n_tasks, n_nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
    tasks_of_nodes += [int(n_tasks)] * int(n_nodes or 1)
  try:
    return tasks_of_nodes[int(environ.get("SLURM_NODEID", 0))]
  except (IndexError, ValueError):
    raise HostError(
      f"SLURM_STEP_TASKS_PER_NODE: got {text!r}, expected tasks per node"
    ) from None


def start(
  cluster: Cluster, *, start_timeout: int = 300, heartbeat_timeout: int = 60
) -> None:
  """Joins the other processes.

  While this process waits, SIGTERM (if its handler raises `Preempted`) and SIGINT end
  it at once. If not all processes arrive in time, it exits with status 75. Later, when
  a process is silent for `heartbeat_timeout`, JAX ends the others.

  Args:
    cluster: processes of the run, and the place of this one among them.
    start_timeout: time for all processes to arrive, s.
    heartbeat_timeout: silence after which a process counts as lost, s.

  Raises:
    HostError: JAX can't start, or the port of process 0 is taken on this host.
    LostHostError: the other processes can't be reached; another start may succeed.
  """
  if cluster.process_id == 0:
    _check_port(cluster)
  # Gloo runs collectives between processes on CPUs; accelerators ignore the option.
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
        # Longer than the main thread waits: JAX aborts the process at its own timeout.
        initialization_timeout=start_timeout + 60,
        heartbeat_timeout_seconds=heartbeat_timeout,
      )
    except Exception as error:  # raised by the main thread, below
      errors.append(error)

  # Join in a thread: while JAX waits, it handles no signals, and at its timeout it
  # aborts with a stack trace.
  joining = threading.Thread(target=join, name="joining", daemon=True)
  place = f"process {cluster.process_id} of {cluster.num_processes}"
  who = f"{place} on {socket.gethostname()}"
  try:
    joining.start()
    _wait_for(joining, start_timeout)
  except Preempted as error:
    _exit(str(error), TryAgain.status)
  except KeyboardInterrupt as error:
    message = str(error) or f"{who} was interrupted while it waited for the others"
    _exit(message, _INTERRUPTED)
  if joining.is_alive():
    _exit(
      f"after {start_timeout} s not all processes have arrived at {cluster.coordinator};"
      f" this is {who}. Look at the logs of the others, or raise --start_timeout",
      TryAgain.status,
    )

  for failure in errors:
    if not isinstance(failure, RuntimeError | ValueError):
      raise failure
    line = " ".join(str(failure).split())
    is_of_others = OF_OTHERS.match(str(failure))
    kind = LostHostError if is_of_others else HostError
    raise kind(f"{who} can't start: {line}") from failure


def _wait_for(thread: threading.Thread, seconds: int) -> None:
  """Waits for the end of a thread, or for the timeout, and handles signals meanwhile."""
  end = time.monotonic() + seconds
  while thread.is_alive():
    remaining = end - time.monotonic()
    if remaining <= 0:
      return
    thread.join(min(remaining, LISTEN_SECONDS))


def _check_port(cluster: Cluster) -> None:
  """Checks that process 0 can listen; otherwise JAX ends with a segmentation fault.

  Raises:
    HostError: another program has the port.
  """
  port = int(cluster.coordinator.rpartition(":")[2])
  with socket.socket() as listener:
    # Count a port as free while the system still closes connections of an earlier
    # start.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind(("", port))
    except OSError as error:
      raise HostError(
        f"--coordinator: port {port} of {cluster.coordinator} is taken on {socket.gethostname()}"
        f" ({error.strerror}); expected host:port of process 0 with a port that is free there"
      ) from error


def _exit(message: str, status: int) -> NoReturn:
  """Ends the process at once: a thread that hangs within JAX would keep it alive."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def describe(cluster: Cluster | None, class_size: int, dtype: str) -> str:
  """Line for the log: this process, its devices, the mesh, and the type of the
  computation.

  Args:
    cluster: processes of the run; None if this one runs alone.
    class_size: devices along the class axis.
    dtype: type of the computation.
  """
  place = f"process {jax.process_index()} of {jax.process_count()}"
  local = devices(local=True)
  n_devices = len(devices())
  line = (
    f"{place} on {socket.gethostname()}: {len(local)} of {n_devices} devices"
    f" ({local[0].device_kind}), {dtype},"
    f" mesh data {n_devices // class_size} x class {class_size}"
  )
  if cluster is not None:
    line += f", started by {cluster.launcher}"
  return line
