"""The processes of one run: how they find each other, agree, and stop together.

A process that runs alone calls the same functions: they start nothing and return at
once.
"""

from pomp_jax.hosts.failure import (
  fail,
  fail_after_lost_contact,
  finish,
  is_lost_contact,
  watch_failures,
)
from pomp_jax.hosts.messages import (
  HostError,
  LostHostError,
  agree,
  fingerprint_of_package,
  from_first,
  gather,
  is_first,
  n_processes,
  own_index,
  post,
  posted,
)
from pomp_jax.hosts.resources import devices, own_cores, peak_mib, share_cores
from pomp_jax.hosts.start import Cluster, describe, detect, start
from pomp_jax.hosts.stop import (
  Preempted,
  StopRequest,
  StopSignals,
  ending_at_once,
  raise_if_preempted,
)
