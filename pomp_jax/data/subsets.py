"""Which images and which classes: few shots, an even sample, base and new halves.

The choice depends on the seed and the images' keys alone, so every host makes the same one, in
whatever order its file system lists the images.
"""

from collections.abc import Sequence
import hashlib

from jaxtyping import Int
import numpy as np

HALVES = ("all", "base", "new")
# Another ranking than those of the few-shot subsets of any `data.shots_seed`.
_HELD_OUT_SEED = 2**63


def few_shot(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, shots: int, seed: int = 0
) -> Int[np.ndarray, " m"]:
  """Indices of `shots` images a class, or of all where a class has fewer.

  A class's images are ranked by a hash of seed and key, and the first are taken. So the subset of k
  shots lies within that of k+1, and another image added to the class moves one out at most.

  Args:
    labels: the class of each image.
    keys: a string an image, all different.
    shots: at least 1.
    seed: another one gives another subset.

  Returns:
    int64, in ascending order.
  """
  order, rank = ranked(labels, keys, seed)
  return np.sort(order[rank < shots])


def even_sample(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, count: int, seed: int = 0
) -> Int[np.ndarray, " m"]:
  """Indices of `count` images, of the classes as evenly as can be; all if there are no more.

  Every class gives one before any gives a second; which classes give the last is decided by a hash.

  Returns:
    int64, in ascending order.
  """
  if count >= len(labels):
    return np.arange(len(labels))
  order, rank = ranked(labels, keys, seed)
  # Within a turn, by hash and not by class.
  order = order[np.lexsort((_hashes(keys, seed)[order], rank))]
  return np.sort(order[:count])


def held_out(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, shares: Sequence[float]
) -> tuple[Int[np.ndarray, " m"], list[Int[np.ndarray, " k"]]]:
  """Divides the images of each class: some shares held out, the rest to train with.

  A class's images are ranked by a hash of the key; the first share takes the first of them. A share
  takes its part of a class's images to the nearest whole number, but leaves one to train with.

  Args:
    labels: the class of each image.
    keys: a string an image, all different.
    shares: 0 to 1 each.

  Returns:
    Indices of the rest, and of each share's images; int64, in ascending order.
  """
  order, rank = ranked(labels, keys, _HELD_OUT_SEED)
  ordered = np.asarray(labels)[order]
  size_N = np.bincount(ordered) if len(ordered) else np.zeros(0, int)
  first_N, parts = np.zeros_like(size_N), []
  for share in shares:
    count_N = np.floor(size_N * share + 0.5).astype(int)
    last_N = np.minimum(first_N + count_N, np.maximum(size_N - 1, 0))
    parts.append(np.sort(order[(rank >= first_N[ordered]) & (rank < last_N[ordered])]))
    first_N = last_N
  return np.sort(order[rank >= first_N[ordered]]), parts


def half_of_classes(n_classes: int, which: str) -> Int[np.ndarray, " m"]:
  """The classes of CoOp's base-to-new protocol: the first ceil(n/2) are base, the rest new.

  Args:
    n_classes: n, in the order of their labels.
    which: one of HALVES.
  """
  middle = -(-n_classes // 2)
  return {
    "all": np.arange(n_classes),
    "base": np.arange(middle),
    "new": np.arange(middle, n_classes),
  }[which]


def ranked(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the images by (class, hash of seed and key), and the place of each in its class."""
  order = np.lexsort((_hashes(keys, seed), labels))
  ordered = labels[order]
  first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
  sizes = np.diff(np.r_[first, len(order)])
  return order, np.arange(len(order)) - np.repeat(first, sizes)


def _hashes(keys, seed: int) -> np.ndarray:
  """uint64 [n]; two keys in a class that share one (1 in 10^19) keep their order in the list."""
  salt = int(seed).to_bytes(8, "little")
  digests = b"".join(
    hashlib.blake2b(str(key).encode(), digest_size=8, salt=salt).digest() for key in keys
  )
  return np.frombuffer(digests, "<u8")
