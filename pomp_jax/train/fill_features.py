"""Computes the features of the training images once, for `data.features="stored"`.

Each process computes its own blocks; a restart resumes with the block that was
interrupted. Memory holds the features of the current block and the pixels of a few
parts.

Shapes: n images, b images in a block, B images in a part, R versions of each image, V
views of an image in an epoch, S side of a view in pixels, E embedding.
"""

from collections.abc import Iterator, Mapping
import itertools
import logging
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Clip, Data
from pomp_jax.data.skipped_images import SkippedImages, name_of
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.data.views import DecodedPart, Part, views
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.features import Features, FeatureStoreError
from pomp_jax.files.run_folder import RunFolder, read_json, write_json
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.train import batches

log = logging.getLogger(__name__)

# Longest wait for the slowest process, in seconds; heartbeats notice a dead process.
_NO_END = 7 * 86_400.0


def fill_features(
  data: Data, clip: Clip, folder: RunFolder, source: Source, encoder: Encoder
) -> None:
  """Computes the stored features that are missing; all processes call it together.

  Does nothing unless `data.features` is "stored".

  Args:
    data: `config.data`.
    clip: `config.clip`, which each of several processes opens on its own devices.
    folder: folder of the run.
    source: training images.
    encoder: CLIP on the devices of all processes.

  Raises:
    CorruptDataError: too many images are unreadable, over all processes and starts.
    DamagedFeaturesError: stored features can't be read back.
    Preempted: the run is asked to stop; the blocks so far are stored.
    RunFolderWriteError: features can't be written.
  """
  if data.features != "stored":
    return
  features = batches.open_features(data, source, encoder, folder)
  missing = _missing_blocks(features)
  n_processes = jax.process_count()
  own_blocks = missing[jax.process_index() :: n_processes]

  start = time.monotonic()
  if missing and hosts.n_processes() > 1:
    # Each process works at its own pace, so its CLIP must not run collectives.
    encoder = opening.open_encoder(clip, devices=hosts.devices(local=True))
  _fill(data, features, own_blocks, source, encoder)
  # All processes must ask equally often whether to stop. `_fill` asks after each block,
  # so a process with fewer blocks than others asks here for the rest.
  most_blocks = -(-len(missing) // n_processes)
  for _ in range(most_blocks - len(own_blocks)):
    hosts.raise_if_preempted()
  hosts.gather(None, "the end of the others' work", seconds=_NO_END)
  seconds = time.monotonic() - start

  _note_unreadable(data, features, source)
  n_computed = features.shape[1] * sum(features.size(block) for block in missing)
  if n_computed and hosts.is_first():
    log.info(
      "%s: %d features of training images computed in %.1f s",
      features.folder,
      n_computed,
      seconds,
    )


def _missing_blocks(features: Features) -> list[int]:
  """Blocks to compute, as process 0 sees the folder.

  A network file system may show each process another listing.
  """
  missing = None
  if hosts.is_first():
    features.create()
    missing = features.to_compute()
  return hosts.from_first(missing, "the features that are missing", seconds=_NO_END)


def _note_unreadable(data: Data, features: Features, source: Source) -> None:
  """Raises CorruptDataError if processes and starts together met too many unreadable
  images.

  Process 0 reads all features to find these images.
  """
  unreadable = None
  if hosts.is_first():
    unreadable = features.complete()
  unreadable = hosts.from_first(
    unreadable, "the images that can't be read", seconds=_NO_END
  )
  SkippedImages(source, data.max_corrupt).note(unreadable)


def check_same_images(folder: RunFolder, made_from: Mapping[str, Any]) -> None:
  """Compares what the features depend on with the record of the run's first start.

  The first start writes the record, `training_images.json`.

  Args:
    folder: folder of the run.
    made_from: everything that the features depend on now, as JSON.

  Raises:
    FeatureStoreError: a field has another value than at the first start.
  """
  path = folder.path / "training_images.json"
  if not path.exists():
    write_json(path, made_from)
    return

  record = read_json(path)
  for field, value in made_from.items():
    # The record of an older version may lack the field.
    recorded = record.get(field, value)
    if recorded == value:
      continue
    if field == "images":
      changed = "features of a file changed, or images were added, removed or renamed"
    else:
      changed = "the CLIP or its preparation changed"
    raise FeatureStoreError(
      f"{path}: {field} is {printable(repr(recorded))}, this start needs {value!r}:"
      f" {changed}; start another --workdir, or restore them"
    )


def _fill(
  data: Data, features: Features, blocks: list[int], source: Source, encoder: Encoder
) -> None:
  """Computes and writes blocks, one after the other.

  Meanwhile threads or workers decode the next parts.

  Args:
    data: `config.data`.
    features: stored features, whose blocks are written.
    blocks: numbers of the blocks of this process.
    source: training images.
    encoder: CLIP on the devices of this process.

  Raises:
    CorruptDataError: this process met more unreadable images than allowed.
  """
  skipped = SkippedImages(source, data.max_corrupt)
  decoded = _decode_ahead(data, features, blocks, source, encoder.clip.image_size)
  for block, parts in itertools.groupby(decoded, key=lambda item: item.part.block):
    first = features.rows(block).start
    features_bxRxE = np.empty((features.size(block), *features.shape[1:]), np.float32)
    for part, versions_BxV, pixels_BxVxSxSx3, readable_B in parts:
      pixels_BVxSxSx3 = pixels_BxVxSxSx3.reshape(-1, *pixels_BxVxSxSx3.shape[2:])
      features_BVxE = encoder.image_features(pixels_BVxSxSx3, unit=False)
      features_BxVxE = features_BVxE.reshape(*versions_BxV.shape, -1)
      features_BxVxE[~readable_B] = np.nan
      rows_Bx1 = part.indices_B[:, None] - first
      features_bxRxE[rows_Bx1, versions_BxV] = features_BxVxE

    is_unreadable_b = np.isnan(features_bxRxE[:, 0, 0])
    unreadable = (np.flatnonzero(is_unreadable_b) + first).tolist()
    for index in unreadable:
      log.warning(
        "%s: can't be read; another image stands in for it", name_of(source, index)
      )
    # Raises as soon as this process alone has met too many unreadable images.
    # `_note_unreadable` adds those of the other processes and of earlier starts.
    skipped.note(unreadable)
    features.write(block, features_bxRxE)
    hosts.raise_if_preempted()


def _decode_ahead(
  data: Data, features: Features, blocks: list[int], source: Source, size: int
) -> Iterator[DecodedPart]:
  """Decodes the views of the blocks' images part by part, in order.

  Args:
    data: `config.data`.
    features: stored features that the blocks belong to.
    blocks: numbers of the blocks.
    source: training images.
    size: side of a view in pixels.
  """
  policy = batches.augmentation(data)
  part_size = max(1, batches.VIEWS // policy.n_views)
  parts = []
  for block in blocks:
    rows = features.rows(block)
    for epoch in range(policy.n_epochs):
      for start in range(rows.start, rows.stop, part_size):
        end = min(start + part_size, rows.stop)
        parts.append(Part(block, epoch, np.arange(start, end)))

  def read(number: int) -> DecodedPart:
    part = parts[number]
    epochs_B = np.full(len(part.indices_B), part.epoch)
    pixels, readable_B = views(source, part.indices_B, epochs_B, policy, size)
    return DecodedPart(part, policy.versions(epochs_B), pixels, readable_B)

  part_bytes = 0
  if isinstance(source, StoredImages):
    part_bytes = part_size * policy.n_views * 3 * size**2
  decoded: Iterator[DecodedPart] = iter(())
  if parts:
    decoded = batches.read_ahead(data, len(parts), read, part_bytes=part_bytes)
  return steps_of(decoded, "features of training images", "parts", len(parts))
