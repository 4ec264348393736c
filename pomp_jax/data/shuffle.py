"""The shuffle of an epoch: a permutation of the images that is a function of seed and epoch.

It equals Grain's `shuffle`, so that runs reproduce bit for bit, but all images of an epoch are
computed at once. Grain encrypts at least 2^16 numbers an epoch one by one, which takes tens of
milliseconds even for 40 images, and a batch may hold several such epochs. The two differ where
n - 1 is a power of 4, from 2^16: there Grain repeats an image.

Shapes: n images, D numbers in the cipher's domain.
"""

import functools
import threading

from jaxtyping import UInt
import numpy as np

_ROUNDS = 4
_LEAST_BITS = 16
# Threads that start an epoch together wait for one of them to compute its order.
_computing = threading.Lock()


def epoch_order(n_images: int, seed: int, epoch: int) -> UInt[np.ndarray, " n"]:
  """Image at each position of an epoch; uint32, read-only.

  The last four orders are cached, at 4 bytes an image.

  Args:
    n_images: n, at least 1.
    seed: random seed of the run, 0 to 2^32 - 1.
    epoch: number of the epoch, from 0.
  """
  with _computing:
    return _order(n_images, seed, epoch)


@functools.lru_cache(maxsize=4)
def _order(n_images: int, seed: int, epoch: int) -> UInt[np.ndarray, " n"]:
  if n_images == 1:
    return _read_only(np.zeros(1, np.uint32))
  # `MapDataset.seed(seed).shuffle()` derives its seed from its depth in the pipeline, 1.
  base = np.random.SeedSequence([seed, 1]).generate_state(1)[0]
  keys = _round_keys((int(base) + epoch) % 2**32)
  bits = max((n_images - 1).bit_length(), _LEAST_BITS)
  found_D = _encrypt(keys, (bits + 1) // 2)
  # Cycle walking: numbers beyond the images are encrypted again. All numbers walk at once, and each
  # pass doubles the steps.
  while (found_D[:n_images] >= n_images).any():
    found_D = np.where(found_D < n_images, found_D, found_D[found_D])
  # A copy, because the domain is up to four times larger.
  return _read_only(found_D[:n_images].astype(np.uint32))


def _read_only(order_n: np.ndarray) -> np.ndarray:
  order_n.flags.writeable = False
  return order_n


def _encrypt(keys: list[int], width: int) -> UInt[np.ndarray, " D"]:
  """Simon cipher (Beaulieu et al., 2013) of all numbers of two words, D = 2^(2 width)."""
  kind = np.uint16 if width == _LEAST_BITS // 2 else np.uint32
  mask = kind(2**width - 1)
  left_D, right_D = np.divmod(np.arange(2 ** (2 * width), dtype=np.uint32), 2**width)
  left_D, right_D = left_D.astype(kind), right_D.astype(kind)

  def rotated(x_D, by):
    return ((x_D << kind(by)) | (x_D >> kind(width - by))) & mask

  def mixed(x_D):
    return (rotated(x_D, 1) & rotated(x_D, 8)) ^ rotated(x_D, 2)

  for i in range(0, _ROUNDS, 2):
    left_D = left_D ^ mixed(right_D) ^ (kind(keys[i] & int(mask)))
    right_D = right_D ^ mixed(left_D) ^ (kind(keys[i + 1] & int(mask)))
  return (left_D << kind(width)) | right_D


def _round_keys(seed: int) -> list[int]:
  """Words of C++'s `std::seed_seq{seed}`, one a round."""
  n, whole = _ROUNDS, 2**32 - 1
  # Offsets p and q in the C++ standard.
  first, second = 1, 2
  words = [0x8B8B8B8B] * n

  def scrambled(x):
    return x ^ (x >> 27)

  for k in range(n):
    near = words[k] ^ words[(k + first) % n] ^ words[k - 1]
    r1 = 1664525 * scrambled(near) & whole
    r2 = r1 + (1 if k == 0 else k + (seed if k == 1 else 0)) & whole
    words[(k + first) % n] = words[(k + first) % n] + r1 & whole
    words[(k + second) % n] = words[(k + second) % n] + r2 & whole
    words[k] = r2
  for k in range(n):
    near = words[k] + words[(k + first) % n] + words[k - 1] & whole
    r3 = 1566083941 * scrambled(near) & whole
    r4 = r3 - k & whole
    words[(k + first) % n] ^= r3
    words[(k + second) % n] ^= r4
    words[k] = r4
  return words
