"""Measures the CLIP's answers on a set under prompts; one stored piece per set.

Shapes: n images, B images of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.data.source import LabelledSet, StoredImages
from pomp_jax.data.subsets import even_sample
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.class_features import classifier_under
from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.evaluate.named_prompts import AnyPrompt, describe
from pomp_jax.evaluate.ranking import tally
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.rooms.reproduce.digests import SAMPLED, chosen_rows, sketch

QUICK = 200  # images of a set in a quick run
_VERSION = "1"


class Answers:
  """Collects labels and answers in the order of the images; see `metrics.Tally`."""

  def __init__(self) -> None:
    self._labels: list[np.ndarray] = []
    self._answers: list[np.ndarray] = []

  def add(
    self,
    labels_B: Int[np.ndarray, " B"],
    answers_B: Int[np.ndarray, " B"],
    right_B: np.ndarray,
  ) -> None:
    """Adds a batch; `right_B` is not used."""
    self._labels.append(np.asarray(labels_B, np.int32))
    self._answers.append(np.asarray(answers_B, np.int32))

  def figures(self) -> dict[str, Any]:
    """`labels` and `answers`, int32 [n]."""
    return {
      "labels": np.concatenate(self._labels),
      "answers": np.concatenate(self._answers),
    }


class Measured(NamedTuple):
  """Answers under a prompt on a set."""

  labels: Int[np.ndarray, " n"]
  answers: Int[np.ndarray, " n"]  # the right class or the most similar other class
  n_classes: int
  text_sketch: list[float]  # sketch of the class features
  image_sketch: list[float]  # sketch of some images, chosen by their ids
  digest: str  # digest of labels and answers

  @property
  def n(self) -> int:
    """Number of images."""
    return len(self.labels)

  @property
  def right(self) -> int:
    """Number of right answers."""
    return int(np.sum(self.labels == self.answers))

  @property
  def top1(self) -> float:
    """Share of right answers."""
    return self.right / self.n

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson's 95% interval over the images."""
    low, high = wilson_interval(self.top1, self.n)
    return low, high


class Measurer:
  """Measures sets under prompts with one CLIP; a restart measures what is missing."""

  def __init__(
    self,
    encoder: Encoder,
    folder: Path,
    dtype: str,
    quick: bool = False,
    batch_size: int = 512,
  ):
    """Opens the store of pieces in a folder.

    Args:
      encoder: the frozen CLIP.
      folder: folder of the pieces.
      dtype: type of the computation, a part of the pieces' cache key.
      quick: whether to measure only `QUICK` images of each set.
      batch_size: images of a batch.
    """
    self._encoder = encoder
    self._folder = folder
    self._quick = quick
    self._batch_size = batch_size
    leaves = map(np.asarray, jax.tree.leaves(encoder.clip.params))
    settings = [_VERSION, dtype, encoder.clip.settings, str(quick)]
    self._clip_key = fingerprint([*settings, *leaves])

  @property
  def encoder(self) -> Encoder:
    """The frozen CLIP."""
    return self._encoder

  def sampled(self, labelled: LabelledSet) -> LabelledSet:
    """The set, or in a quick run a sample of its images."""
    source = labelled.source
    if not (self._quick and isinstance(source, StoredImages)):
      return labelled
    rows = even_sample(source.labels, source.keys, QUICK)
    return labelled._replace(source=source.subset(rows))

  def measure(
    self,
    name: str,
    digest: str,
    labelled: LabelledSet,
    prompts: Mapping[str, AnyPrompt],
  ) -> dict[str, Measured]:
    """Measures the answers on a set, or reads them from the piece; by prompt label.

    Args:
      name: name of the piece's file, from the stage and the set.
      digest: fingerprint of the set's pairs, names, content and image files.
      labelled: the whole set.
      prompts: prompts by label.
    """
    labels = list(prompts)
    parts: list[Any] = [self._clip_key, name, digest, *labels]
    for prompt in prompts.values():
      parts += describe(prompt, labelled.classes)
    pieces = Pieces(self._folder, fingerprint(parts))
    if pieces.missing([name]):
      arrays, facts = self._computed(labelled, prompts)
      if hosts.is_first():
        pieces.save(name, facts, arrays)
    piece = pieces.read(name)
    return {
      label: Measured(
        labels=piece.arrays["labels"],
        answers=piece.arrays[f"answers_{number}"],
        n_classes=piece.facts["n_classes"],
        text_sketch=piece.facts["text_sketches"][number],
        image_sketch=piece.facts["image_sketch"],
        digest=piece.facts["digests"][number],
      )
      for number, label in enumerate(labels)
    }

  def _computed(
    self, labelled: LabelledSet, prompts: Mapping[str, AnyPrompt]
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Computes the arrays and facts of a piece."""
    sample = self.sampled(labelled)
    classifiers = {
      label: classifier_under(self._encoder, labelled.classes, prompt)
      for label, prompt in prompts.items()
    }
    tallies = tally(
      self._encoder,
      sample.source,
      classifiers,
      more=Answers,
      batch_size=self._batch_size,
    )
    arrays: dict[str, np.ndarray] = {}
    digests = []
    for number, one in enumerate(tallies.values()):
      figures = one.figures()
      arrays["labels"] = figures["labels"]
      arrays[f"answers_{number}"] = figures["answers"]
      digests.append(fingerprint([figures["labels"], figures["answers"]]))
    facts = {
      "set_of": labelled.split,
      "n_classes": len(labelled.classes),
      "prompts": list(prompts),
      # A method that computes its classes from each image has no rows to sketch.
      "text_sketches": [
        sketch(one) if isinstance(one, np.ndarray) else []
        for one in classifiers.values()
      ],
      "image_sketch": self._image_sketch(labelled),
      "digests": digests,
      "right": [
        int(np.sum(arrays["labels"] == arrays[f"answers_{number}"]))
        for number in range(len(prompts))
      ],
    }
    return arrays, facts

  def _image_sketch(self, labelled: LabelledSet) -> list[float]:
    """Sketch of the features of some images of a set, chosen by their ids."""
    source = labelled.source
    if not isinstance(source, StoredImages):
      return []
    rows = chosen_rows(source, SAMPLED)
    pixels = self._encoder.sized(source).images(np.array(rows))
    return sketch(self._encoder.image_features(pixels))


def mean_of(values: Sequence[float]) -> float:
  """Mean of accuracies over sets."""
  return float(np.mean(values))
