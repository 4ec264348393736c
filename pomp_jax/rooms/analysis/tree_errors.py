"""Nearness of a classifier's errors on WordNet's is-a tree.

Shapes: B images, N classes, n nodes of the tree.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from jaxtyping import Bool, Int, Int32
import numpy as np

from pomp_jax.data.wordnet import Tree, load_tree
from pomp_jax.rooms.analysis.tree_relations import TreeRelations, relations_of


class Relations(NamedTuple):
  """Relations of B pairs of a class and an answer.

  The height of a node counts the edges of the longest path down to a leaf (Bertinetto et al.,
  "Making Better Mistakes", 2020), its depth those of the longest path up to the root.
  """

  distance: Int32[np.ndarray, " B"]  # edges of the shortest path between them
  ancestor_height: Int32[np.ndarray, " B"]  # of the lowest common one; 0 for the class itself
  ancestor_depth: Int32[np.ndarray, " B"]
  sibling: Bool[np.ndarray, " B"]  # whether they are two classes that share a parent
  kin: Bool[np.ndarray, " B"]  # whether they are equal, or one is an ancestor of the other


class Hierarchy:
  """Relations between the classes of a list, given by their distinct nodes in the tree."""

  def __init__(self, tree: Tree, class_nodes_N: Int[np.ndarray, " N"]):
    self._tree, self._nodes = relations_of(tree), class_nodes_N
    self._heights = heights(self._tree)
    self.depth: Int32[np.ndarray, " N"] = self._tree.longest_depth[class_nodes_N]
    siblings = self._tree.siblings(class_nodes_N)
    self.n_siblings: Int[np.ndarray, " N"] = siblings.lengths
    rows = np.repeat(np.arange(len(class_nodes_N)), siblings.lengths)
    # Sorted, and followed by a sentinel that no pair has.
    self._sibling_keys = np.append(rows * len(class_nodes_N) + siblings.values, -1)

  def __len__(self) -> int:
    return len(self._nodes)

  def relations(
    self, labels_B: Int[np.ndarray, " B"], answers_B: Int[np.ndarray, " B"]
  ) -> Relations:
    """Relates right classes to answers, both given as indices into the class list."""
    tree = self._tree
    right_B, answered_B = self._nodes[labels_B], self._nodes[answers_B]
    common_B, distance_B = tree.lowest_common_ancestor(right_B, answered_B)
    keys_B = labels_B.astype(np.int64) * len(self) + answers_B
    return Relations(
      distance_B,
      np.where(right_B == answered_B, 0, self._heights[common_B]).astype(np.int32),
      tree.longest_depth[common_B],
      self._sibling_keys[np.searchsorted(self._sibling_keys[:-1], keys_B)] == keys_B,
      tree.is_ancestor(right_B, answered_B) | tree.is_ancestor(answered_B, right_B),
    )


def heights(tree: TreeRelations) -> Int32[np.ndarray, " n"]:
  """Edges of the longest path from every node down to a leaf."""
  height = np.zeros_like(tree.longest_depth)
  child = np.repeat(np.arange(len(height)), tree.parents.lengths)
  level = tree.longest_depth[child]
  # A parent is less deep than its child: from the deepest level up, each child is complete.
  for depth in range(int(tree.longest_depth.max()), 0, -1):
    at = level == depth
    np.maximum.at(height, tree.parents.values[at], height[child[at]] + 1)
  return height


class TreeTally:
  """Counts of how near the answers are on the tree, as shares of 1.

  "sibling_chance" is the share on a class with a common parent if errors were uniform over the
  other classes. "top1" of the hierarchy counts ancestors and descendants of the class as right.
  "at_depth" is the share with a common ancestor at that depth, over the classes that are as deep.
  """

  def __init__(self, hierarchy: Hierarchy):
    self._hierarchy, self._sibling_chance = hierarchy, 0.0
    self._batches: list[tuple[np.ndarray, ...]] = []  # labels, right ones, `Relations`

  def add(self, labels_B: np.ndarray, answers_B: np.ndarray, right_B: np.ndarray) -> None:
    """Counts the answers to B images."""
    relations = self._hierarchy.relations(labels_B, answers_B)
    self._batches.append((labels_B, right_B, *relations))
    n_others = max(len(self._hierarchy) - 1, 1)
    self._sibling_chance += self._hierarchy.n_siblings[labels_B[~right_B]].sum() / n_others

  def figures(self) -> dict[str, Any]:
    """The figures above, as JSON values."""
    labels_n, right_n, *relations = map(np.concatenate, zip(*self._batches, strict=True))
    found, wrong_n, n = Relations(*relations), ~right_n, len(labels_n)
    n_errors = int(wrong_n.sum())
    errors = max(n_errors, 1)
    distances = zip(*np.unique(found.distance[wrong_n], return_counts=True), strict=True)
    depth_n, heights = self._hierarchy.depth[labels_n], int(found.ancestor_height.sum())
    at_depth = {
      str(depth): (found.ancestor_depth >= depth).sum() / (depth_n >= depth).sum()
      for depth in range(1, int(depth_n.max()) + 1)
    }
    return {
      "errors": {
        "images": n_errors,
        "sibling": int(found.sibling[wrong_n].sum()) / errors,
        "sibling_chance": self._sibling_chance / errors,
        "mean_distance": float(found.distance[wrong_n].sum() / errors),
        "distance": {str(distance): count / errors for distance, count in distances},
      },
      "hierarchy": {
        "top1": int(found.kin.sum()) / n,
        "ancestor_height": heights / n,
        "ancestor_height_of_errors": heights / errors,
        "at_depth": at_depth,
      },
    }


def tallies(synsets: Sequence[str]) -> Callable[[], TreeTally]:
  """Makes a `TreeTally` for each prompt over the classes with these WordNet ids."""
  tree = load_tree()
  return functools.partial(TreeTally, Hierarchy(tree, tree.nodes(synsets)))
