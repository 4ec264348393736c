"""Features of a split's images, stored in a folder, so that a restart computes only the
missing features.

Process 0 reads and writes the folder. Each start tries unreadable images again, and
computes damaged blocks again.

Shapes: n images of a split, m images to compute, b images of a stored block, N classes,
B images of a batch, E embedding.
"""

from collections.abc import Iterator
import logging
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.encoder import Encoder, fetched
from pomp_jax.evaluate.image_batches import NO_LABEL, image_batches
from pomp_jax.evaluate.images_key import images_key
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.files.features import DamagedFeaturesError, Features
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import RunFolderWriteError
from pomp_jax.files.terminal import steps_of

log = logging.getLogger(__name__)

# Images that are rendered or decoded at a time, over all processes.
_BATCH = 256
# Features of a file that are read at a time.
_ROWS = 4096
_NO_END = 7 * 86_400.0  # s to wait for process 0; in effect no limit


class SplitFeatures(NamedTuple):
  """Features of the n readable images of a split."""

  names: tuple[str, ...]  # names of the N classes
  labels: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "n E"]  # unit rows
  indices: Int[np.ndarray, " n"]  # number of each image in its source, ascending


def split_features(
  encoder: Encoder,
  source: Source,
  *,
  threads: int = 2,
  max_corrupt: float = 0.0,
  store: Path | None = None,
) -> SplitFeatures:
  """Computes the features of the readable images of a split; all processes call it
  together.

  Unreadable images are dropped, with one warning.

  Args:
    encoder: CLIP that computes the features.
    source: images, the same list in every process, or features of a file.
    threads: threads that read images in each process; 0: chosen by the cores.
    max_corrupt: share of the images that may be unreadable. Any share above 0 allows
      at least one.
    store: folder of features of earlier starts; new features are added to it.

  Raises:
    CorruptDataError: too many unreadable images.
    EvaluationError: features that are not finite.
  """
  skipped = SkippedImages(source, max_corrupt)
  if isinstance(source, FeatureSource):
    return _readable(source, _of_file(source, skipped), skipped)
  shape = (len(source), encoder.clip.config.projection_dim)
  features_nxE = np.full(shape, np.nan, np.float32)
  stored = None
  if store is not None and hasattr(source, "keys"):
    if hosts.is_first():
      stored = _read(store, encoder, source, features_nxE)
    features_nxE = _from_first(features_nxE)
  missing = np.flatnonzero(~np.isfinite(features_nxE).all(axis=1))
  n_done = 0
  n_written = 0
  computed = _computed(encoder, source, skipped, threads, missing)
  for features_BxE, n_images in fetched(computed):
    indices = missing[n_done : n_done + n_images]
    features_nxE[indices] = features_BxE[:n_images]
    n_done += n_images
    if stored is not None:
      # Write only complete blocks: stop before the block of the next missing image.
      end = n_done
      if n_done < len(missing):
        next_block = stored.rows(int(missing[n_done]) // stored.block_size)
        end = int(np.searchsorted(missing, next_block.start))
      stored = _write(stored, features_nxE, missing[n_written:end])
      n_written = end
  return _readable(source, features_nxE, skipped)


def _computed(
  encoder: Encoder,
  source: Source,
  skipped: SkippedImages,
  threads: int,
  indices: Int[np.ndarray, " m"],
) -> Iterator[tuple[Float[jax.Array, "B E"], int]]:
  """Yields the features of images batch by batch, NaN for an unreadable one."""
  mark = jax.jit(_nan_where_unreadable, out_shardings=NamedSharding(encoder.mesh, P()))
  batches = image_batches(
    encoder, source, skipped, _BATCH, threads, "features of images", indices
  )
  for batch in batches:
    features = encoder.features_of_images(batch.images)
    yield mark(features, batch.labels), batch.n_images
    hosts.raise_if_preempted()


def _of_file(source: FeatureSource, skipped: SkippedImages) -> Float[np.ndarray, "n E"]:
  """Unit features of a file; adds images whose features are NaN to `skipped`."""
  features_nxE = np.empty((len(source), source.storage.width), np.float32)
  starts = range(0, len(source), _ROWS)
  for start in steps_of(starts, "reading features of images", "parts"):
    rows = np.arange(start, min(start + _ROWS, len(source)))
    part_BxE = source.features(rows)
    norm_Bx1 = np.linalg.norm(part_BxE, axis=1, keepdims=True)
    features_nxE[rows] = part_BxE / norm_Bx1
    damaged = rows[np.isnan(part_BxE[:, 0])].tolist()
    skipped.add({index: f"{source.where(index)}: was unreadable" for index in damaged})
    hosts.raise_if_preempted()
  return features_nxE


def _readable(
  source: Source, features_nxE: Float[np.ndarray, "n E"], skipped: SkippedImages
) -> SplitFeatures:
  """The features of all but the skipped images; all processes call it together."""
  skipped.gather()
  readable = np.delete(np.arange(len(source)), list(skipped.reasons))
  features = features_nxE[readable]
  check_finite(features, "images")
  return SplitFeatures(
    tuple(source.names), np.asarray(source.labels)[readable], features, readable
  )


def _nan_where_unreadable(features_BxE: jax.Array, labels_B: jax.Array) -> jax.Array:
  is_unreadable_B = labels_B == NO_LABEL
  return jnp.where(is_unreadable_B[:, None], jnp.nan, features_BxE)


def _read(
  store: Path, encoder: Encoder, source: Source, features_nxE: Float[np.ndarray, "n E"]
) -> Features | None:
  """Copies stored features into `features_nxE`, and returns the stored array.

  None, after a warning, if the folder can't be used.
  """
  made_from = images_key(source, encoder)
  folder = store / fingerprint([repr(sorted(made_from.items()))])[:32]
  n_images, width = features_nxE.shape
  shape = (n_images, 1, width)
  features = Features(folder, shape, made_from, together=(n_images, 1))
  try:
    features.create()
    for block in features.stored():
      block_features = features.find(block)
      if block_features is not None:
        features_nxE[features.rows(block)] = block_features[:, 0]
  except (RunFolderWriteError, DamagedFeaturesError) as error:
    log.warning("%s; features of images are not stored", error)
    return None
  n_stored = np.isfinite(features_nxE[:, 0]).sum()
  if n_stored:
    log.info("%s: features of %d of %d images", folder, n_stored, n_images)
  return features


def _from_first(features_nxE: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
  """Sends the features that process 0 has read to every process."""
  any_stored = bool(np.isfinite(features_nxE).any())
  # Wait without a limit: process 0 may read for long.
  any_stored = hosts.from_first(
    any_stored, "whether features are stored", seconds=_NO_END
  )
  if not any_stored or hosts.n_processes() == 1:
    return features_nxE
  # Broadcast integers: JAX adds the zeros of the other processes, which would turn the
  # float -0.0 into 0.0.
  bits_nxE = multihost_utils.broadcast_one_to_all(features_nxE.view(np.uint32))
  return np.array(bits_nxE).view(np.float32)


def _write(
  stored: Features, features_nxE: Float[np.ndarray, "n E"], added: Int[np.ndarray, " m"]
) -> Features | None:
  """Writes the blocks that hold images whose features are new.

  Args:
    stored: stored array, with one version of each image.
    features_nxE: features of all images; NaN for an unreadable one.
    added: indices of the images that were computed.

  Returns:
    The array; None, after a warning, if it can't be written.
  """
  # Skip images that are still unreadable: their blocks stay as they are.
  is_readable_m = np.isfinite(features_nxE[added, 0])
  readable = added[is_readable_m]
  blocks = np.unique(readable // stored.block_size)
  try:
    for block in blocks.tolist():
      features_bxE = features_nxE[stored.rows(block)]
      stored.write(block, features_bxE[:, None])
  except RunFolderWriteError as error:
    log.warning("%s; the next start computes these features again", error)
    return None
  return stored
