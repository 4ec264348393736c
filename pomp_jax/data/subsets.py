"""Choices of images and classes: few shots, even samples, held-out images, base and new
halves.

A choice depends only on the seed and the images' keys, so every host makes the same
one.
"""

from collections.abc import Sequence
import functools
import hashlib

from jaxtyping import Int
import numpy as np

HALVES = ("all", "base", "new")
# Outside the range of `data.shots_seed`, so that the ranking differs from all few-shot
# subsets'.
_HELD_OUT_SEED = 2**63


def few_shot(
  labels: Int[np.ndarray, " n"],
  keys: Sequence[str] | np.ndarray,
  shots: int,
  seed: int = 0,
) -> Int[np.ndarray, " m"]:
  """Chooses `shots` images a class, or all of a class with fewer; ascending indices.

  The first images of each class are taken, ranked by a hash of seed and (distinct) key.
  So the subset of k shots lies within that of k+1, and an image added to a class
  replaces at most one.
  """
  order, rank = ranked(labels, keys, seed)
  return np.sort(order[rank < shots])


def even_sample(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, count: int
) -> Int[np.ndarray, " m"]:
  """Chooses `count` images, or all of fewer, evenly over the classes; ascending
  indices.

  Every class gives one image before any gives a second. A hash decides which classes
  give the last.
  """
  if count >= len(labels):
    return np.arange(len(labels))
  order, rank = ranked(labels, keys, seed=0)
  # Images of the same rank are ordered by hash, not by class.
  order = order[np.lexsort((_hashes(keys, seed=0)[order], rank))]
  return np.sort(order[:count])


def held_out(
  labels: Int[np.ndarray, " n"],
  keys: Sequence[str] | np.ndarray,
  shares: Sequence[float],
) -> tuple[Int[np.ndarray, " m"], list[Int[np.ndarray, " k"]]]:
  """Divides each class's images into held-out shares and the rest, for training.

  Images are ranked by a hash of the key, and the first share (0 to 1) takes the first
  of them. A share is rounded to whole images, and one image of each class is left for
  training. Returns ascending indices of the rest, and of each share's images.
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


def spread_evenly(count: int, total: int) -> Int[np.ndarray, " m"]:
  """Indices of `count` of `total` items, evenly spaced; of all if `count` is 0 or
  larger."""
  count = min(count or total, total)
  return np.arange(count) * total // max(count, 1)


def half_of_classes(n_classes: int, half: str) -> Int[np.ndarray, " m"]:
  """Labels of one of HALVES in CoOp's base-to-new protocol: the first ceil(n/2) are
  base."""
  middle = -(-n_classes // 2)
  first, last = {
    "all": (0, n_classes),
    "base": (0, middle),
    "new": (middle, n_classes),
  }[half]
  return np.arange(first, last)


def ranked(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Indices ordered by (class, hash of seed and key), and the rank of each within
  its class."""
  order = np.lexsort((_hashes(keys, seed), labels))
  ordered = np.asarray(labels)[order]
  return order, np.arange(len(order)) - np.searchsorted(ordered, ordered)


def _hashes(keys: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
  """Hashes uint64 [n] of seed and key."""
  hashing = functools.partial(
    hashlib.blake2b, digest_size=8, salt=seed.to_bytes(8, "little")
  )
  return np.frombuffer(
    b"".join(hashing(str(key).encode()).digest() for key in keys), "<u8"
  )
