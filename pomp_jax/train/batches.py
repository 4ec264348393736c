"""Input of a training: views of images, or their features, and each process's shard.

Rendered views, decoded views and stored features come in the same order.

Shapes: n images, B images in a batch, V views of each image, E embedding.
"""

import collections
from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.config.fields import Data
from pomp_jax.data.images import RESIZER
from pomp_jax.data.loader import Fetch, Shard, choose_readers, map_ahead
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.data.views import Augmentation, stored_views, views
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.images_key import images_key
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.features import Features
from pomp_jax.files.paths import join
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.mesh import DATA

# Views that are decoded, and sent to the devices, together.
VIEWS = 256
# Images of a chunk of stored features. Reading all chunks is fast, and reading a single
# image is hardly slower than without chunks.
_TOGETHER = 8


def augmentation(data: Data) -> Augmentation:
  """Augmentation of the training images."""
  return Augmentation(
    data.augment, data.views, data.augment_seed, data.view_epochs, data.crop_area
  )


def open_features(
  data: Data, source: Source, encoder: Encoder, folder: RunFolder
) -> Features:
  """Names the stored features of the training images; the files may not exist yet.

  The folder's name is a fingerprint of everything that the features depend on, so
  runs that would compute the same features share one folder.

  Args:
    data: `config.data`.
    source: training images.
    encoder: CLIP that computes the features.
    folder: folder of the run, which holds them unless `data.feature_store` names
      another.
  """
  policy = augmentation(data)
  made_from = {
    **images_key(source, encoder),
    "augment": data.augment,
    "views": data.views,
    "epochs": policy.n_epochs,
    "augment_seed": data.augment_seed,
    "crop_area": data.crop_area,
    "resizer": RESIZER,
  }
  if data.augment == "none":
    # Nothing is drawn, so the features do not depend on seed, crop or resizer.
    for field in ("augment_seed", "crop_area", "resizer"):
      made_from[field] = None
  digest = fingerprint([repr(sorted(made_from.items()))])

  n_versions = policy.n_epochs * policy.n_views
  width = encoder.clip.config.projection_dim
  return Features(
    join(data.feature_store or folder.features, "training", digest[:32]),
    shape=(len(source), n_versions, width),
    made_from=made_from,
    together=(_TOGETHER, policy.n_views),
  )


def open_fetch(
  data: Data, source: Source, encoder: Encoder, folder: RunFolder
) -> Fetch:
  """Chooses how `Loader` reads the training images: features of a file, stored
  features, or pixels.

  `train.fill_features` must complete stored features before the first read.

  Args:
    data: `config.data`.
    source: training images, or features of a file.
    encoder: CLIP in use. The views have the image size of this CLIP.
    folder: folder of the run.

  Returns:
    Function from indices [B] and epochs [B] to views [B,V,..] and readable [B].
  """
  if isinstance(source, FeatureSource):
    return source.views

  policy = augmentation(data)
  if data.features == "stored":
    features = open_features(data, source, encoder, folder)
    return functools.partial(stored_views, features, policy)

  # `size` must be a keyword argument: `bytes_of_view` looks it up in the partial.
  return functools.partial(
    views, source, augmentation=policy, size=encoder.clip.image_size
  )


def bytes_of_view(fetch: Fetch) -> int:
  """Size in bytes of the pixels of a view; 0 for features.

  Args:
    fetch: result of `open_fetch`, or a function with an attribute `view_bytes`.
  """
  if hasattr(fetch, "view_bytes"):
    return fetch.view_bytes
  keywords = getattr(fetch, "keywords", {})
  side = keywords.get("size", 0)
  return 3 * side**2


def read_ahead(
  data: Data, n_parts: int, read: Callable[[int], Any], *, part_bytes: int = 0
) -> Iterator[Any]:
  """Yields `read(0)`, `read(1)`, .. in order, computed ahead by threads or workers.

  Only decoding is slow enough to pay for worker processes; without it, threads read.

  Args:
    data: `config.data`, with the numbers of threads and workers.
    n_parts: number of parts to read.
    read: function of a part's number.
    part_bytes: bytes of a part's decoded pixels; 0 if `read` decodes nothing.
  """
  readers = choose_readers(
    data.threads,
    data.workers,
    decodes=part_bytes > 0,
    n_batches=n_parts,
    batch_bytes=part_bytes,
  )
  return map_ahead(read, range(n_parts), readers)


def readable_features(
  data: Data, encoder: Encoder, source: Source, folder: RunFolder
) -> SplitFeatures:
  """Computes the features of a split's readable images, or reads the stored ones of an
  earlier start.

  Args:
    data: `config.data`, with the share of images that may be unreadable.
    encoder: CLIP that computes the features.
    source: images, or features of a file.
    folder: folder of the run, which holds them unless `data.feature_store` names
      another.

  Raises:
    CorruptDataError: more than `data.max_corrupt` of the images are unreadable.
  """
  store = data.feature_store or folder.features
  return split_features(
    encoder,
    source,
    threads=data.threads,
    max_corrupt=data.max_corrupt,
    store=join(store, "evaluation"),
  )


def own_shard(mesh: Mesh) -> Shard:
  """Shard of a batch that this process reads for its devices."""
  return process_shards(mesh)[jax.process_index()]


def process_shards(mesh: Mesh) -> dict[int, Shard]:
  """Shard of a batch that each process reads for its devices.

  The rows of the mesh split a batch. Processes whose devices are on the same rows split
  the classes of the same images, so they read the same shard.

  Args:
    mesh: devices [data, class] of all processes.

  Returns:
    Shard by process. Empty if a batch can't be split in equal shards, one for each
    process: some processes have more rows than others, or share only some of them.
  """
  rows_of_process = collections.defaultdict(set)
  for (row, _), device in np.ndenumerate(mesh.devices):
    rows_of_process[device.process_index].add(row)
  rows_per_shard = max(len(rows) for rows in rows_of_process.values())
  n_shards = mesh.shape[DATA] // rows_per_shard

  shards = {}
  for process, rows in rows_of_process.items():
    index = min(rows) // rows_per_shard
    start = index * rows_per_shard
    if rows != set(range(start, start + rows_per_shard)):
      return {}
    shards[process] = Shard(index, n_shards)
  return shards


def on_devices(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict]:
  """Sends each batch to the mesh, while the previous step is computed."""
  send = functools.partial(
    jax.make_array_from_process_local_data, NamedSharding(mesh, P(DATA))
  )
  # The loop starts a step without waiting for its result, so the copy runs beside the
  # previous step.
  return (jax.tree.map(send, batch) for batch in batches)
