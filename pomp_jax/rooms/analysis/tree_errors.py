"""Nearness of a classifier's errors on WordNet's is-a tree.

Shapes: B images of a batch, n images of all batches, N classes, nodes of the tree.
"""

import collections
from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from jaxtyping import Bool, Int
import numpy as np

from pomp_jax.data.wordnet import Tree, load_tree


class Relations(NamedTuple):
  """Relations of B pairs of a class and an answer.

  The height of a node counts the edges of the longest path down to a leaf (Bertinetto
  et al., "Making Better Mistakes", 2020). The depth of a node counts the edges of the
  longest path up to the root. The lowest common ancestor is the deepest one; of equally
  deep ancestors, the first by id.
  """

  # edges of the shortest path through a common ancestor
  distance: Int[np.ndarray, " B"]
  # height of the lowest common ancestor; 0 if class and answer are equal
  ancestor_height: Int[np.ndarray, " B"]
  ancestor_depth: Int[np.ndarray, " B"]  # depth of the lowest common ancestor
  # whether class and answer differ and share a parent
  sibling: Bool[np.ndarray, " B"]
  # whether class and answer are equal, or one is an ancestor of the other
  kin: Bool[np.ndarray, " B"]


class Hierarchy:
  """Relations between the classes of a list, which are distinct nodes of a tree.

  Attributes:
    depth: depth of each class.
    n_siblings: number of the other classes that share a parent with each class.
  """

  def __init__(self, tree: Tree, class_nodes_N: Int[np.ndarray, " N"]):
    """Computes depths, heights and siblings.

    Args:
      tree: tree whose nodes include the classes.
      class_nodes_N: node of each class, all distinct.
    """
    self._nodes = class_nodes_N.tolist()
    self._parents = [set(parents.tolist()) for parents in tree.parents]
    self._depths = self._node_depths()
    self._heights = self._node_heights()
    self.depth: Int[np.ndarray, " N"] = self._depths[class_nodes_N]
    self.n_siblings = np.array(self._count_siblings())
    # Answers repeat, so walks up the tree are cached.
    self._distances_up = functools.cache(self._distances_up)  # type: ignore[method-assign]

  def _node_depths(self) -> Int[np.ndarray, " nodes"]:
    """Edges of the longest path from a root to each node of the tree."""

    @functools.cache
    def depth_of(node: int) -> int:
      depth = 0
      for parent in self._parents[node]:
        depth = max(depth, depth_of(parent) + 1)
      return depth

    return np.array([depth_of(node) for node in range(len(self._parents))])

  def _node_heights(self) -> Int[np.ndarray, " nodes"]:
    """Edges of the longest path from each node down to a leaf."""
    heights = np.zeros(len(self._parents), int)
    # Visit the deepest nodes first. A parent is less deep than its child, so the height
    # of a node is final before its parents use it.
    for node in np.argsort(-self._depths):
      for parent in self._parents[node]:
        heights[parent] = max(heights[parent], heights[node] + 1)
    return heights

  def _count_siblings(self) -> list[int]:
    """Counts the other classes that share a parent with each class."""
    classes_below = collections.defaultdict(set)
    for number, node in enumerate(self._nodes):
      for parent in self._parents[node]:
        classes_below[parent].add(number)
    counts = []
    for number, node in enumerate(self._nodes):
      siblings: set[int] = set()
      for parent in self._parents[node]:
        siblings |= classes_below[parent]
      counts.append(len(siblings - {number}))
    return counts

  def __len__(self) -> int:
    return len(self._nodes)

  def relate(
    self, labels_B: Int[np.ndarray, " B"], answers_B: Int[np.ndarray, " B"]
  ) -> Relations:
    """Relates right classes to answers, both given as indices into the class list."""
    # Relate each distinct pair once.
    pairs_B = labels_B.astype(np.int64) * len(self) + answers_B
    pairs, row_B = np.unique(pairs_B, return_inverse=True)
    rows = []
    for pair in pairs.tolist():
      label, answer = divmod(pair, len(self))
      rows.append(self._relation(label, answer))
    return Relations(*(np.array(column)[row_B] for column in zip(*rows, strict=True)))

  def _relation(self, label: int, answer: int) -> tuple[Any, ...]:
    """The fields of `Relations` for one pair."""
    a = self._nodes[label]
    b = self._nodes[answer]
    up_a = self._distances_up(a)
    up_b = self._distances_up(b)
    common = up_a.keys() & up_b.keys()
    lowest = max(common, key=lambda node: (self._depths[node], -node))
    share_parent = not self._parents[a].isdisjoint(self._parents[b])
    return (
      min(up_a[node] + up_b[node] for node in common),
      0 if a == b else self._heights[lowest],
      self._depths[lowest],
      a != b and share_parent,
      a in up_b or b in up_a,
    )

  def _distances_up(self, node: int) -> dict[int, int]:
    """Edges of the shortest path up to each ancestor of a node, itself included."""
    distances = {node: 0}
    for parent in self._parents[node]:
      for above, edges in self._distances_up(parent).items():
        distances[above] = min(edges + 1, distances.get(above, edges + 1))
    return distances


