"""What a training reads: views of images, or their features, and which process reads
which.

Views that are rendered or decoded, and stored features, have the same order.

Shapes: n images, B of them in a batch, V views of each, E embedding.
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
from pomp_jax.data.loader import Fetch, choose_readers, map_ahead
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.data.views import Augmentation, stored_views, views
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.split_features import SplitFeatures, images_key, split_features
from pomp_jax.files.features import Features
from pomp_jax.files.paths import join
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.prompt.mesh import DATA

# Views that are decoded, and sent to the devices, together.
VIEWS = 256
# Images whose stored features are read together: of all, quickly, and of one, hardly
# more slowly.
_TOGETHER = 8


def augmentation(data: Data) -> Augmentation:
  """Augmentation of the training images."""
  return Augmentation(
    data.augment, data.views, data.augment_seed, data.view_epochs, data.crop_area
  )


def open_features(
  data: Data, source: Source, encoder: Encoder, folder: RunFolder
) -> Features:
  """Opens the stored features of the training images, whether they are there or not.

  Args:
    data: `config.data`.
    source: training images.
    encoder: CLIP that computes the features.
    folder: folder of the run, which holds them unless `data.feature_store` names another.
  """
  shown = augmentation(data)
  # Without augmentation there are no seed and no crops.
  drawn = data.augment != "none"
  made_from = {
    **images_key(source, encoder),
    "augment": data.augment,
    "views": data.views,
    "epochs": shown.n_epochs,
    "augment_seed": data.augment_seed if drawn else None,
    "crop_area": data.crop_area if drawn else None,
    "resizer": RESIZER if drawn else None,
  }
  shape = (
    len(source),
    shown.n_epochs * shown.n_views,
    encoder.clip.config.projection_dim,
  )
  key = fingerprint([repr(sorted(made_from.items()))])[:32]
  path = join(data.feature_store or folder.features, "training", key)
  return Features(path, shape, made_from, together=(_TOGETHER, shown.n_views))


def open_fetch(
  data: Data, source: Source, encoder: Encoder, folder: RunFolder
) -> Fetch:
  """Returns the function with which `Loader` reads the training images, or their stored
  features.

  `train.fill_features` completes them before the function is called.

  Args:
    data: `config.data`.
    source: training images, or features of a file.
    encoder: CLIP in use, whose image size the views have.
    folder: folder of the run.
  """
  if isinstance(source, FeatureSource):
    return source.views
  if data.features == "stored":
    features = open_features(data, source, encoder, folder)
    return functools.partial(stored_views, features, augmentation(data))
  size = encoder.clip.image_size
  return functools.partial(views, source, augmentation=augmentation(data), size=size)


def bytes_of_view(fetch: Fetch) -> int:
  """Bytes of a view: the function's `view_bytes`, or those of `open_fetch`; 0 for
  features."""
  pixels = 3 * getattr(fetch, "keywords", {}).get("size", 0) ** 2
  return getattr(fetch, "view_bytes", pixels)


def read_ahead(
  data: Data, n_parts: int, read: Callable[[int], Any], *, part_bytes: int = 0
) -> Iterator[Any]:
  """Yields `read(0)`, `read(1)`, .. in order, from threads or worker processes.

  `part_bytes` is the size of the pixels of a part, 0 if `read` decodes nothing.

  Args:
    data: `config.data`, with the numbers of threads and workers.
    n_parts: number of parts to read.
    read: function of a part's number.
    part_bytes: bytes of a part's pixels; 0 if `read` decodes nothing.
  """
  decodes = part_bytes > 0
  readers = choose_readers(
    data.threads,
    data.workers,
    decodes=decodes,
    n_batches=n_parts,
    batch_bytes=part_bytes,
  )
  return map_ahead(read, range(n_parts), readers)


def readable_features(
  data: Data, encoder: Encoder, source: Source, folder: RunFolder
) -> SplitFeatures:
  """`split_features` with the limits of `config.data`, stored for the next start.

  Args:
    data: `config.data`, with the share of images that may be unreadable.
    encoder: CLIP that computes the features.
    source: images, or features of a file.
    folder: folder of the run, which holds them unless `data.feature_store` names another.
  """
  store = join(data.feature_store or folder.features, "evaluation")
  return split_features(
    encoder, source, threads=data.threads, max_corrupt=data.max_corrupt, store=store
  )


def own_shard(mesh: Mesh) -> tuple[int, int]:
  """Shard (index, count) of a batch that this process's devices take."""
  return process_shards(mesh)[jax.process_index()]


def process_shards(mesh: Mesh) -> dict[int, tuple[int, int]]:
  """Shard (index, count) of a batch that the devices of each process take.

  Processes whose devices split the classes of the same images take the same shard.
  Empty if processes share only some of their rows, or have different numbers of rows.
  """
  rows = collections.defaultdict(set)
  for (row, _), device in np.ndenumerate(mesh.devices):
    rows[device.process_index].add(row)
  size = max(map(len, rows.values()))
  shards = {}
  for process, own in rows.items():
    index = min(own) // size
    if own != set(range(index * size, (index + 1) * size)):
      return {}
    shards[process] = index, mesh.shape[DATA] // size
  return shards


def on_devices(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict]:
  """Sends each batch to the mesh, while the previous step is computed."""
  send = functools.partial(
    jax.make_array_from_process_local_data, NamedSharding(mesh, P(DATA))
  )
  # Steps are started without waiting for them, so the copy runs beside the previous
  # step.
  return (jax.tree.map(send, batch) for batch in batches)
