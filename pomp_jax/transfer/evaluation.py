"""Accuracy of several prompts on several splits, over all classes of each.

Shapes: N classes of a split, n images of it, E embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from pomp_jax.data.source import Source, StoredImages
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.transfer.classification import topk_accuracy
from pomp_jax.transfer.encoder import Encoder

# Images rendered or decoded at a time.
_BATCH = 1024


class SplitFeatures(NamedTuple):
  """A split as an evaluation sees it.

  Attributes:
    names: its classes, N.
    labels: the class of each image.
    features: unit image features.
  """

  names: tuple[str, ...]
  labels: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "n E"]


def split_features(encoder: Encoder, source: Source) -> SplitFeatures:
  """Features of all images of a split, computed in batches."""
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  starts = range(0, len(source), _BATCH)
  batches = (np.arange(start, min(start + _BATCH, len(source))) for start in starts)
  features = [encoder.image_features(source.images(indices)) for indices in batches]
  return SplitFeatures(tuple(source.names), np.asarray(source.labels), np.concatenate(features))


def evaluate(
  encoder: Encoder, splits: Mapping[str, SplitFeatures], prompts: Mapping[str, Prompt | str]
) -> dict[str, dict[str, dict[str, float]]]:
  """Top-1 and top-5 of every prompt on every split, over all classes of the split.

  The splits may share classes: the features of each class are computed once a prompt.

  Args:
    encoder: the CLIP.
    splits: by name.
    prompts: by name, learned or hand-written. A class-specific one only fits splits that have
      exactly the classes of its training.

  Returns:
    {split: {prompt: {"top1": .., "top5": ..}}}.
  """
  row = {}
  for split in splits.values():
    for name in split.names:
      row.setdefault(name, len(row))
  results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in splits}
  for prompt_name, prompt in prompts.items():
    class_features = encoder.class_features(list(row), prompt)
    for split_name, split in splits.items():
      own = class_features[[row[name] for name in split.names]]
      results[split_name][prompt_name] = topk_accuracy(split.features, own, split.labels)
  return results
