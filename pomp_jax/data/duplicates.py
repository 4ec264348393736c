"""Images that lie in several splits, byte for byte."""

from collections.abc import Sequence
import hashlib

from pomp_jax.data.images import ImageError
from pomp_jax.data.source import StoredImages
from pomp_jax.files.terminal import steps_of


def find_duplicates(source: StoredImages, earlier: Sequence[StoredImages]) -> dict[int, str]:
  """Finds the images of a source whose files equal files of earlier sources.

  Sizes are compared first, so that few files are read: those of a size that both sides have. Files
  that can't be read, or are empty, equal none.

  Args:
    source: images of a split.
    earlier: images of other splits; a file that is in the source too is passed over.

  Returns:
    Index of each such image -> the file that it equals.
  """
  own = {source.where(index) for index in range(len(source))}
  others = [
    (one, index) for one in earlier for index in range(len(one)) if one.where(index) not in own
  ]
  images = [*others, *((source, index) for index in range(len(source)))]
  sizes = [_size(*image) for image in steps_of(images, "comparing the pictures", "sizes")]
  of_others, of_own = sizes[: len(others)], sizes[len(others) :]
  shared = set(of_others) & set(of_own) - {0}
  digests: dict[str, str] = {}
  for image, size in zip(others, of_others, strict=True):
    if size in shared and (digest := _digest(*image)):
      digests.setdefault(digest, image[0].where(image[1]))
  found = {
    index: digests.get(_digest(source, index))
    for index, size in enumerate(of_own)
    if size in shared
  }
  return {index: where for index, where in found.items() if where}


def _size(source: StoredImages, index: int) -> int:
  """Bytes of a file; 0 if it can't be read."""
  try:
    return source.encoded_size(index)
  except ImageError:
    return 0


def _digest(source: StoredImages, index: int) -> str:
  """Digest of a file's content; empty if it can't be read."""
  try:
    return hashlib.blake2b(source.encoded(index), digest_size=16).hexdigest()
  except ImageError:
    return ""
