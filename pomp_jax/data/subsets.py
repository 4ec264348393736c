"""Choices of images and classes: few shots, even samples, held-out images, halves.

A choice depends only on the seed and on the images' labels and keys, so every host
makes the same choice. Shapes: n images, m chosen images, k images of a share, N
classes.
"""

from collections.abc import Sequence
import hashlib

from jaxtyping import Int
import numpy as np

HALVES = ("all", "base", "new")
# Outside the range of `data.shots_seed`, so that the ranking differs from that of every
# few-shot subset.
_HELD_OUT_SEED = 2**63


def few_shot(
  labels: Int[np.ndarray, " n"],
  keys: Sequence[str] | np.ndarray,
  shots: int,
  seed: int = 0,
) -> Int[np.ndarray, " m"]:
  """Chooses `shots` images of each class, or all images of a class with fewer.

  Images are ranked within their class by a hash of seed and key, and those of the first
  ranks are taken. The subset of k shots therefore lies within that of k+1 shots, and an
  image added to a class replaces at most one chosen image.

  Args:
    labels: class of each image.
    keys: distinct name of each image.
    shots: images of each class.
    seed: random seed of the ranking.

  Returns:
    Indices, ascending.
  """
  order_n, rank_n = ranked(labels, keys, seed)
  is_chosen_n = rank_n < shots
  return np.sort(order_n[is_chosen_n])


def even_sample(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, count: int
) -> Int[np.ndarray, " m"]:
  """Chooses `count` images evenly over the classes, or all if there are fewer.

  Every class gives one image before any class gives a second. If the classes can't all
  give the same number, a hash decides which classes give one more.

  Args:
    labels: class of each image.
    keys: distinct name of each image.
    count: number of images.

  Returns:
    Indices, ascending.
  """
  n_images = len(labels)
  if count >= n_images:
    return np.arange(n_images)
  order_n, rank_n = ranked(labels, keys, seed=0)
  hashes_n = _hashes(keys, seed=0)[order_n]
  # Sort by rank. Within a rank sort by hash: sorting by class would favour the first
  # classes.
  by_rank_n = order_n[np.lexsort((hashes_n, rank_n))]
  return np.sort(by_rank_n[:count])


def held_out(
  labels: Int[np.ndarray, " n"],
  keys: Sequence[str] | np.ndarray,
  shares: Sequence[float],
) -> tuple[Int[np.ndarray, " m"], list[Int[np.ndarray, " k"]]]:
  """Divides each class's images into held-out shares and the rest, for training.

  Images are ranked within their class by a hash of the key. The first share takes the
  first ranks, and each further share the ranks after it. A share is rounded to whole
  images, and at least one image of each class is left for training.

  Args:
    labels: class of each image.
    keys: distinct name of each image.
    shares: shares of each class's images, 0 to 1.

  Returns:
    Ascending indices of the rest, and of the images of each share.
  """
  order_n, rank_n = ranked(labels, keys, _HELD_OUT_SEED)
  class_n = np.asarray(labels)[order_n]  # of the ordered images
  size_N = np.zeros(0, int)
  if len(class_n):
    size_N = np.bincount(class_n)
  most_N = np.maximum(size_N - 1, 0)

  # Each share takes the ranks from `start` up to `end` of each class.
  start_N = np.zeros_like(size_N)
  parts = []
  for share in shares:
    count_N = np.floor(size_N * share + 0.5).astype(int)
    end_N = np.minimum(start_N + count_N, most_N)
    is_in_share_n = (rank_n >= start_N[class_n]) & (rank_n < end_N[class_n])
    parts.append(np.sort(order_n[is_in_share_n]))
    start_N = end_N
  rest = order_n[rank_n >= start_N[class_n]]
  return np.sort(rest), parts


def spread_evenly(count: int, total: int) -> Int[np.ndarray, " m"]:
  """Indices of `count` of `total` items, evenly spaced.

  All items if `count` is 0 or exceeds `total`.
  """
  count = min(count or total, total)
  return np.arange(count) * total // max(count, 1)


def half_of_classes(n_classes: int, half: str) -> Int[np.ndarray, " m"]:
  """Labels of one of HALVES in CoOp's base-to-new protocol.

  The first ceil(n_classes / 2) classes are base, the others new.
  """
  middle = -(-n_classes // 2)  # rounded up
  match half:
    case "all":
      return np.arange(n_classes)
    case "base":
      return np.arange(middle)
    case "new":
      return np.arange(middle, n_classes)
  raise KeyError(half)


def ranked(
  labels: Int[np.ndarray, " n"], keys: Sequence[str] | np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Orders images by (class, hash), and ranks each within its class.

  Args:
    labels: class of each image.
    keys: distinct name of each image.
    seed: random seed of the hashes.

  Returns:
    Indices of the images in this order, and the rank of each in its class, from 0.
  """
  order = np.lexsort((_hashes(keys, seed), labels))
  ordered = np.asarray(labels)[order]
  # Position at which the class of each image begins.
  first_of_class = np.searchsorted(ordered, ordered)
  return order, np.arange(len(order)) - first_of_class


def _hashes(keys: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
  """Hashes of seed and key: uint64 [n]."""
  salt = seed.to_bytes(8, "little")
  digests = [
    hashlib.blake2b(str(key).encode(), digest_size=8, salt=salt).digest()
    for key in keys
  ]
  return np.frombuffer(b"".join(digests), "<u8")
