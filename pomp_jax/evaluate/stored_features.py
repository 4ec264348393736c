"""Features of evaluation images in a folder, so that a restart computes only what is missing.

Process 0 reads and writes the folder. Images that could not be read are computed again at each
start, and so are damaged blocks.

Shapes: n images of a source, b of a batch, E embedding.
"""

import logging
from typing import Any

from jaxtyping import Float
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.images import PREPROCESSING_VERSION, ImageError
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.features import DamagedFeaturesError, Features
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import RunFolderWriteError

log = logging.getLogger(__name__)

_NO_END = 7 * 86_400.0  # s


class StoredFeatures:
  """Features of the images of one source: those that a folder has, and those that are added.

  All processes create it together, and add the same features. `features` are float32 [n,E], NaN in
  the rows that are `missing`, the ascending indices of the images to compute.
  """

  def __init__(self, store: Path | None, encoder: Encoder, source: Source):
    """Reads what the folder `store` has. Without it, or `source.keys`, nothing is stored."""
    shape = len(source), encoder.clip.config.projection_dim
    self.features = np.full(shape, np.nan, np.float32)
    self._stored: Features | None = None
    if store is not None and hasattr(source, "keys"):
      if hosts.is_first():
        self._open(store, encoder, source)
      found = bool(np.isfinite(self.features).any())
      # Process 0 may read for long.
      found = hosts.from_first(found, "whether features are stored", seconds=_NO_END)
      if found and hosts.n_processes() > 1:
        bits_nxE = self.features.view(np.uint32) * np.uint32(hosts.is_first())
        self.features = np.array(hosts.merged(bits_nxE)).view(np.float32)
    self.missing = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
    self._n_added = self._n_written = 0

  def add(self, features_bxE: Float[np.ndarray, "b E"]) -> None:
    """Adds the features of the next images of `missing`; those of unreadable ones are NaN.

    Writes the blocks that are complete now. A failure is one warning.
    """
    end = self._n_added + len(features_bxE)
    self.features[self.missing[self._n_added : end]] = features_bxE
    self._n_added = end
    stored = self._stored
    if stored is None:
      return
    if end < len(self.missing):
      # Without the block of the next image.
      next_block = stored.rows(int(self.missing[end]) // stored.block_size)
      end = int(np.searchsorted(self.missing, next_block.start))
    added = self.missing[self._n_written : end]
    self._n_written = end
    # A block whose images are unreadable still would be the same again.
    read = added[np.isfinite(self.features[added, 0])]
    try:
      for block in np.unique(read // stored.block_size).tolist():
        stored.write(block, self.features[stored.rows(block)][:, None])
    except RunFolderWriteError as error:
      log.warning("%s; the next start computes these features again", error)
      self._stored = None

  def _open(self, store: Path, encoder: Encoder, source: Source) -> None:
    made_from = {"image_tower": encoder.image_fingerprint} | images_key(source, encoder)
    folder = store / fingerprint([repr(sorted(made_from.items()))])[:32]
    n_images, width = self.features.shape
    stored = Features(folder, (n_images, 1, width), made_from, together=(n_images, 1))
    try:
      stored.create()
      for block in stored.stored():
        if (found := stored.find(block)) is not None:
          self.features[stored.rows(block)] = found[:, 0]
    except (RunFolderWriteError, DamagedFeaturesError) as error:
      log.warning("%s; features of images are not stored", error)
    else:
      self._stored = stored
    n_found = np.isfinite(self.features[:, 0]).sum()
    if n_found:
      log.info("%s: features of %d of %d images", folder, n_found, n_images)


def images_key(source: Source, encoder: Encoder) -> dict[str, Any]:
  """What features of a source depend on beside the image tower and the augmentation."""
  stored = isinstance(source, StoredImages)
  keys = "\0".join(map(str, np.asarray(getattr(source, "keys", ())).tolist()))
  # The content of the first image tells data sets with the same keys apart.
  try:
    first = np.frombuffer(source.encoded(0), np.uint8) if stored else source.images(np.arange(1))
  except ImageError:
    first = np.zeros(0, np.uint8)
  images = ["\0".join(source.names), keys, np.asarray(source.labels), first]
  return {
    "images": fingerprint(images),
    "preparation": source.preparation if stored else PREPROCESSING_VERSION,
    "image_size": encoder.clip.image_size,
  }
