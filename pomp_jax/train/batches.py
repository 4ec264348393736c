"""What a training step is fed with, as `config.data` says: views of images, or their features.

`data.features="online"` renders or decodes images and the step computes their features;
`"cached"` reads what the job `cache` has computed. Both show the same views in the same order.
"""

from collections.abc import Iterator
import functools
import os

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax import hosts
from pomp_jax.config import METHODS, Settings
from pomp_jax.config.fields import Data
from pomp_jax.data.images import PREPROCESSING_VERSION, RESIZER
from pomp_jax.data.loader import Fetch, Loader
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.data.views import Augmentation, CachedViews, views
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import FeatureBlocks, FeatureCacheError, fingerprint
from pomp_jax.prompt.mesh import DATA


def augmentation(data: Data) -> Augmentation:
  """How `config.data` shows training images."""
  return Augmentation(data.augment, data.views, data.augment_seed, data.view_epochs, data.crop_area)


def open_features(data: Data, source: Source, encoder: Encoder) -> FeatureBlocks:
  """The folder `data.feature_cache` of features of the training images, filled or not.

  Raises:
    FeatureCacheError: what is there is no cache, or one of other images, views or another CLIP.
  """
  shown = augmentation(data)
  keys = source.keys.tolist() if isinstance(source, StoredImages) else []
  images = fingerprint(["\0".join(source.names), "\0".join(keys), np.asarray(source.labels)])
  # What is not drawn has no seed and no crops.
  drawn = data.augment != "none"
  return FeatureBlocks(
    data.feature_cache,
    n_images=len(source),
    n_versions=shown.n_epochs * shown.n_views,
    width=encoder.clip.config.projection_dim,
    made_from={
      "image_tower": encoder.image_fingerprint,
      "source": data.source,
      "images": images,
      "augment": data.augment,
      "views": data.views,
      "epochs": shown.n_epochs,
      "augment_seed": data.augment_seed if drawn else None,
      "crop_area": data.crop_area if drawn else None,
      "preparation": PREPROCESSING_VERSION if isinstance(source, StoredImages) else None,
      "resizer": RESIZER if drawn else None,
    },
  )


def open_fetch(data: Data, source: Source, encoder: Encoder) -> Fetch:
  """What `Loader` reads the training images by.

  Raises:
    FeatureCacheError: a cache that is of something else, or not complete.
  """
  if data.features == "cached" and not data.feature_cache:
    return functools.partial(_noise, data.views, encoder.clip.config.projection_dim)
  if data.features == "online":
    size = encoder.clip.image_size
    return functools.partial(_views, source, augmentation=augmentation(data), size=size)
  blocks = open_features(data, source, encoder)
  missing = blocks.missing()
  if missing:
    raise FeatureCacheError(
      f"{data.feature_cache}: {len(missing)} of {blocks.n_blocks} blocks are missing; the same"
      " config with config.job='cache' computes them"
    )
  return CachedViews(blocks, augmentation(data))


def _views(source, indices, epochs, *, augmentation, size):
  return views(source, indices, epochs, augmentation, size)


def _noise(n_views, width, indices, epochs):
  # A dry run has no cache: features that are made up as its data is.
  shape = (len(indices), n_views, width)
  return np.random.default_rng(indices).standard_normal(shape, np.float32), np.ones(shape[0], bool)


def open_batches(
  config: Settings,
  source: Source,
  fetch: Fetch,
  mesh: Mesh,
  *,
  start: int = 0,
  unreadable: frozenset[int] = frozenset(),
) -> Loader:
  """This process's part of the batches, from batch `start` on; see `data.loader`."""
  data = config.data
  return Loader(
    source,
    fetch,
    batch_size=config.batch_size,
    seed=config.seed,
    n_views=data.views,
    start=start,
    shard=own_part(mesh),
    threads=data.threads,
    workers=data.workers,
    max_corrupt=data.max_corrupt,
    unreadable=unreadable,
  )


def input_remedy(config: Settings, n_cores: int | None = None) -> str:
  """What can speed this run's input up, for a run whose devices wait for it.

  Args:
    config: of the run.
    n_cores: CPU cores of this machine; counted if None.
  """
  data, n_cores = config.data, n_cores or os.cpu_count() or 1
  remedies = []
  if data.threads * max(data.workers, 1) < n_cores:
    remedies.append(
      f"more config.data.threads (now {data.threads}) or config.data.workers (now {data.workers})"
      f" use more of the {n_cores} cores"
    )
  if data.features == "online" and not METHODS[config.method].pixels:
    bounded = data.augment == "none" or data.view_epochs
    more = "" if bounded else " and config.data.view_epochs above 0"
    remedies.append(f"features can be computed once (config.job='cache'{more})")
  return "; ".join(remedies) or f"all {n_cores} cores are in use: a machine with more would help"


def own_part(mesh: Mesh) -> tuple[int, int]:
  """Which part of a batch, of how many, this process's devices take; see `parts`."""
  return parts(mesh)[jax.process_index()]


def parts(mesh: Mesh) -> dict[int, tuple[int, int]]:
  """Which part of a batch, of how many equal ones, the devices of each process take.

  Processes whose devices split the classes of the same images take the same part. Empty where that
  is not all there is to it: where processes share some of their rows, or have not equally many.
  """
  rows: dict[int, set[int]] = {}
  for (row, _), device in np.ndenumerate(mesh.devices):
    rows.setdefault(device.process_index, set()).add(row)
  sizes, n_rows = {len(of_process) for of_process in rows.values()}, mesh.shape[DATA]
  found = {}
  for process, of_process in rows.items():
    size, first = len(of_process), min(of_process)
    if len(sizes) > 1 or first % size or max(of_process) != first + size - 1:
      return {}
    found[process] = first // size, n_rows // size
  return found


def on_devices(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict]:
  """The batches on the mesh, each sent while the step before it is being computed."""
  rows = NamedSharding(mesh, P(DATA))

  def send(batch):
    return {
      name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()
    }

  # Steps are only started, not waited for: the copy runs beside the one before.
  return map(send, batches)


def unreadable_anywhere(found: set[int]) -> list[int]:
  """The unreadable images that the processes met; all processes call it together."""
  return sorted(
    {i for _, theirs in hosts.gather(sorted(found), "unreadable images") for i in theirs}
  )
