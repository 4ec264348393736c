"""Images that lie in several splits, byte for byte."""

from collections.abc import Sequence
import hashlib

from pomp_jax.data.images import ImageError
from pomp_jax.data.source import StoredImages
from pomp_jax.files.terminal import steps_of


def find_duplicates(
  source: StoredImages, earlier: Sequence[StoredImages]
) -> dict[int, str]:
  """Finds the images of a source whose files equal files of earlier sources.

  Sizes are compared first, so that few files are read: those of a size that both sides
  have. Files that can't be read or decoded equal none.

  Args:
    source: images of a split.
    earlier: images of other splits; a file that is in the source too is passed over.

  Returns:
    Index of each such image -> the file that it equals.
  """
  own = [(source, index) for index in range(len(source))]
  inside = {source.where(index) for _, index in own}
  others = [
    (one, index)
    for one in earlier
    for index in range(len(one))
    if one.where(index) not in inside
  ]
  sizes_of_own = [_size(*image) for image in own]
  sizes_of_others = [_size(*image) for image in others]
  shared = set(sizes_of_own) & set(sizes_of_others)
  own = [image for image, size in zip(own, sizes_of_own, strict=True) if size in shared]
  others = [
    image for image, size in zip(others, sizes_of_others, strict=True) if size in shared
  ]
  file_of: dict[str, str] = {}
  found = {}
  for image in steps_of([*others, *own], "comparing the pictures", "pictures"):
    where, digest = image[0].where(image[1]), _digest(*image)
    if where not in inside:
      file_of.setdefault(digest, where)
    elif digest in file_of and not source.checked(image[1])[1]:
      found[image[1]] = file_of[digest]
  return found


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
