"""Features of evaluation images in files: computed once for a run, however often it restarts.

A file holds the features of some consecutive images of a source. Its name is a checksum of all that
they depend on: the image tower, the preparation, and the images' keys, classes and first content.
A file that is missing or damaged is computed again, and so are images that could not be read.

With several processes, those that see the folder read and write the files in turn.

Shapes: n images of a source, b of a file, E embedding.
"""

import logging

from jaxtyping import Float
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.images import PREPROCESSING_VERSION, ImageError
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import ArrayCache, fingerprint
from pomp_jax.files.paths import is_bucket, is_dir
from pomp_jax.files.run_folder import RunFolderWriteError
from pomp_jax.files.terminal import steps_of

log = logging.getLogger(__name__)

# Images of a file: 2 MB at E = 512.
_BLOCK = 1024


class StoredFeatures:
  """Features of the images of one source: those that a cache has, and those that are added.

  All processes create it together, and add the same features.

  Attributes:
    features: float32 [n,E], NaN in the rows that are missing.
    missing: indices of the images to compute, ascending.
  """

  def __init__(self, cache: ArrayCache | None, encoder: Encoder, source: Source):
    """Reads what there is. Without a folder, or `source.keys`, nothing is read or written.

    Args:
      cache: cache with or without a folder.
      encoder: CLIP of the features.
      source: images at the CLIP's size.
    """
    self._source, self._cache = source, cache
    shape = len(source), encoder.clip.config.projection_dim
    self.features = np.full(shape, np.nan, np.float32)
    # Blocks that this process reads and writes.
    self._own = range(0)
    if cache is not None and cache.folder is not None and hasattr(source, "keys"):
      self._common = _common_key(encoder, source)
      self._read(_processes_that_see(cache))
    self.missing = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
    self._n_added = self._n_written = 0

  def add(self, features_bxE: Float[np.ndarray, "b E"]) -> None:
    """Adds the features of the next images of `missing`; those of unreadable ones are NaN.

    Writes this process's files that are complete now. A failure is one warning.
    """
    end = self._n_added + len(features_bxE)
    self.features[self.missing[self._n_added : end]] = features_bxE
    self._n_added = end
    if end < len(self.missing):
      # Not the file of the next image.
      next_file = self.missing[end] // _BLOCK * _BLOCK
      end = int(np.searchsorted(self.missing, next_file))
    added = self.missing[self._n_written : end]
    self._n_written = end
    # A file whose images are unreadable still would be the same again.
    for block in np.unique(added[np.isfinite(self.features[added, 0])] // _BLOCK).tolist():
      if block in self._own:
        self._write(block)

  def _read(self, readers: list[int]) -> None:
    if hosts.own_index() in readers:
      n_blocks = -(-len(self.features) // _BLOCK)
      self._own = range(readers.index(hosts.own_index()), n_blocks, len(readers))
    n_found = 0
    for block in steps_of(self._own, "reading features of images", "files"):
      found = self._cache.find(self._key(block))
      if found is not None:
        self.features[self._rows(block)] = found
        n_found += len(found)
    n_found = sum(n for _, n in hosts.gather(n_found, "the stored features"))
    if n_found:
      log.info("%s: features of %d of %d images", self._cache.folder, n_found, len(self.features))
    if n_found and hosts.n_processes() > 1:
      bits_nxE = np.zeros(self.features.shape, np.uint32)
      for block in self._own:
        bits_nxE[self._rows(block)] = self.features[self._rows(block)].view(np.uint32)
      self.features = np.array(hosts.merged(bits_nxE)).view(np.float32)

  def _write(self, block: int) -> None:
    try:
      self._cache.keep(self._key(block), self.features[self._rows(block)])
    except RunFolderWriteError as error:
      log.warning("%s; the next start computes these features again", error)
      self._own = range(0)

  def _rows(self, block: int) -> slice:
    return slice(block * _BLOCK, min((block + 1) * _BLOCK, len(self.features)))

  def _key(self, block: int) -> str:
    rows = self._rows(block)
    keys, labels = np.asarray(self._source.keys)[rows], np.asarray(self._source.labels)[rows]
    return fingerprint([self._common, "\0".join(map(str, keys.tolist())), labels])


def _common_key(encoder: Encoder, source: Source) -> str:
  """Part of the key of every file."""
  version = source.preparation if isinstance(source, StoredImages) else PREPROCESSING_VERSION
  preparation = f"{version}, {encoder.clip.image_size} pixels"
  names = "\0".join(source.names)
  return fingerprint([encoder.image_fingerprint, preparation, names, _first_content(source)])


def _processes_that_see(cache: ArrayCache) -> list[int]:
  """The first process, and those that see the folder that it creates."""
  seen = False
  if hosts.is_first():
    try:
      cache.create()
      seen = True
    except RunFolderWriteError as error:
      log.warning("%s; features of images are not stored", error)
  # The others look once it is there.
  created = hosts.from_first(seen, "the folder of features")
  seen = created and (hosts.is_first() or is_bucket(cache.folder) or is_dir(cache.folder))
  return [index for index, (_, one) in enumerate(hosts.gather(seen, "who sees it")) if one]


def _first_content(source: Source) -> np.ndarray:
  """Content of the first image, which tells data sets with the same keys apart."""
  if not isinstance(source, StoredImages):
    return source.images(np.arange(1))
  try:
    return np.frombuffer(source.encoded(0), np.uint8)
  except ImageError:
    return np.zeros(0, np.uint8)
