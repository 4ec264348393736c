"""TFDS's labels in terms of ours.

TFDS numbers some classes in another order (Caltech101, Food101), keeps two that CoOp leaves out
(Caltech101), and labels ImageNet-A and -R with the 1,000 classes of ImageNet-1K.
"""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

from jaxtyping import Int32
import numpy as np

from pomp_jax.data.vocabularies import class_list
from pomp_jax.data.vocabulary import VocabularyError

_FOLDER = pathlib.Path(__file__).with_name("tfds")


@dataclasses.dataclass(frozen=True)
class TfdsLabels:
  """What the labels of a TFDS data set mean.

  Attributes:
    builder: the data set's name in TFDS.
    labels: T label names, as `info.features["label"].names` has them.
    classes: index into the class list of each label; -1 where the list leaves the class out, and
      its images are to be left out too.
  """

  builder: str
  labels: tuple[str, ...]
  classes: Int32[np.ndarray, " T"]

  def check(self, labels: Sequence[str]) -> None:
    """Refuses a data set whose labels are others, as a later release of TFDS might have.

    Raises:
      VocabularyError: the names differ from `labels`.
    """
    if len(labels) != len(self.labels):
      raise VocabularyError(
        f"TFDS's {self.builder} has {len(labels)} labels; {len(self.labels)} are known"
      )
    for index, (found, known) in enumerate(zip(labels, self.labels, strict=True)):
      if found != known:
        raise VocabularyError(
          f"TFDS's {self.builder}: label {index} is {found!r}; {known!r} is known"
        )


@functools.cache
def load_tfds_labels(name: str) -> TfdsLabels:
  """How TFDS labels the data set of one of `CLASS_LISTS`.

  Raises:
    VocabularyError: no such list, or TFDS has no such data set.
  """
  classes = class_list.load_class_list(name)
  builder = class_list.tfds_builder(name)
  if builder is None:
    raise VocabularyError(f"TFDS has no data set for the class list {name!r}")
  if classes.synsets is not None:
    own: Sequence[str] = classes.synsets
    labels = class_list.load_class_list("imagenet1k").synsets
    names: Sequence[str] = labels
  else:
    own = classes.names
    labels, names = class_list.read_table(_FOLDER / f"{name}.tsv")
  index_of = {own_name: index for index, own_name in enumerate(own)}
  indices = np.array([index_of.get(name, -1) for name in names], np.int32)
  indices.flags.writeable = False  # one array for all callers
  return TfdsLabels(builder, labels, indices)
