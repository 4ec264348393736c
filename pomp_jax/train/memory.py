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

# Share of a device's memory for activations. Weights, data and other temporaries take
# the rest.
_SHARE = 0.5
# Memory for activations on CPUs, which have no limit. It is the same on all machines,
# so that a run that moves to another machine stays bit-identical.
_NO_LIMIT_GIB = 4.0


def activation_memory(clip: Clip) -> float:
  """Memory of a device for activations, in bytes; all processes call it together.

  Returns `clip.memory_gib`, or if it is 0 a share of the smallest device of process 0,
  so that all processes compile equal programs.
  """
  gib = clip.memory_gib or memory_of_device()
  return gib * 2**30


def memory_plan(
  clip: Clip, encoder: Encoder, n_prefix: int, token_budget: int, n_times: int = 1
) -> MemoryPlan:
  """Chooses the fastest remat and chunks whose activations fit the memory.

  All processes call it together.

  Args:
    clip: `config.clip`, with the memory and the type of the computation.
    encoder: CLIP in use.
    n_prefix: P, prefix tokens that all classes share.
    token_budget: own tokens of the classes that a device computes.
    n_times: number of text towers that are computed together and share the memory.
  """
  bytes_of_tower = activation_memory(clip) / n_times
  return plan_memory(
    encoder.clip.config.text_config,
    n_prefix,
    token_budget,
    bytes_of_tower,
    encoder.block,
    clip.dtype,
    encoder.platform,
  )


def share_of_device(limit_gib: float) -> float:
  """Memory for activations, in GiB, of a device.

  Args:
    limit_gib: memory of the device, GiB; 0 if unknown, which gives 4 GiB.
  """
  if not limit_gib:
    return _NO_LIMIT_GIB
  return _SHARE * limit_gib


@functools.cache
def memory_of_device() -> float:
  """Memory for activations, in GiB, of the smallest device of process 0.

  All processes make the first call together; later calls return the same number.
  """
  limits = []
  for device in hosts.devices(local=True):
    statistics = device.memory_stats() or {}  # CPUs have none
    limits.append(statistics.get("bytes_limit", 0))
  limit_gib = hosts.from_first(min(limits) / 2**30, "the memory of a device")
  gib = share_of_device(limit_gib)
  reason = "a device has no limit"
  if limit_gib:
    reason = f"half of a device's limit of {limit_gib:.1f} GiB"
  log.info("memory for activations: %.1f GiB, %s", gib, reason)
  return gib
