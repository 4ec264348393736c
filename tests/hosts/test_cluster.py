"""Finding the other processes: what each launcher leaves in the environment, and flags."""

from unittest import mock

from jax._src import clusters
import pytest

from pomp_jax.hosts.cluster import Cluster, ClusterError, detect

SLURM = {
  "SLURM_JOB_ID": "4100",
  "SLURM_STEP_NODELIST": "gpu[003-004]",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
  "SLURM_NTASKS": "4",
  "SLURM_NODEID": "1",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
OMPI_4 = {
  "OMPI_COMM_WORLD_SIZE": "8",
  "OMPI_COMM_WORLD_RANK": "5",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
JOBSET = {
  "JOBSET_NUM_PROCESSES": "4",
  "JOBSET_COORDINATOR": "pomp-workers-0-0.pomp",
  "JOB_COMPLETION_INDEX": "2",
}
TPU_POD = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}


def without(environ, *names):
  return {name: value for name, value in environ.items() if name not in names}


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, None),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, None),
    (SLURM, Cluster("slurm", "gpu003:61444", 4, 3, (1,))),
    # A task a node has all the devices of its node; JAX alone would take one.
    (
      SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"},
      Cluster("slurm", "gpu003:61444", 4, 3, None),
    ),
    # Bound by SLURM: the task sees its own device alone, as number 0.
    (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, Cluster("slurm", "gpu003:61444", 4, 3, None)),
    (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}, Cluster("slurm", "gpu003:61444", 4, 3, (1,))),
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "h100:2"},
      Cluster("slurm", "gpu003:61444", 4, 3, None),
    ),
    # Not bound (--gpu-bind=none), in spite of --gpus-per-task=1.
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "1"},
      Cluster("slurm", "gpu003:61444", 4, 3, (1,)),
    ),
    # On CPUs nobody minds the GPUs.
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_PLATFORMS": "cpu"},
      Cluster("slurm", "gpu003:61444", 4, 3, (1,)),
    ),
    # One task on the last node, two on those before.
    (
      SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "1"},
      Cluster("slurm", "gpu003:61444", 4, 3, None),
    ),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    (without(SLURM, "SLURM_STEP_NODELIST"), None),  # the batch script itself
    (without(SLURM, "SLURM_STEP_NUM_TASKS"), Cluster("slurm", "gpu003:61444", 4, 3, (1,))),
    (OMPI_4, Cluster("open-mpi", "10.96.0.1:62624", 8, 5, (1,))),
    (
      OMPI_4 | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::b9b:1,2620::2]:43370"},
      Cluster("open-mpi", "[fe80::b9b:1]:61441", 8, 5, (1,)),
    ),
    (OMPI_4 | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    (SLURM | OMPI_4, Cluster("open-mpi", "10.96.0.1:62624", 8, 5, (1,))),
    (JOBSET, Cluster("jobset", "pomp-workers-0-0.pomp:8476", 4, 2)),
    (JOBSET | {"JOBSET_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}, None),
    (TPU_POD, None),  # names without chips
  ],
)
def test_environments(environ, expected):
  assert detect(environ) == expected


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node7", "node7"),
    ("a-1,b-2", "a-1"),
    ("node[001-015],x", "node001"),
    ("node[3,7-9]", "node3"),
    ("rack[1-2]-gpu,b", "rack1-gpu"),
  ],
)
def test_the_first_node_of_a_list(nodes, first):
  assert detect(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:61444"


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    (TPU_POD, Cluster("cloud-tpu")),
    ({}, Cluster("cloud-tpu")),  # a VM: only its metadata knows the others
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Cluster("cloud-tpu")),
    (TPU_POD | {"JAX_PLATFORMS": "cpu"}, None),
    (TPU_POD | {"JAX_PLATFORMS": "tpu,cpu"}, Cluster("cloud-tpu")),
    (TPU_POD | JOBSET, Cluster("cloud-tpu")),
  ],
)
def test_tpu_machines(environ, expected):
  assert detect(environ, on_tpu_vm=True) == expected


@pytest.mark.parametrize("environ", [SLURM, OMPI_4], ids=["slurm", "open-mpi"])
def test_jax_itself_finds_the_same(environ):
  """Where it can: it takes one device a task, whatever the node has."""
  with mock.patch.dict("os.environ", environ, clear=True):
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*[None] * 5, 1)
  ours = detect(environ)
  assert found == (ours.coordinator, ours.num_processes, ours.process_id, [1])


@pytest.mark.parametrize("environ", [{}, SLURM, JOBSET, OMPI_4])
def test_flags_come_first(environ):
  flags = {"coordinator": "h:99", "num_processes": 2, "process_id": 1}
  assert detect(environ, **flags) == Cluster("flags", "h:99", 2, 1)
  assert detect(environ, num_processes=1) is None


def test_a_coordinator_alone_replaces_the_engines():
  # Open MPI 5 has no address to offer.
  found = detect(without(OMPI_4, "OMPI_MCA_orte_hnp_uri"), coordinator="h:99")
  assert found == Cluster("open-mpi", "h:99", 8, 5, (1,))
  assert detect(SLURM, coordinator="h:99") == Cluster("slurm", "h:99", 4, 3, (1,))


@pytest.mark.parametrize(
  ("environ", "flags", "message"),
  [
    ({}, {"coordinator": "h"}, "--coordinator: got 'h', takes host:port"),
    ({}, {"coordinator": "h:70000"}, "--coordinator: got 'h:70000'"),
    ({}, {"coordinator": "h:1"}, "takes --num_processes and --process_id beside it"),
    ({}, {"process_id": 1}, "--num_processes: nothing given"),
    ({}, {"num_processes": 0}, "--num_processes: got 0, takes 1 or more"),
    ({}, {"num_processes": 2}, "--process_id: nothing given, takes 0 to 1"),
    ({}, {"num_processes": 2, "process_id": 2}, "--process_id: got 2, takes 0 to 1"),
    ({}, {"num_processes": 2, "process_id": 1}, "--coordinator: nothing given"),
    (without(OMPI_4, "OMPI_MCA_orte_hnp_uri"), {}, "open-mpi does not say it"),
    (JOBSET | {"JOBSET_NUM_PROCESSES": "many"}, {}, "JOBSET_NUM_PROCESSES: got 'many'"),
    (without(JOBSET, "JOB_COMPLETION_INDEX"), {}, "JOB_COMPLETION_INDEX: got None"),
    (without(JOBSET, "JOBSET_COORDINATOR"), {}, "jobset does not say it"),
    (JOBSET | {"JOB_COMPLETION_INDEX": "4"}, {}, "jobset: process 4 of 4, takes 0 to 3"),
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "two"}, {}, "SLURM_STEP_TASKS_PER_NODE"),
    (SLURM | {"SLURM_STEP_NODELIST": "n[x"}, {}, "is no list of nodes"),
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
      {},
      "slurm: 2 processes on this node see 4 GPUs (0,1,2,3), and take one each; start one a GPU"
      " (SLURM: --gpus-per-task=1)",
    ),
    (OMPI_4 | {"ROCR_VISIBLE_DEVICES": "0,1"}, {}, "open-mpi: 4 processes on this node see 2 GPUs"),
  ],
)
def test_what_does_not_add_up(environ, flags, message):
  with pytest.raises(ClusterError) as caught:
    detect(environ, **flags)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
