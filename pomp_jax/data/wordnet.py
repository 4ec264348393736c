"""WordNet's is-a tree above ImageNet's classes, and relations of classes in it, in NumPy alone.

A synset may be of two kinds (a dog is a canine and a domestic animal), so the "tree" is an acyclic
graph with one root, `entity`. Nodes are numbered in the order of their ids.

Shapes: n nodes, E edges, A pairs of a node and an ancestor, N classes.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib

from jaxtyping import Bool, Int, Int32, Int64
import numpy as np

from pomp_jax.data.vocabulary import VocabularyError

# Node indices; two such arguments are broadcast against each other.
Nodes = Int[np.ndarray, "..."] | int | np.integer

_FILE = pathlib.Path(__file__).with_name("class_names") / "wordnet_hypernyms.tsv"
# Pairs whose ancestors are compared at a time: about 50 MB.
_CHUNK = 2**17


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of different lengths in one array.

  Attributes:
    starts: row r is values[starts[r]:starts[r + 1]].
    values: all rows, one behind the other.
  """

  starts: Int64[np.ndarray, " R_plus_1"]
  values: Int32[np.ndarray, " V"]

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, row: int | np.integer) -> Int32[np.ndarray, " v"]:
    if not 0 <= row < len(self):
      raise IndexError(f"row {row} is not one of the {len(self)}")
    return self.values[self.starts[row] : self.starts[row + 1]]

  @property
  def lengths(self) -> Int64[np.ndarray, " R"]:
    """Values in each row."""
    return np.diff(self.starts)


