"""Finds images of a split whose files equal those of other splits byte for byte."""

from collections.abc import Sequence
import hashlib

from pomp_jax.data.images import ImageError
from pomp_jax.data.source import StoredImages
from pomp_jax.files.terminal import steps_of


def find_duplicates(
  source: StoredImages, earlier: Sequence[StoredImages]
) -> dict[int, str]:
  """Finds the images of a source whose files equal files of earlier sources.

  Only files whose size occurs both in the source and in earlier sources are read. A
  file that can't be read or decoded equals no other file.

  Args:
    source: images of a split.
    earlier: images of other splits; files that are in the source too are skipped.

  Returns:
    Index of each duplicate in the source -> file that the duplicate equals.
  """
  candidates = [(source, index) for index in range(len(source))]
  files = {source.where(index) for _, index in candidates}
  originals = [
    (split, index)
    for split in earlier
    for index in range(len(split))
    if split.where(index) not in files
  ]
  sizes_of_candidates = [_size(*image) for image in candidates]
  sizes_of_originals = [_size(*image) for image in originals]
  shared = set(sizes_of_candidates) & set(sizes_of_originals)
  # The originals come first, so that their digests are known before the candidates'.
  images = [*originals, *candidates]
  sizes = [*sizes_of_originals, *sizes_of_candidates]
  to_read = [image for image, size in zip(images, sizes, strict=True) if size in shared]

  original_of: dict[str, str] = {}  # by digest
  duplicates = {}
  for split, index in steps_of(to_read, "comparing the pictures", "pictures"):
    where = split.where(index)
    digest = _digest(split, index)
    is_original = where not in files
    if is_original:
      original_of.setdefault(digest, where)
    elif digest in original_of:
      _, problem = source.checked(index)
      if not problem:
        duplicates[index] = original_of[digest]
  return duplicates


def _size(source: StoredImages, index: int) -> int:
  """Bytes of a file; -1 if it can't be read."""
  try:
    return source.encoded_size(index)
  except ImageError:
    return -1


def _digest(source: StoredImages, index: int) -> str:
  """Digest of a file's content; empty if it can't be read."""
  try:
    return hashlib.blake2b(source.encoded(index), digest_size=16).hexdigest()
  except ImageError:
    return ""
