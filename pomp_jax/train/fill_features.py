"""Computes the features of the training images once, for `data.features="stored"`.

Each process computes its own blocks; a restart resumes with the block that was
interrupted. Memory holds the block that is being computed and the pixels of a few parts
of it.
"""

from collections.abc import Mapping
import itertools
import logging
import time
from typing import Any

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


def _fill(
  data: Data, features: Features, mine: list[int], source: Source, encoder: Encoder
) -> None:
  """Computes and writes blocks, one after the other, from parts of the views of
  their images."""
  shown, size = batches.augmentation(data), encoder.clip.image_size
  at_a_time = max(1, batches.VIEWS // shown.n_views)
  parts = [
    (block, epoch, np.arange(start, min(start + at_a_time, features.rows(block).stop)))
    for block in mine
    for epoch in range(shown.n_epochs)
    for start in range(features.rows(block).start, features.rows(block).stop, at_a_time)
  ]

  def read(
    number: int,
  ) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # Block, epoch, indices, versions, pixels, and which images could be read.
    _, epoch, indices = parts[number]
    epochs = np.full(len(indices), epoch)
    return (
      *parts[number],
      shown.versions(epochs),
      *views(source, indices, epochs, shown, size),
    )

  n_bytes = (
    3 * size**2 * at_a_time * shown.n_views if isinstance(source, StoredImages) else 0
  )
  decoded = (
    batches.read_ahead(data, len(parts), read, part_bytes=n_bytes)
    if parts
    else iter(())
  )
  decoded = steps_of(decoded, "features of training images", "parts", len(parts))
  skipped = SkippedImages(source, data.max_corrupt)
  for block, of_block in itertools.groupby(decoded, key=lambda part: part[0]):
    first = features.rows(block).start
    found_bxRxE = np.empty((features.size(block), *features.shape[1:]), np.float32)
    for _, _, rows, versions, pixels, readable in of_block:
      flat = pixels.reshape(-1, *pixels.shape[2:])
      found = encoder.image_features(flat, unit=False).reshape(*versions.shape, -1)
      found[~readable] = np.nan
      found_bxRxE[rows[:, None] - first, versions] = found
    damaged = (np.flatnonzero(np.isnan(found_bxRxE[:, 0, 0])) + first).tolist()
    for index in damaged:
      log.warning(
        "%s: can't be read; another image stands in for it", name_of(source, index)
      )
    # As soon as this process knows; the others' and earlier starts' are added at the
    # end.
    skipped.note(damaged)
    features.write(block, found_bxRxE)
    hosts.raise_if_preempted()
