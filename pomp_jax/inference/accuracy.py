"""Accuracy of several prompts on several splits, over all classes of each.

Shapes: N classes of a split, n images of it, E embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.loader import SkippedImages, ordered_batches
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.progress import steps_of
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.inference.classify import check_finite, topk_accuracy
from pomp_jax.inference.metrics import Accuracy
from pomp_jax.inference.scoring import own_rows, place
from pomp_jax.prompt.step import CLASS, DATA

# Images rendered or decoded at a time, over all processes.
_BATCH = 256


class SplitFeatures(NamedTuple):
  """A split as an evaluation sees it: the n images of its source that can be read.

  Attributes:
    names: its classes, N.
    labels: the class of each image.
    features: unit image features.
    indices: which images of the source they are, ascending.
  """

  names: tuple[str, ...]
  labels: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "n E"]
  indices: Int[np.ndarray, " n"]


def split_features(
  encoder: Encoder, source: Source, *, threads: int = 2, max_corrupt: float = 0.0
) -> SplitFeatures:
  """Features of the images of a split; each process decodes those of its own devices.

  An image that can't be read is left out, with one warning for all of them.

  Args:
    encoder: the CLIP, on the devices of all processes.
    source: the images; the same list in every process.
    threads: that read ahead.
    max_corrupt: share of the images that may be unreadable; one always may, unless this is 0.

  Raises:
    CorruptDataError: more images can't be read.
    EvaluationError: features that are not finite: the CLIP's weights, or its compute type.
    Preempted: there are several processes, and one was asked to stop (SIGTERM).
  """
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  n_devices = encoder.mesh.size
  size = n_devices * -(-min(_BATCH, len(source)) // n_devices)
  rows = NamedSharding(encoder.mesh, P((DATA, CLASS)))
  own = own_rows(rows, size)
  computed, skipped = [], SkippedImages(source, max_corrupt)
  read = ordered_batches(source, batch_size=size, rows=own, threads=threads)
  n_batches = -(-len(source) // size)
  for _, images, reasons in steps_of(read, "features of images", "batches", n_batches):
    skipped.add(reasons)
    features_BxE = encoder.features_of_images(place(images, own, size, rows))
    # Fetched one batch late, so that the device has the next to work on meanwhile.
    if computed:
      computed[-1] = np.asarray(computed[-1])
    computed.append(features_BxE)
    hosts.raise_if_preempted()
  features = np.concatenate([np.asarray(part) for part in computed])[: len(source)]
  skipped.gather()
  kept = np.delete(np.arange(len(source)), list(skipped.reasons))
  features, labels = features[kept], np.asarray(source.labels)[kept]
  check_finite(features, "images")
  return SplitFeatures(tuple(source.names), labels, features, kept)


def evaluate(
  encoder: Encoder, splits: Mapping[str, SplitFeatures], prompts: Mapping[str, Prompt | str]
) -> dict[str, dict[str, Accuracy]]:
  """Top-1 and top-5 of every prompt on every split, over all classes of the split.

  The splits may share classes: the features of each class are computed once a prompt.

  Args:
    encoder: the CLIP.
    splits: by name.
    prompts: by name, learned or hand-written. A class-specific one only fits splits that have
      exactly the classes of its training.

  Returns:
    {split: {prompt: {"images": .., "top1": .., "top1_interval": .., "top5": ..}}}.
  """
  row = {}
  for split in splits.values():
    for name in split.names:
      row.setdefault(name, len(row))
  results: dict[str, dict[str, Accuracy]] = {name: {} for name in splits}
  for prompt_name, prompt in prompts.items():
    class_features = encoder.class_features(list(row), prompt)
    for split_name, split in splits.items():
      own = class_features[[row[name] for name in split.names]]
      results[split_name][prompt_name] = topk_accuracy(split.features, own, split.labels)
  return results
