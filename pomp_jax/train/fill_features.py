"""Computes the features of the training images once, for `data.features="stored"`.

Each process computes its own blocks; a restart resumes with the block that was
interrupted. Memory holds the block that is being computed and the pixels of a few parts
of it.
"""

from collections.abc import Iterable, Mapping
import itertools
import logging
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Clip, Data
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.data.unreadable import SkippedImages, name_of
from pomp_jax.data.views import views
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.features import Features, FeatureStoreError
from pomp_jax.files.run_folder import RunFolder, read_json, write_json
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.train import batches

log = logging.getLogger(__name__)

_NO_END = 7 * 86_400.0  # s


def fill_features(
  data: Data, clip: Clip, folder: RunFolder, source: Source, encoder: Encoder
) -> None:
  """Computes what the stored features lack, if `data` has any; all processes call it
  together.

  CorruptDataError if too many images can't be read, over all processes and starts;
  DamagedFeaturesError or RunFolderWriteError for a file.

  Args:
    data: `config.data`.
    clip: `config.clip`, opened anew where processes work at their own pace.
    folder: folder of the run.
    source: training images.
    encoder: CLIP on the devices of all processes.
  """
  if data.features != "stored":
    return
  features = batches.open_features(data, source, encoder, folder)
  missing = None
  if hosts.is_first():
    features.create()
    missing = features.to_compute()
  # One list for all: a network's file system may show each of them another.
  missing = hosts.from_first(missing, "the features that are missing", seconds=_NO_END)
  mine = missing[jax.process_index() :: jax.process_count()]
  start = time.monotonic()
  if missing and hosts.n_processes() > 1:
    # Each process works at its own pace, which no collective allows.
    encoder = opening.open_encoder(clip, devices=hosts.devices(local=True))
  _fill(data, features, mine, source, encoder)
  for _ in range(len(mine), -(-len(missing) // jax.process_count())):
    # As often as the process with the most blocks.
    hosts.raise_if_preempted()
  # However long the slowest takes: heartbeats tell whether it still lives.
  hosts.gather(None, "the end of the others' work", seconds=_NO_END)
  seconds = time.monotonic() - start
  # One process reads all that any start has met.
  unreadable = features.complete() if hosts.is_first() else None
  unreadable = hosts.from_first(
    unreadable, "the images that can't be read", seconds=_NO_END
  )
  SkippedImages(source, data.max_corrupt).note(unreadable)
  n_computed = features.shape[1] * sum(map(features.size, missing))
  if n_computed and hosts.is_first():
    log.info(
      "%s: %d features of training images computed in %.1f s",
      features.folder,
      n_computed,
      seconds,
    )


def check_same_images(folder: RunFolder, made_from: Mapping[str, Any]) -> None:
  """FeatureStoreError unless features are `made_from` the same as at the run's first
  start."""
  path = folder.path / "training_images.json"
  if not path.exists():
    write_json(path, made_from)
    return
  stored = read_json(path)
  for field, needed in made_from.items():
    # a run of another version may lack the field
    if stored.get(field, needed) != needed:
      changed = "the CLIP or its preparation changed"
      if field == "images":
        changed = "features of a file changed, or images were added, removed or renamed"
      raise FeatureStoreError(
        f"{path}: {field} is {printable(repr(stored.get(field)))}, this start needs {needed!r}:"
        f" {changed}; start another --workdir, or restore them"
      )


class _Part(NamedTuple):
  """Some images of a block in one epoch: what is read, and encoded, at once."""

  block: int
  epoch: int
  indices: np.ndarray  # [b], of the images


class _Views(NamedTuple):
  """The views of a part, as the reader returns them."""

  part: _Part
  versions: np.ndarray  # int [b,V], place of each view among the R versions of an image
  pixels: np.ndarray  # uint8 [b,V,S,S,3]
  readable: np.ndarray  # bool [b]


def _fill(
  data: Data, features: Features, mine: list[int], source: Source, encoder: Encoder
) -> None:
  """Computes and writes blocks, one after the other.

  Args:
    data: `config.data`, with the augmentation and the limit of unreadable images.
    features: array that the blocks are written to.
    mine: blocks of this process.
    source: training images.
    encoder: CLIP that computes the features.

  Raises:
    RunFolderWriteError: a block can't be written.
    Preempted: the run was asked to stop; finished blocks are written.
  """
  augmentation = batches.augmentation(data)
  size = encoder.clip.image_size
  images_at_once = max(1, batches.VIEWS // augmentation.n_views)
  parts: list[_Part] = []
  for block in mine:
    rows = features.rows(block)
    for epoch in range(augmentation.n_epochs):
      for start in range(rows.start, rows.stop, images_at_once):
        stop = min(start + images_at_once, rows.stop)
        parts.append(_Part(block, epoch, np.arange(start, stop)))

  def read(number: int) -> _Views:
    part = parts[number]
    epochs = np.full(len(part.indices), part.epoch)
    pixels, readable = views(source, part.indices, epochs, augmentation, size)
    return _Views(part, augmentation.versions(epochs), pixels, readable)

  part_bytes = 0  # nothing is decoded
  if isinstance(source, StoredImages):
    part_bytes = 3 * size**2 * images_at_once * augmentation.n_views
  decoded: Iterable[_Views] = ()
  if parts:
    decoded = batches.read_ahead(data, len(parts), read, part_bytes=part_bytes)
  decoded = steps_of(decoded, "features of training images", "parts", len(parts))

  skipped = SkippedImages(source, data.max_corrupt)
  for block, views_of_block in itertools.groupby(decoded, lambda item: item.part.block):
    first = features.rows(block).start
    features_bxRxE = np.empty((features.size(block), *features.shape[1:]), np.float32)
    for item in views_of_block:
      row_bx1 = item.part.indices[:, None] - first
      features_bxRxE[row_bx1, item.versions] = _encoded(encoder, item)
    _note_unreadable(source, skipped, features_bxRxE, first)
    features.write(block, features_bxRxE)
    hosts.raise_if_preempted()


def _encoded(encoder: Encoder, item: _Views) -> np.ndarray:
  """Features of a part's views [b,V,E], of any length; NaN for unreadable images."""
  pixels = item.pixels
  flat = pixels.reshape(-1, *pixels.shape[2:])
  flat_features = encoder.image_features(flat, unit=False)
  features_bxVxE = flat_features.reshape(*item.versions.shape, -1)
  features_bxVxE[~item.readable] = np.nan
  return features_bxVxE


def _note_unreadable(
  source: Source, skipped: SkippedImages, features_bxRxE: np.ndarray, first: int
) -> None:
  """Warns of the unreadable images of a block, and counts them.

  They count as soon as this process knows of them. Those of other processes and of
  earlier starts are added at the end.

  Args:
    source: training images, for their names.
    skipped: counter, which raises above its limit.
    features_bxRxE: features of the block.
    first: index of the block's first image.
  """
  is_unreadable_b = np.isnan(features_bxRxE[:, 0, 0])
  indices = (np.flatnonzero(is_unreadable_b) + first).tolist()
  for index in indices:
    name = name_of(source, index)
    log.warning("%s: can't be read; another image stands in for it", name)
  skipped.note(indices)
