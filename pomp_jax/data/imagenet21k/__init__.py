"""The 21,841 classes of ImageNet-21K, fall 2011: what README.md beside this file describes."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from pomp_jax.annotations import Int32

_FILE = pathlib.Path(__file__).with_name("synsets.tsv")


class Synsets(NamedTuple):
  """One row a class, in the order of the ids.

  Attributes:
    ids: WordNet 3.0 ids, such as n02084071.
    lemmas: the synset's words, most usual first.
    lengths: tokens of "{first lemma}." and EOT under CLIP's tokenizer.
  """

  ids: tuple[str, ...]
  lemmas: tuple[tuple[str, ...], ...]
  lengths: Int32[np.ndarray, " N"]

  @property
  def names(self) -> tuple[str, ...]:
    """The first lemma of each; 20,099 are distinct ("crane" is a bird and a machine)."""
    return tuple(lemmas[0] for lemmas in self.lemmas)


@functools.cache
def load_synsets() -> Synsets:
  """Reads the table; it is part of the package, so nothing is fetched."""
  rows = [line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines()[1:]]
  ids, lemmas, lengths = zip(*rows, strict=True)
  return Synsets(
    ids, tuple(tuple(words.split(", ")) for words in lemmas), np.array(lengths, np.int32)
  )