class TreeTally:
  """Tally of how near answers are to the right classes on the tree, in shares of 1.

  "sibling_chance" is the share of errors that would hit a sibling of the class if
  errors were uniform over the other classes. "top1" of the hierarchy counts ancestors
  and descendants of the class as right. "at_depth" is, for each depth and the images of
  classes at least so deep, the share whose answer has a common ancestor with the class
  at that depth.
  """

  def __init__(self, hierarchy: Hierarchy):
    self._hierarchy = hierarchy
    self._batches: list[tuple[np.ndarray, ...]] = []  # labels, answers, whether right

  def add(
    self, labels_B: np.ndarray, answers_B: np.ndarray, right_B: np.ndarray
  ) -> None:
    """Adds the answers to a batch of images.

    Args:
      labels_B: class of each image.
      answers_B: class that each image is given.
      right_B: whether an answer counts as right; ties are wrong.
    """
    self._batches.append((labels_B, answers_B, right_B))

  def figures(self) -> dict[str, Any]:
    """Computes the figures that the class describes, as JSON values."""
    labels_n, answers_n, right_n = map(np.concatenate, zip(*self._batches, strict=True))
    relations = self._hierarchy.relate(labels_n, answers_n)
    n_images = len(labels_n)
    wrong_n = ~right_n
    n_errors = int(wrong_n.sum())
    errors = max(n_errors, 1)
    n_others = max(len(self._hierarchy) - 1, 1)
    # Expected number of siblings that uniform errors would hit.
    siblings = 0.0
    for labels_B, _, right_B in self._batches:
      siblings += self._hierarchy.n_siblings[labels_B[~right_B]].sum() / n_others
    distances, counts = np.unique(relations.distance[wrong_n], return_counts=True)
    depth_n = self._hierarchy.depth[labels_n]
    at_depth = {}
    for depth in range(1, int(depth_n.max()) + 1):
      n_common = (relations.ancestor_depth >= depth).sum()
      at_depth[str(depth)] = n_common / (depth_n >= depth).sum()
    heights = int(relations.ancestor_height.sum())
    return {
      "errors": {
        "images": n_errors,
        "sibling": int(relations.sibling[wrong_n].sum()) / errors,
        "sibling_chance": siblings / errors,
        "mean_distance": float(relations.distance[wrong_n].sum() / errors),
        "distance": {
          str(distance): count / errors
          for distance, count in zip(distances, counts, strict=True)
        },
      },
      "hierarchy": {
        "top1": int(relations.kin.sum()) / n_images,
        "ancestor_height": heights / n_images,
        "ancestor_height_of_errors": heights / errors,
        "at_depth": at_depth,
      },
    }


def tallies(synsets: Sequence[str]) -> Callable[[], TreeTally]:
  """Returns a function that makes a `TreeTally`, for the classes of WordNet ids."""
  tree = load_tree()
  return functools.partial(TreeTally, Hierarchy(tree, tree.nodes(synsets)))
