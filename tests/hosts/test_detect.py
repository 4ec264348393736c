"""Finding the other processes: flags, and what each launcher leaves in the
environment."""

import os
from unittest import mock

from jax._src.clusters import ClusterEnv
import pytest

from pomp_jax.hosts import Cluster, HostError, detect

SLURM = {
  "SLURM_JOB_ID": "4100",
  "SLURM_STEP_NODELIST": "gpu[003-004]",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
  "SLURM_NTASKS": "4",
  "SLURM_NODEID": "1",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
UNEVEN = {"SLURM_STEP_TASKS_PER_NODE": "1,2(x2),3", "SLURM_NTASKS": "4"}
OMPI_5 = {
  "OMPI_COMM_WORLD_SIZE": "8",
  "OMPI_COMM_WORLD_RANK": "5",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OMPI_4 = OMPI_5 | {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
}
JOBSET = {
  "JOBSET_NUM_PROCESSES": "4",
  "JOBSET_COORDINATOR": "pomp-workers-0-0.pomp",
  "JOB_COMPLETION_INDEX": "2",
}
TPU_POD = {"TPU_WORKER_HOSTNAMES": "localhost,b,c,d", "TPU_WORKER_ID": "1"}

ON_SLURM = Cluster("slurm", "gpu003:61444", 4, 3)
ON_OMPI = Cluster("ompi", "10.96.0.1:62624", 8, 5, (1,))


def without(environ, *names):
  return {name: value for name, value in environ.items() if name not in names}


def detected(environ, **flags):
  with mock.patch.dict(os.environ, environ, clear=True):
    return detect(**flags)


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, None),
    (SLURM, ON_SLURM._replace(local_device_ids=(1,))),
    # A task with a node to itself has all its devices; JAX alone would give it one.
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, ON_SLURM),
    # Bound by SLURM: the task sees its own devices only.
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "h100:2"},
      ON_SLURM,
    ),
    # Not bound (--gpu-bind=none), in spite of --gpus-per-task=1.
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "1"},
      ON_SLURM._replace(local_device_ids=(1,)),
    ),
    (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, ON_SLURM),
    (SLURM | {"ROCR_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "2"}, ON_SLURM),
    # Computes on CPUs: it is of no matter what GPUs it sees.
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_PLATFORMS": "cpu"},
      ON_SLURM._replace(local_device_ids=(1,)),
    ),
    # Nodes of 1, 2, 2 and 3 tasks, and of 2, 2 and 1.
    *(
      (
        SLURM | UNEVEN | {"SLURM_NODEID": str(node)},
        ON_SLURM._replace(local_device_ids=own),
      )
      for node, own in enumerate(((), (1,), (1,), (1,)))
    ),
    (
      SLURM
      | {
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_NODEID": "2",
        "SLURM_LOCALID": "0",
      },
      ON_SLURM,
    ),
    (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    (without(SLURM, "SLURM_STEP_NODELIST"), None),  # the batch script itself
    (SLURM | OMPI_4, ON_OMPI),
    # What SLURM gives to a task is not what Open MPI gives to a process.
    (
      SLURM | OMPI_4 | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"},
      ON_OMPI,
    ),
    (JOBSET, Cluster("jobset", "pomp-workers-0-0.pomp:8476", 4, 2)),
    (TPU_POD, None),  # names without chips
  ],
)
def test_environments(environ, expected):
  assert detected(environ) == expected
  # A coordinator alone replaces the launcher's, the other flags the launcher.
  if expected is not None:
    replaced = expected._replace(coordinator="h:99")
    assert detected(environ, coordinator="h:99") == replaced
  flags = {"coordinator": "h:99", "num_processes": 2, "process_id": 1}
  assert detected(environ, **flags) == Cluster("flags", "h:99", 2, 1)
  assert detected(environ, num_processes=1) is None


def test_open_mpi_5_needs_a_coordinator_alone():
  expected = ON_OMPI._replace(coordinator="h:99")
  assert detected(OMPI_5, coordinator="h:99") == expected


def test_a_cluster_without_a_name_is_passed_over(monkeypatch):
  """Before JAX 0.9.1 that of Kubernetes had none."""
  monkeypatch.setattr(
    ClusterEnv, "_cluster_types", [*ClusterEnv._cluster_types, object]
  )
  assert detected(JOBSET) == Cluster("jobset", "pomp-workers-0-0.pomp:8476", 4, 2)


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    (TPU_POD | JOBSET, Cluster("gketpu", "localhost:8482", 4, 1)),
    (TPU_POD | {"JAX_PLATFORMS": "tpu,cpu"}, Cluster("gketpu", "localhost:8482", 4, 1)),
    (TPU_POD | {"JAX_PLATFORMS": "cpu"}, None),
    (TPU_POD | {"JAX_PLATFORMS": "cpu,tpu"}, None),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
  ],
)
def test_tpu_machines(monkeypatch, environ, expected):
  tpu = "jax._src.clusters.cloud_tpu_cluster"
  monkeypatch.setattr(f"{tpu}.running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(f"{tpu}.get_tpu_env_value_from_metadata", lambda key: None)
  assert detected(environ) == expected


@pytest.mark.parametrize(
  ("environ", "flags", "named"),
  [
    ({}, {"coordinator": "h:70000"}, "--coordinator: got 'h:70000'"),
    ({}, {"coordinator": "h:0"}, "--coordinator: got 'h:0'"),
    ({}, {"coordinator": ":99"}, "--coordinator: got ':99'"),
    ({}, {"process_id": 1}, "--num_processes: "),
    ({}, {"num_processes": 0}, "--num_processes: got 0"),
    ({}, {"num_processes": 2, "process_id": 2}, "--process_id: got 2"),
    ({}, {"num_processes": 2, "process_id": -1}, "--process_id: got -1"),
    ({}, {"num_processes": 1, "process_id": 1}, "--process_id: got 1"),
    ({}, {"num_processes": 2, "process_id": 1}, "--coordinator: "),
    (OMPI_5, {}, "--coordinator: "),
    (without(JOBSET, "JOBSET_COORDINATOR"), {}, "--coordinator: "),
    (JOBSET | {"JOBSET_NUM_PROCESSES": "many"}, {}, "jobset: .*'many'"),
    (OMPI_4 | {"OMPI_MCA_orte_hnp_uri": "1.0;x"}, {}, "ompi: "),
    (
      SLURM | {"SLURM_STEP_TASKS_PER_NODE": "two"},
      {},
      "SLURM_STEP_TASKS_PER_NODE: got 'two'",
    ),
    (SLURM | {"SLURM_NODEID": "2"}, {}, r"SLURM_STEP_TASKS_PER_NODE: got '2\(x2\)'"),
    (
      SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
      {},
      r"slurm: 2 .* 4 GPUs \(0,1,2,3\)",
    ),
  ],
)
def test_one_line_for_each_mistake(environ, flags, named):
  with pytest.raises(HostError, match=f"^{named}") as caught:
    detected(environ, **flags)
  assert "\n" not in str(caught.value)
