"""How far a wrong answer is from the right one, on WordNet's is-a tree.

Shapes: n nodes of the tree, N classes, B pairs of a class and an answer.
"""

from typing import NamedTuple

from jaxtyping import Bool, Int, Int32
import numpy as np

from pomp_jax.data.wordnet import Tree


class Relations(NamedTuple):
  """Of each pair of a class and an answer.

  Attributes:
    distance: edges of the shortest way between them; 0 for the class itself.
    ancestor_height: height of their lowest common ancestor: edges of the longest way from it down
      to a leaf (Bertinetto et al., "Making Better Mistakes", 2020). 0 for the class itself.
    ancestor_depth: its depth: edges of the longest way up to the root. The two share a kind at
      every depth up to this one, and at none below.
    sibling: whether they are two classes that share a parent.
    kin: whether they are the same, or one is a kind of the other.
  """

  distance: Int32[np.ndarray, " B"]
  ancestor_height: Int32[np.ndarray, " B"]
  ancestor_depth: Int32[np.ndarray, " B"]
  sibling: Bool[np.ndarray, " B"]
  kin: Bool[np.ndarray, " B"]


class Hierarchy:
  """Relations between the classes of a list.

  Attributes:
    depth: of each class, edges of the longest way up to the root.
    n_siblings: of each class.
  """

  def __init__(self, tree: Tree, class_nodes_N: Int[np.ndarray, " N"]):
    """Ties a class list to the tree.

    Args:
      tree: WordNet's.
      class_nodes_N: the classes' nodes, distinct.
    """
    self._tree, self._nodes = tree, class_nodes_N
    self._heights = heights(tree)
    self.depth: Int32[np.ndarray, " N"] = tree.longest_depth[class_nodes_N]
    siblings = tree.siblings(class_nodes_N)
    self.n_siblings: Int[np.ndarray, " N"] = siblings.lengths
    rows = np.repeat(np.arange(len(class_nodes_N)), siblings.lengths)
    # Sorted, and behind them one that no pair has.
    self._sibling_keys = np.append(rows * len(class_nodes_N) + siblings.values, -1)

  def __len__(self) -> int:
    return len(self._nodes)

  def relations(
    self, labels_B: Int[np.ndarray, " B"], answers_B: Int[np.ndarray, " B"]
  ) -> Relations:
    """Of right classes and answers, both as indices into the class list."""
    tree = self._tree
    right_B, answered_B = self._nodes[labels_B], self._nodes[answers_B]
    # An answer that is right has nothing in common that is farther down than the class itself.
    same_B = right_B == answered_B
    common_B = tree.lowest_common_ancestor(right_B, answered_B)
    return Relations(
      tree.path_distance(right_B, answered_B),
      np.where(same_B, 0, self._heights[common_B]).astype(np.int32),
      tree.longest_depth[common_B],
      self._are_siblings(labels_B, answers_B),
      tree.is_ancestor(right_B, answered_B) | tree.is_ancestor(answered_B, right_B),
    )

  def _are_siblings(self, labels_B: np.ndarray, answers_B: np.ndarray) -> np.ndarray:
    keys_B = labels_B.astype(np.int64) * len(self) + answers_B
    return self._sibling_keys[np.searchsorted(self._sibling_keys[:-1], keys_B)] == keys_B


def heights(tree: Tree) -> Int32[np.ndarray, " n"]:
  """Of every node the edges of the longest way down to a leaf."""
  child = np.repeat(np.arange(len(tree)), tree.parents.lengths)
  height = np.zeros(len(tree), np.int32)
  level = tree.longest_depth[child]
  # A parent is less deep than its child, so from the deepest up each child is complete.
  for depth in range(int(tree.longest_depth.max()), 0, -1):
    at = level == depth
    np.maximum.at(height, tree.parents.values[at], height[child[at]] + 1)
  return height
