"""Relations of the nodes of WordNet's tree: ancestors, lowest common ancestors, siblings.

Shapes: n nodes, in the order of their ids, E edges, A pairs of a node and an ancestor, N classes.
"""

import dataclasses
import functools

from jaxtyping import Bool, Int, Int32, Int64
import numpy as np

from pomp_jax.data.wordnet import Tree

# Node indices; two such arguments are broadcast.
Nodes = Int[np.ndarray, "..."] | int | np.integer

# Pairs to compare at a time, which need about 50 MB.
_CHUNK = 2**17


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of different lengths in one array."""

  starts: Int64[np.ndarray, " R_plus_1"]  # offsets; row r is values[starts[r]:starts[r + 1]]
  values: Int32[np.ndarray, " V"]  # all rows, concatenated

  def __getitem__(self, row: int | np.integer) -> Int32[np.ndarray, " v"]:
    return self.values[self.starts[row] : self.starts[row + 1]]

  @property
  def lengths(self) -> Int64[np.ndarray, " R"]:
    """Number of values in each row."""
    return np.diff(self.starts)


class TreeRelations:
  """All pairs of a node and an ancestor."""

  def __init__(self, tree: Tree):
    """Follows all paths up."""
    self._n, self._root = len(tree), tree.root
    lengths = np.array([len(row) for row in tree.parents], np.int64)
    self.parents = _ragged(lengths, np.concatenate(tree.parents))
    self.longest_depth = np.zeros(self._n, np.int32)  # edges on the longest path to the root
    # int32 [A], edges on the shortest path to each of `ancestors.values`.
    self._keys, self.ancestor_distance = self._closure()
    self.ancestors = _grouped(self._keys, self._n)  # sorted, each node itself included

  def siblings(self, class_nodes_N: Int[np.ndarray, " N"]) -> Ragged:
    """Other classes that share a parent with each of N classes: N rows of class indices."""
    n_classes = len(class_nodes_N)
    n_parents_N = self.parents.lengths[class_nodes_N]
    child_E = np.repeat(np.arange(n_classes), n_parents_N)
    parent_E = self.parents.values[_positions(self.parents.starts[class_nodes_N], n_parents_N)]
    order = np.argsort(parent_E, kind="stable")
    child_E, parent_E = child_E[order], parent_E[order]
    # Pairs of all children of the same parent.
    starts_E = np.searchsorted(parent_E, parent_E, side="left")
    sizes_E = np.searchsorted(parent_E, parent_E, side="right") - starts_E
    one = np.repeat(child_E, sizes_E)
    other = child_E[_positions(starts_E, sizes_E)]
    return _grouped(np.unique((one * n_classes + other)[one != other]), n_classes)

  def lowest_common_ancestor(self, a: Nodes, b: Nodes) -> Int32[np.ndarray, "2 ..."]:
    """Lowest common ancestor, and edges on the shortest path through any common ancestor.

    The lowest one is farthest from the root by `longest_depth`, then of the smallest id: none of
    its descendants is a common ancestor. A node is its own ancestor.
    """
    n, (a_broad, b_broad) = self._n, np.broadcast_arrays(a, b)
    a, b = a_broad.ravel(), b_broad.ravel()
    result = np.empty((2, *a.shape), np.int32)
    for begin in range(0, len(a), _CHUNK):
      part = slice(begin, begin + _CHUNK)
      lengths = self.ancestors.lengths[a[part]]
      at_a = _positions(self.ancestors.starts[a[part]], lengths)
      ancestor = self.ancestors.values[at_a]
      common, at_b = self._find(np.repeat(b[part].astype(np.int64), lengths) * n + ancestor)
      distance = self.ancestor_distance[at_a] + self.ancestor_distance[at_b]
      starts, far = np.cumsum(lengths) - lengths, np.iinfo(np.int32).max
      result[1, part] = np.minimum.reduceat(np.where(common, distance, far), starts)
      # One number orders by depth, then by smallest index.
      rank = self.longest_depth[ancestor].astype(np.int64) * n + (n - 1 - ancestor)
      result[0, part] = n - 1 - np.maximum.reduceat(np.where(common, rank, -1), starts) % n
    return result.reshape(2, *a_broad.shape)

  def is_ancestor(self, a: Nodes, b: Nodes) -> Bool[np.ndarray, "..."]:
    """Whether a is an ancestor of b, or b itself."""
    keys = np.asarray(np.asarray(b, np.int64) * self._n + a)
    return self._find(keys.ravel())[0].reshape(keys.shape)

  def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each node * n + ancestor is a pair of the closure, and its position there."""
    where = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
    return self._keys[where] == keys, where

  def _closure(self) -> tuple[Int64[np.ndarray, " A"], Int32[np.ndarray, " A"]]:
    """All pairs as sorted node * n + ancestor, and the length of each pair's shortest path."""
    n = self._n
    node = ancestor = np.arange(n, dtype=np.int64)
    levels: list[np.ndarray] = []
    while len(node):
      # Paths of a length; the last one that reaches the root is the longest.
      self.longest_depth[node[ancestor == self._root]] = len(levels)
      levels.append(node * n + ancestor)
      lengths = self.parents.lengths[ancestor]
      up = self.parents.values[_positions(self.parents.starts[ancestor], lengths)]
      node, ancestor = np.divmod(np.unique(np.repeat(node, lengths) * n + up), n)
    distances = np.repeat(np.arange(len(levels), dtype=np.int32), [len(keys) for keys in levels])
    # The first level that reaches a pair is its shortest path.
    keys, first = np.unique(np.concatenate(levels), return_index=True)
    return keys, distances[first]


# Of a tree, built once.
relations_of = functools.lru_cache(maxsize=2)(TreeRelations)


def _ragged(lengths: np.ndarray, values: np.ndarray) -> Ragged:
  return Ragged(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values)


def _grouped(keys: np.ndarray, n: int) -> Ragged:
  """Splits sorted keys row * n + value into n rows."""
  row, value = np.divmod(keys, n)
  return _ragged(np.bincount(row, minlength=n), value.astype(np.int32))


def _positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Concatenates the ranges starts[i], .., starts[i] + lengths[i] - 1."""
  before = np.cumsum(lengths) - lengths
  return np.arange(lengths.sum()) - np.repeat(before - starts, lengths)
