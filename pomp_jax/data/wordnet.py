"""WordNet's is-a relations from ImageNet's classes up to the root `entity`.

The relations are an acyclic graph: a synset may have several parents, as a dog is a
canine and a domestic animal. Shapes: n nodes, in the order of their ids, N classes.
"""

from collections.abc import Sequence
import functools

from jaxtyping import Int32
import numpy as np

from pomp_jax.data.class_lists import SYNSETS, VocabularyError, read_table


class Tree:
  """An acyclic is-a graph with one root."""

  def __init__(
    self, ids: Sequence[str], names: Sequence[str], parents: Sequence[Sequence[str]]
  ):
    """Builds the graph from n nodes.

    Args:
      ids: WordNet ids, sorted.
      names: first lemma of each synset.
      parents: WordNet ids of each node's parents; the root has none.
    """
    self.ids = tuple(ids)
    self.names = tuple(names)
    self._node_of = {synset: node for node, synset in enumerate(self.ids)}
    self.parents = tuple(self.nodes(row) for row in parents)
    self.root = next(node for node, above in enumerate(self.parents) if not len(above))

  def __len__(self) -> int:
    return len(self.ids)

  def nodes(self, synsets: Sequence[str]) -> Int32[np.ndarray, " N"]:
    """Node numbers of N WordNet ids; VocabularyError for an unknown id."""
    try:
      return np.array([self._node_of[synset] for synset in synsets], np.int32)
    except KeyError as error:
      raise VocabularyError(
        f"synset {error.args[0]} is unknown ({len(self)} synsets)"
      ) from error

  @functools.cached_property
  def ancestors(self) -> tuple[np.ndarray, ...]:
    """Ancestors of each node, including the node itself: int32, ascending."""

    @functools.cache
    def ancestors_of(node: int) -> frozenset[int]:
      parents = self.parents[node].tolist()
      return frozenset((node,)).union(*map(ancestors_of, parents))

    nodes = range(len(self))
    return tuple(np.array(sorted(ancestors_of(node)), np.int32) for node in nodes)

  @functools.cached_property
  def depth(self) -> Int32[np.ndarray, " n"]:
    """Edges on the shortest path to the root."""

    @functools.cache
    def depth_of(node: int) -> int:
      parents = self.parents[node].tolist()
      return min((depth_of(parent) + 1 for parent in parents), default=0)

    return np.array([depth_of(node) for node in range(len(self))], np.int32)


@functools.cache
def load_tree() -> Tree:
  """Loads the packaged tree of 23,547 synsets.

  21,842 of them are classes of ImageNet-21K or -1K.
  """
  ids, names, parents = read_table(SYNSETS.with_name("wordnet_hypernyms.tsv"))
  return Tree(ids, names, [row.split() for row in parents])
