"""The processes of one run: how they find each other, agree, and end together.

Everything here is exact on one process as well: nothing is started and nothing is asked.
"""

from pomp_jax.hosts.agreement import agree, fingerprint_of_package
from pomp_jax.hosts.cluster import Cluster, ClusterError, detect
from pomp_jax.hosts.failure import fail, fail_with_the_cause, finish, watch_failures
from pomp_jax.hosts.start import TRY_AGAIN, describe, on_tpu_vm, start
from pomp_jax.hosts.stop import Preempted, StopRequest, leave_if_asked
from pomp_jax.hosts.talk import (
  HostError,
  LostHostError,
  arrays_from_first,
  from_first,
  gather,
  is_first,
  n_processes,
  post,
  posted,
)

__all__ = [
  "TRY_AGAIN",
  "Cluster",
  "ClusterError",
  "HostError",
  "LostHostError",
  "Preempted",
  "StopRequest",
  "agree",
  "arrays_from_first",
  "describe",
  "detect",
  "fail",
  "fail_with_the_cause",
  "fingerprint_of_package",
  "finish",
  "from_first",
  "gather",
  "is_first",
  "leave_if_asked",
  "n_processes",
  "on_tpu_vm",
  "post",
  "posted",
  "start",
  "watch_failures",
]
