"""Memory of a device for activations, and the remat and chunks of a text tower that
fit it."""

import functools
import logging

from pomp_jax import hosts
from pomp_jax.clip.packed import MemoryPlan
from pomp_jax.clip.text import plan_memory
from pomp_jax.config.fields import Clip
from pomp_jax.encoder import Encoder

log = logging.getLogger(__name__)

# Share of a device's own limit; weights, data and the other temporaries take the rest.
_SHARE = 0.5
# Of CPUs, which have no limit: the same on all machines, so that a run that moves keeps
# its bits.
_NO_LIMIT_GIB = 4.0


def activation_memory(clip: Clip) -> float:
  """Returns `clip.memory_gib` in bytes, or where it is 0 a share of the device's own
  limit.

  It is the first process's limit, for equal programs; all processes make the first call
  together.
  """
  return (clip.memory_gib or memory_of_device()) * 2**30


def memory_plan(
  clip: Clip, encoder: Encoder, n_prefix: int, token_budget: int, n_times: int = 1
) -> MemoryPlan:
  """Returns the fastest plan that fits the memory for activations.

  `n_times` text towers share the memory; see `plan_memory`.

  Args:
    clip: `config.clip`, with the memory and the type of the computation.
    encoder: CLIP in use.
    n_prefix: P, prefix tokens that all classes share.
    token_budget: own tokens of the classes that a device computes.
    n_times: text towers that share the memory.
  """
  return plan_memory(
    encoder.clip.config.text_config,
    n_prefix,
    token_budget,
    activation_memory(clip) / n_times,
    encoder.block,
    clip.dtype,
    encoder.platform,
  )


def share_of_device(limit_gib: float) -> float:
  """Memory for activations, GiB, of a device with this limit; 0 is for none."""
  return _SHARE * limit_gib or _NO_LIMIT_GIB


@functools.cache
def memory_of_device() -> float:
  """Half of the first process's smallest device, GiB; all processes call it first
  together."""
  stats = [device.memory_stats() or {} for device in hosts.devices(local=True)]
  limit = min(one.get("bytes_limit", 0) for one in stats) / 2**30
  limit = hosts.from_first(limit, "the memory of a device")
  gib = share_of_device(limit)
  why = (
    f"half of a device's limit of {limit:.1f} GiB" if limit else "a device has no limit"
  )
  log.info("memory for activations: %.1f GiB, %s", gib, why)
  return gib