class Tree:
  """An acyclic is-a graph with one root.

  Attributes:
    ids: n WordNet ids, sorted.
    names: the first lemma of each node.
    parents: Ragged, n rows: nodes that each is a kind of.
    root: the node without parents.
    depth: int32 [n], edges of the shortest way up to the root.
    longest_depth: int32 [n], edges of the longest.
    ancestors: Ragged, n rows, each sorted, the node itself among them.
    ancestor_distance: int32 [A], beside `ancestors.values`: edges of the shortest way up.
  """

  def __init__(self, ids: Sequence[str], names: Sequence[str], parents: Sequence[Sequence[str]]):
    """Builds the graph; one entry a node in each argument, the parents by id.

    Raises:
      VocabularyError: ids that are not sorted, or twice; a parent that is no node; no root or
        several; a cycle.
    """
    self.ids = tuple(ids)
    self.names = tuple(names)
    if list(self.ids) != sorted(set(self.ids)):
      raise VocabularyError("the tree's ids are not sorted and distinct")
    self._node_of = {synset: node for node, synset in enumerate(self.ids)}
    lengths = np.array([len(row) for row in parents], np.int64)
    self.parents = _ragged(lengths, self.nodes([parent for row in parents for parent in row]))
    roots = np.flatnonzero(lengths == 0)
    if len(roots) != 1:
      raise VocabularyError(f"the tree has {len(roots)} nodes without parents; it needs one root")
    self.root = int(roots[0])
    self.longest_depth = self._longest_depth()
    self._keys, self.ancestor_distance = self._closure()
    self.ancestors = _grouped(self._keys, len(self.ids))
    at_root = self.ancestors.values == self.root
    self.depth = self.ancestor_distance[at_root]

  def __len__(self) -> int:
    return len(self.ids)

  def nodes(self, synsets: Sequence[str]) -> Int32[np.ndarray, " N"]:
    """The nodes of WordNet ids.

    Raises:
      VocabularyError: an id that the tree does not have.
    """
    try:
      return np.array([self._node_of[synset] for synset in synsets], np.int32)
    except KeyError as error:
      raise VocabularyError(
        f"synset {error.args[0]} is not in the tree of {len(self)} synsets"
      ) from error

  def siblings(self, class_nodes_N: Int[np.ndarray, " N"]) -> Ragged:
    """For each of N classes the others that share a parent with it: N rows of class indices.

    Args:
      class_nodes_N: the classes' nodes, distinct.
    """
    n_classes = len(class_nodes_N)
    n_parents_N = self.parents.lengths[class_nodes_N]
    child_E = np.repeat(np.arange(n_classes), n_parents_N)
    parent_E = self.parents.values[_positions(self.parents.starts[class_nodes_N], n_parents_N)]
    order = np.argsort(parent_E, kind="stable")
    child_E, parent_E = child_E[order], parent_E[order]
    # Each child stands beside all children of the same parent.
    starts_E = np.searchsorted(parent_E, parent_E, side="left")
    sizes_E = np.searchsorted(parent_E, parent_E, side="right") - starts_E
    one = np.repeat(child_E, sizes_E)
    other = child_E[_positions(starts_E, sizes_E)]
    return _grouped(np.unique(one * n_classes + other), n_classes, without_self=True)

  def lowest_common_ancestor(self, a: Nodes, b: Nodes) -> Int32[np.ndarray, "..."]:
    """The common ancestor that is farthest from the root, by the longest way; a node is its own.

    No kind of it is a common ancestor as well. Of several that are as far, the first by id.
    """
    n = len(self)

    def choose(common: np.ndarray, ancestor: np.ndarray, _: np.ndarray, starts: np.ndarray):
      # Deepest first, then the smallest index, in one number.
      rank = self.longest_depth[ancestor].astype(np.int64) * n + (n - 1 - ancestor)
      return n - 1 - np.maximum.reduceat(np.where(common, rank, -1), starts) % n

    return self._over_pairs(a, b, choose)

  def path_distance(self, a: Nodes, b: Nodes) -> Int32[np.ndarray, "..."]:
    """Edges of the shortest way from a up to a common ancestor and down to b."""
    far = np.iinfo(np.int32).max

    def choose(common: np.ndarray, _: np.ndarray, distance: np.ndarray, starts: np.ndarray):
      return np.minimum.reduceat(np.where(common, distance, far), starts)

    return self._over_pairs(a, b, choose)

  def is_ancestor(self, a: Nodes, b: Nodes) -> Bool[np.ndarray, "..."]:
    """Whether b is a kind of a, or a itself."""
    keys = np.asarray(np.asarray(b, np.int64) * len(self) + a)
    return self._find(keys.ravel())[0].reshape(keys.shape)

  def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether node * n + ancestor is a pair of the closure, and where."""
    where = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
    return self._keys[where] == keys, where

  def _over_pairs(self, a: Nodes, b: Nodes, choose: Callable) -> np.ndarray:
    a_broad, b_broad = np.broadcast_arrays(a, b)
    a, b = a_broad.ravel(), b_broad.ravel()
    result = np.empty(a.shape, np.int32)
    for begin in range(0, len(a), _CHUNK):
      part = slice(begin, begin + _CHUNK)
      lengths = self.ancestors.lengths[a[part]]
      at_a = _positions(self.ancestors.starts[a[part]], lengths)
      ancestor = self.ancestors.values[at_a]
      common, at_b = self._find(np.repeat(b[part].astype(np.int64), lengths) * len(self) + ancestor)
      distance = self.ancestor_distance[at_a] + self.ancestor_distance[at_b]
      result[part] = choose(common, ancestor, distance, np.cumsum(lengths) - lengths)
    return result.reshape(a_broad.shape)

  def _longest_depth(self) -> Int32[np.ndarray, " n"]:
    child = np.repeat(np.arange(len(self)), self.parents.lengths)
    depth = np.zeros(len(self), np.int32)
    while True:
      deeper = depth.copy()
      np.maximum.at(deeper, child, depth[self.parents.values] + 1)
      if deeper.max() >= len(self):
        raise VocabularyError("the tree has a cycle: a synset is a kind of itself")
      if np.array_equal(deeper, depth):
        return depth
      depth = deeper

  def _closure(self) -> tuple[Int64[np.ndarray, " A"], Int32[np.ndarray, " A"]]:
    """All pairs as node * n + ancestor, sorted, and the shortest way up of each, level by level."""
    n = len(self)
    node = ancestor = np.arange(n, dtype=np.int64)
    levels = [node * n + ancestor]
    while len(node):
      lengths = self.parents.lengths[ancestor]
      up = self.parents.values[_positions(self.parents.starts[ancestor], lengths)]
      levels.append(np.unique(np.repeat(node, lengths) * n + up))
      node, ancestor = np.divmod(levels[-1], n)
    distances = np.repeat(np.arange(len(levels), dtype=np.int32), [len(keys) for keys in levels])
    # Of a pair that was reached at several levels, the first is the shortest way.
    keys, first = np.unique(np.concatenate(levels), return_index=True)
    return keys, distances[first]


@functools.cache
def load_tree() -> Tree:
  """The tree above ImageNet's classes: 23,547 synsets, 21,842 of them classes of 21K or 1K.

  It is part of the package, so nothing is fetched.
  """
  rows = [line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines()[1:]]
  ids, names, parents = zip(*rows, strict=True)
  return Tree(ids, names, [row.split() for row in parents])


def _ragged(lengths: np.ndarray, values: np.ndarray) -> Ragged:
  return Ragged(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values)


def _grouped(keys: np.ndarray, n: int, without_self: bool = False) -> Ragged:
  """Sorted keys row * n + value as n rows."""
  row, value = np.divmod(keys, n)
  if without_self:
    row, value = row[row != value], value[row != value]
  return _ragged(np.bincount(row, minlength=n), value.astype(np.int32))


def _positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """The indices starts[i], .., starts[i] + lengths[i] - 1 of all i, one behind the other."""
  before = np.cumsum(lengths) - lengths
  return np.arange(lengths.sum()) - np.repeat(before - starts, lengths)
