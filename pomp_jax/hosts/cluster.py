"""Which processes a run consists of, read from what its launcher left in the environment.

`detect` is a function of its arguments alone. Nothing is asked over the network: on a Cloud TPU VM,
where the answer is in the machine's metadata, it says so, and JAX asks.
"""

from collections.abc import Mapping
import dataclasses
import re

from pomp_jax.errors import InputError

# As high as JAX's own choice for SLURM: above the ports that systems usually hand out.
_FIRST_PORT, _N_PORTS = 61440, 4096
_JOBSET_PORT = 8476


class ClusterError(InputError, ValueError):
  """Flags or an environment that don't add up; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """What `jax.distributed.initialize` needs.

  Attributes:
    engine: what started the processes: flags, cloud-tpu, jobset, open-mpi or slurm.
    coordinator: host:port of process 0; None where JAX finds all by itself (Cloud TPU).
    num_processes: how many; None likewise.
    process_id: which this is; None likewise.
    local_device_ids: the accelerators that are this process's; None for all that it sees.
  """

  engine: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  local_device_ids: tuple[int, ...] | None = None


def detect(
  environ: Mapping[str, str],
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  on_tpu_vm: bool = False,
) -> Cluster | None:
  """The cluster that this process belongs to; None for a process alone, which needs nothing.

  Flags come first, then Cloud TPU, JobSet, Open MPI, and SLURM (Open MPI before SLURM: its
  processes see the SLURM step of their daemons).

  Args:
    environ: the environment.
    coordinator: `--coordinator`, host:port. Alone it only replaces what an engine says.
    num_processes: `--num_processes`. 1 says that this process is alone, whatever is around it.
    process_id: `--process_id`.
    on_tpu_vm: whether TPU chips and their library are here.

  Raises:
    ClusterError: flags that are incomplete or out of range, or variables that don't read as such.
  """
  if coordinator is not None:
    _check_address(coordinator)
  if num_processes is not None or process_id is not None:
    return _from_flags(coordinator, num_processes, process_id)
  found = (
    _cloud_tpu(environ, on_tpu_vm) or _jobset(environ) or _open_mpi(environ) or _slurm(environ)
  )
  if coordinator is None:
    if found is not None and found.coordinator is None and found.engine != "cloud-tpu":
      raise ClusterError(
        f"--coordinator: nothing given, and {found.engine} does not say it; takes host:port of"
        " process 0"
      )
    return found
  if found is None or found.engine == "cloud-tpu":
    raise ClusterError(
      f"--coordinator: got {coordinator}, takes --num_processes and --process_id beside it"
    )
  return dataclasses.replace(found, coordinator=coordinator)


def _from_flags(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
  if num_processes is None:
    raise ClusterError("--num_processes: nothing given, --process_id needs it beside it")
  if num_processes < 1:
    raise ClusterError(f"--num_processes: got {num_processes}, takes 1 or more")
  if not 0 <= (process_id or 0) < num_processes:
    raise ClusterError(f"--process_id: got {process_id}, takes 0 to {num_processes - 1}")
  if num_processes == 1:
    return None
  if process_id is None:
    raise ClusterError(f"--process_id: nothing given, takes 0 to {num_processes - 1}")
  if coordinator is None:
    raise ClusterError("--coordinator: nothing given, takes host:port of process 0")
  return Cluster("flags", coordinator, num_processes, process_id)


def _cloud_tpu(environ: Mapping[str, str], on_tpu_vm: bool) -> Cluster | None:
  if not on_tpu_vm or environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
    return None
  # On Kubernetes the environment lists the workers; on a VM the metadata server does.
  workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  alone = workers is not None and len(workers.split(",")) == 1
  slices = _integer(environ, "MEGASCALE_NUM_SLICES", 1)
  return None if alone and slices == 1 else Cluster("cloud-tpu")


def _jobset(environ: Mapping[str, str]) -> Cluster | None:
  """Set by `launch/gke_jobset.yaml`, but for the index, which Kubernetes sets in an indexed job."""
  if "JOBSET_NUM_PROCESSES" not in environ:
    return None
  count = _integer(environ, "JOBSET_NUM_PROCESSES")
  index = _integer(environ, "JOB_COMPLETION_INDEX")
  if count == 1:
    return None
  host = environ.get("JOBSET_COORDINATOR")
  return _checked("jobset", host and f"{host}:{_JOBSET_PORT}", count, index)


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
  if "OMPI_COMM_WORLD_SIZE" not in environ:
    return None
  count = _integer(environ, "OMPI_COMM_WORLD_SIZE")
  if count == 1:
    return None
  coordinator = None
  # Open MPI 4 names mpirun's host, where process 0 runs unless told otherwise; 5 has no such thing.
  uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
  head = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
  if head:
    coordinator = f"{head[2] or f'[{head[3]}]'}:{_port(int(head[1]) // 4096)}"
  n_local = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
  return _checked(
    "open-mpi",
    coordinator,
    count,
    _integer(environ, "OMPI_COMM_WORLD_RANK"),
    _own_accelerator(
      "open-mpi", environ, n_local, _integer(environ, "OMPI_COMM_WORLD_LOCAL_RANK", 0)
    ),
  )


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  # The batch script itself has a SLURM_PROCID too; only what srun starts has a step's node list.
  if not {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_JOB_ID"} <= environ.keys():
    return None
  count = _integer(environ, "SLURM_STEP_NUM_TASKS", _integer(environ, "SLURM_NTASKS", 1))
  if count == 1:
    return None
  # Of the allocation the job's id makes the port, so that two jobs on a node don't meet.
  port = _port(_integer(environ, "SLURM_JOB_ID"))
  coordinator = f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{port}"
  n_local = _tasks_on_node(environ)
  return _checked(
    "slurm",
    coordinator,
    count,
    _integer(environ, "SLURM_PROCID"),
    _own_accelerator("slurm", environ, n_local, _integer(environ, "SLURM_LOCALID", 0)),
  )


def _checked(engine: str, coordinator: str | None, count: int, index: int, devices=None) -> Cluster:
  if not 0 <= index < count:
    raise ClusterError(f"{engine}: process {index} of {count}, takes 0 to {count - 1}")
  return Cluster(engine, coordinator, count, index, devices)


def _own_accelerator(
  engine: str, environ: Mapping[str, str], n_local: int, local_index: int
) -> tuple[int, ...] | None:
  """One accelerator a process where several share a node and see them all.

  How many they see is known where CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES says it; else it is
  taken to be one each.

  Raises:
    ClusterError: by these they see more, which would stay idle, or fewer.
  """
  if n_local == 1:
    return None
  visible = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES")
  n_visible = len(visible.split(",")) if visible else n_local
  # SLURM binds a task to its own with --gpus-per-task=2, or =h100:2.
  n_own = environ.get("SLURM_GPUS_PER_TASK", "1") if engine == "slurm" else "1"
  if visible and str(n_visible) in ("1", n_own.rpartition(":")[2]):
    return None
  on_cpu = environ.get("JAX_PLATFORMS", "").startswith("cpu")
  if n_visible != n_local and not on_cpu:
    raise ClusterError(
      f"{engine}: {n_local} processes on this node see {n_visible} GPUs ({visible}), and take one"
      " each; start one a GPU (SLURM: --gpus-per-task=1) or one a node, which takes all"
    )
  return (local_index,)


def _tasks_on_node(environ: Mapping[str, str]) -> int:
  """Of this node in SLURM_STEP_TASKS_PER_NODE: "2(x3),1" is 2, 2, 2, 1."""
  counts = []
  for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
    found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
    if not found:
      raise ClusterError(f"SLURM_STEP_TASKS_PER_NODE: {part!r} is no number of tasks")
    counts += [int(found[1])] * int(found[2] or 1)
  return counts[min(_integer(environ, "SLURM_NODEID", 0), len(counts) - 1)]


def _first_host(nodes: str) -> str:
  """The first of a SLURM node list: "gpu[003-007,9],cpu1" -> "gpu003"; "a-1,a-2" -> "a-1"."""
  prefix, bracket, rest = nodes.split(",")[0].partition("[")
  if not bracket:
    return prefix
  number = re.match(r"\d+", rest)
  if not number:
    raise ClusterError(f"SLURM_STEP_NODELIST: {nodes!r} is no list of nodes")
  # A list may have a suffix behind the bracket: "rack[1-2]-gpu".
  suffix = re.match(r"[^\]]*\]([^,\[]*)", nodes[len(prefix) + 1 :])
  return prefix + number[0] + (suffix[1] if suffix else "")


def _port(number: int) -> int:
  return _FIRST_PORT + number % _N_PORTS


def _check_address(address: str) -> None:
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise ClusterError(f"--coordinator: got {address!r}, takes host:port")


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
  text = environ.get(name)
  if text is None and default is not None:
    return default
  try:
    return int(text or "")
  except ValueError:
    raise ClusterError(f"{name}: got {text!r} in the environment, takes an integer") from None
