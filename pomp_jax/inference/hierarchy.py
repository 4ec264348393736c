"""Distances between right and wrong answers on WordNet's is-a tree.

Shapes: n nodes of the tree, N classes, B pairs of a class and an answer.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Int, Int32
import numpy as np

from pomp_jax.data.wordnet import Tree


class Relations(NamedTuple):
  """Relations of B pairs of a class and an answer.

  Attributes:
    distance: edges of the shortest path between them; 0 for the class itself.
    ancestor_height: height of their lowest common ancestor: edges of the longest path from it down
      to a leaf (Bertinetto et al., "Making Better Mistakes", 2020). 0 for the class itself.
    ancestor_depth: depth of that ancestor: edges of the longest path up to the root. The two share
      an ancestor at every depth up to this one, and at none below.
    sibling: whether they are two classes that share a parent.
    kin: whether they are equal, or one is an ancestor of the other.
  """

  distance: Int32[np.ndarray, " B"]
  ancestor_height: Int32[np.ndarray, " B"]
  ancestor_depth: Int32[np.ndarray, " B"]
  sibling: Bool[np.ndarray, " B"]
  kin: Bool[np.ndarray, " B"]


class Hierarchy:
  """Relations between the classes of a list.

  Attributes:
    depth: edges of the longest path from each class up to the root.
    n_siblings: number of siblings of each class.
  """

  def __init__(self, tree: Tree, class_nodes_N: Int[np.ndarray, " N"]):
    """Maps a class list onto the tree.

    Args:
      tree: WordNet's tree.
      class_nodes_N: distinct nodes of the classes.
    """
    self._tree, self._nodes = tree, class_nodes_N
    self._heights = heights(tree)
    self.depth: Int32[np.ndarray, " N"] = tree.longest_depth[class_nodes_N]
    siblings = tree.siblings(class_nodes_N)
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
    common_B = tree.lowest_common_ancestor(right_B, answered_B)
    keys_B = labels_B.astype(np.int64) * len(self) + answers_B
    return Relations(
      tree.path_distance(right_B, answered_B),
      np.where(right_B == answered_B, 0, self._heights[common_B]).astype(np.int32),
      tree.longest_depth[common_B],
      self._sibling_keys[np.searchsorted(self._sibling_keys[:-1], keys_B)] == keys_B,
      tree.is_ancestor(right_B, answered_B) | tree.is_ancestor(answered_B, right_B),
    )


def heights(tree: Tree) -> Int32[np.ndarray, " n"]:
  """Returns the number of edges of the longest path from every node down to a leaf."""
  child = np.repeat(np.arange(len(tree)), tree.parents.lengths)
  height = np.zeros(len(tree), np.int32)
  level = tree.longest_depth[child]
  # A parent is less deep than its child: from the deepest level up, each child is complete.
  for depth in range(int(tree.longest_depth.max()), 0, -1):
    at = level == depth
    np.maximum.at(height, tree.parents.values[at], height[child[at]] + 1)
  return height


class TreeTally:
  """Counts of how near the answers are on the tree.

  Figures under "errors", over the wrong answers:
    images: number of errors.
    sibling: share of the errors on a class with a common parent.
    sibling_chance: that share if errors were uniform over the other classes.
    mean_distance, distance: mean, and share of the errors by edges between class and answer.
  Figures under "hierarchy", over all answers:
    top1: share of the answers that are right, or an ancestor or descendant of the class.
    ancestor_height, ancestor_height_of_errors: mean height of the lowest common ancestor.
    at_depth: share of the answers that share an ancestor at a depth with the class, over the
      classes that are at least that deep.
  """

  def __init__(self, hierarchy: Hierarchy):
    self._hierarchy = hierarchy
    n_depths = int(hierarchy.depth.max()) + 1
    # A path from one node to another passes the root at most.
    self._distance = np.zeros(2 * n_depths, np.int64)
    self._depth_images = np.zeros(n_depths, np.int64)
    self._depth_right = np.zeros(n_depths, np.int64)
    self._images = self._errors = self._siblings = self._kin = self._height = 0
    self._sibling_chance = 0.0

  def add(
    self,
    labels_B: Int[np.ndarray, " B"],
    answers_B: Int[np.ndarray, " B"],
    right_B: Bool[np.ndarray, " B"],
  ) -> None:
    """Counts the answers to some images."""
    found = self._hierarchy.relations(labels_B, answers_B)
    wrong_B = ~right_B
    self._images += len(labels_B)
    self._errors += int(wrong_B.sum())
    self._siblings += int(found.sibling[wrong_B].sum())
    n_others = max(len(self._hierarchy) - 1, 1)
    self._sibling_chance += self._hierarchy.n_siblings[labels_B[wrong_B]].sum() / n_others
    self._kin += int(found.kin.sum())
    self._height += int(found.ancestor_height.sum())
    self._distance += np.bincount(found.distance[wrong_B], minlength=len(self._distance))
    n_depths = len(self._depth_images)
    self._depth_images += _count_at_least(self._hierarchy.depth[labels_B], n_depths)
    self._depth_right += _count_at_least(found.ancestor_depth, n_depths)

  def figures(self) -> dict[str, Any]:
    """Returns all figures as JSON values; shares are fractions of 1."""
    n, errors = self._images, max(self._errors, 1)
    edges = np.arange(len(self._distance))
    depths = enumerate(zip(self._depth_right, self._depth_images, strict=True))
    return {
      "errors": {
        "images": self._errors,
        "sibling": self._siblings / errors,
        "sibling_chance": self._sibling_chance / errors,
        "mean_distance": float((edges * self._distance).sum() / errors),
        "distance": {str(d): self._distance[d] / errors for d in edges if self._distance[d]},
      },
      "hierarchy": {
        "top1": self._kin / n,
        "ancestor_height": self._height / n,
        "ancestor_height_of_errors": self._height / errors,
        "at_depth": {str(d): right / n for d, (right, n) in depths if d and n},
      },
    }


def _count_at_least(values_B: np.ndarray, n: int) -> np.ndarray:
  """Counts the values that are at least 0, 1, .., n - 1."""
  return np.bincount(values_B, minlength=n)[::-1].cumsum()[::-1]
