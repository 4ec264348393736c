"""Fills the cache of the training images' features: the job `cache`, and `data.features="once"`.

The image tower is frozen, so it computes V views of each image in each of `data.view_epochs` epochs
only once. Each process computes its own blocks, and a restart resumes with the block that was
interrupted. Memory holds the block that is being computed and the pixels of a few parts of it.
"""

from collections.abc import Iterator
import itertools
import logging
import time
from typing import NamedTuple

import jax
import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.config import Settings
from pomp_jax.config.fields import Data
from pomp_jax.data.loader import check_unreadable, name_of
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.data.views import views
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import FeatureBlocks
from pomp_jax.files.terminal import Progress
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import batches

log = logging.getLogger(__name__)

_NO_END = 7 * 86_400.0  # s


class Filled(NamedTuple):
  """What it took to complete a cache."""

  n_computed: int  # features, of all processes
  seconds: float
  unreadable: list[int]  # indices of images, whichever start met them


def fill_once(data: Data, config: Settings, source: Source, encoder: Encoder) -> None:
  """Computes what `data.feature_cache` lacks, before a training with `data.features="once"`.

  All processes call it together. Errors as `fill`'s.

  Args:
    data: `batches.with_cache_of_run`'s.
    config: config of the run, for the CLIP of each process where there are several.
    source: training images.
    encoder: CLIP on the devices of all processes.
  """
  if hosts.n_processes() > 1:
    # Each process works at its own pace, which no collective allows.
    encoder = inputs.open_encoder(config, local_mesh())
  filled = fill(data, batches.open_features(data, source, encoder), source, encoder)
  if filled.n_computed and hosts.is_first():
    log.info(
      "%s: %d features of training images computed in %.1f s",
      *(data.feature_cache, filled.n_computed, filled.seconds),
    )


def local_mesh() -> jax.sharding.Mesh:
  """Mesh of this process's devices."""
  return make_mesh(devices=jax.local_devices())


def fill(data: Data, blocks: FeatureBlocks, source: Source, encoder: Encoder) -> Filled:
  """Computes the blocks that are missing or damaged; all processes call it together.

  Args:
    data: `config.data`.
    blocks: the cache.
    source: training images.
    encoder: CLIP on this process's devices.

  Raises:
    FeatureCacheError: the folder holds something else.
    DamagedBlockError: a block can't be read once all are computed.
    CorruptDataError: more images than `data.max_corrupt` allows can't be read, whichever process
      or start met them; the blocks stay.
    RunFolderWriteError: a file can't be written.
    Preempted: one of several processes was asked to stop.
  """
  # All processes have opened what is there before one of them adds to it.
  hosts.gather(None, "the cache's folder")
  missing = None
  if hosts.is_first():
    blocks.create()
    missing = blocks.to_compute()
  # One list for all: a network's file system may show each of them another. All that is there is
  # read first.
  missing = hosts.from_first(missing, "the blocks that are missing", seconds=_NO_END)
  mine = missing[jax.process_index() :: jax.process_count()]
  start = time.monotonic()
  _fill(data, blocks, mine, source, encoder)
  for _ in range(len(mine), -(-len(missing) // jax.process_count())):
    # As often as the process with the most blocks.
    hosts.raise_if_preempted()
  # However long the slowest takes: whether it still lives is for the heartbeats to say.
  hosts.gather(None, "the end of the others' work", seconds=_NO_END)
  seconds = time.monotonic() - start
  # Of the whole cache, whoever found it and when; that reads all of it, so one process does.
  unreadable = blocks.unreadable().tolist() if hosts.is_first() else None
  unreadable = hosts.from_first(unreadable, "the images that can't be read", seconds=_NO_END)
  check_unreadable(source, unreadable, data.max_corrupt)
  n_computed = sum(len(blocks.indices(block)) for block in missing) * blocks.n_versions
  return Filled(n_computed, seconds, unreadable)


def _fill(
  data: Data, blocks: FeatureBlocks, mine: list[int], source: Source, encoder: Encoder
) -> None:
  """Computes and writes blocks, one after the other."""
  unreadable: list[int] = []
  total = sum(len(blocks.indices(block)) for block in mine) * blocks.n_versions
  done = 0
  decoded = _decoded(data, blocks, mine, source, encoder.clip.image_size)
  with Progress(total, description="features", unit="features") as progress:
    for block, parts in itertools.groupby(decoded, key=lambda part: part[0]):
      indices = blocks.indices(block)
      features = np.empty((len(indices), blocks.n_versions, blocks.width), np.float32)
      for _, rows, versions, pixels, readable in parts:
        flat = pixels.reshape(-1, *pixels.shape[2:])
        found = encoder.image_features(flat, unit=False).reshape(*versions.shape, -1)
        found[~readable] = np.nan
        features[rows[:, None] - indices[0], versions] = found
        done += versions.size
        progress.update(done)
      damaged = np.flatnonzero(np.isnan(features[:, 0, 0])) + indices[0]
      unreadable += damaged.tolist()
      for index in damaged.tolist():
        log.warning("%s: can't be read; another image stands in for it", name_of(source, index))
      # As soon as this process knows; the others' and earlier starts' are added at the end.
      check_unreadable(source, unreadable, data.max_corrupt)
      blocks.write(block, features)
      hosts.raise_if_preempted()


def _decoded(
  data: Data, blocks: FeatureBlocks, mine: list[int], source: Source, size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
  """Block, images [B], their versions [B,V], views [B,V,S,S,3], readable [B]; in order."""
  shown = batches.augmentation(data)
  at_a_time = max(1, batches.VIEWS // shown.n_views)
  parts = [
    (block, epoch, part)
    for block in mine
    for epoch in range(shown.n_epochs)
    for indices in [blocks.indices(block)]
    for part in np.split(indices, range(at_a_time, len(indices), at_a_time))
  ]

  def read(number: int):
    block, epoch, indices = parts[number]
    epochs = np.full(len(indices), epoch)
    return block, indices, shown.versions(epochs), *views(source, indices, epochs, shown, size)

  n_bytes = 3 * size**2 * at_a_time * shown.n_views if isinstance(source, StoredImages) else 0
  return batches.read_ahead(data, len(parts), read, part_bytes=n_bytes) if parts else iter(())
