"""Nearness of a classifier's errors on WordNet's is-a tree.

Shapes: B images, N classes, n nodes of the tree.
"""

import collections
from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple

from jaxtyping import Bool, Int
import numpy as np

from pomp_jax.data.wordnet import Tree, load_tree


class Relations(NamedTuple):
  """Relations of B pairs of a class and an answer.

  The height of a node counts the edges of the longest path down to a leaf (Bertinetto
  et al., "Making Better Mistakes", 2020), its depth those of the longest path up to the
  root. Of common ancestors the lowest is the deepest one, then the first by id.
  """

  # edges of the shortest path through a common ancestor
  distance: Int[np.ndarray, " B"]
  # of the lowest common one; 0 for the class itself
  ancestor_height: Int[np.ndarray, " B"]
  ancestor_depth: Int[np.ndarray, " B"]
  sibling: Bool[np.ndarray, " B"]  # whether they are two classes that share a parent
  # whether they are equal, or one is an ancestor of the other
  kin: Bool[np.ndarray, " B"]


class Hierarchy:
  """Relations between the classes of a list, given by their distinct nodes in the
  tree."""

  def __init__(self, tree: Tree, class_nodes_N: Int[np.ndarray, " N"]):
    self._nodes = class_nodes_N.tolist()
    self._parents = [set(above.tolist()) for above in tree.parents]

    @functools.cache
    def depth_of(node: int) -> int:
      return max((depth_of(parent) + 1 for parent in self._parents[node]), default=0)

    self._depths = np.array([depth_of(node) for node in range(len(tree))])
    self._heights = np.zeros(len(tree), int)
    # A parent is less deep than its child: from the deepest node up, each child is
    # complete.
    for node in np.argsort(-self._depths):
      above = tree.parents[node]
      self._heights[above] = np.maximum(self._heights[above], self._heights[node] + 1)
    self._distances_up = functools.cache(self._distances_up)  # type: ignore[method-assign]
    self.depth: Int[np.ndarray, " N"] = self._depths[class_nodes_N]
    children = collections.defaultdict(set)
    for c, node in enumerate(self._nodes):
      for parent in self._parents[node]:
        children[parent].add(c)
    families = (
      [children[parent] for parent in self._parents[node]] for node in self._nodes
    )
    self.n_siblings = np.array(
      [len(set().union(*own) - {c}) for c, own in enumerate(families)]
    )

  def __len__(self) -> int:
    return len(self._nodes)

  def relate(
    self, labels_B: Int[np.ndarray, " B"], answers_B: Int[np.ndarray, " B"]
  ) -> Relations:
    """Relates right classes to answers, both given as indices into the class list."""
    pairs = labels_B.astype(np.int64) * len(self) + answers_B
    different, row_B = np.unique(pairs, return_inverse=True)
    rows = itertools.starmap(
      self._relation, np.transpose(np.divmod(different, len(self))).tolist()
    )
    return Relations(*(np.array(column)[row_B] for column in zip(*rows, strict=True)))

  def _relation(self, label: int, answer: int) -> tuple[Any, ...]:
    a, b = self._nodes[label], self._nodes[answer]
    up_a, up_b = self._distances_up(a), self._distances_up(b)
    common = up_a.keys() & up_b.keys()
    lowest = max(common, key=lambda node: (self._depths[node], -node))
    return (
      min(up_a[node] + up_b[node] for node in common),
      0 if a == b else self._heights[lowest],
      self._depths[lowest],
      a != b and not self._parents[a].isdisjoint(self._parents[b]),
      a in up_b or b in up_a,
    )

  def _distances_up(self, node: int) -> dict[int, int]:
    """Edges of the shortest path up to each ancestor of a node, itself included."""
    found = {node: 0}
    for parent in self._parents[node]:
      for above, edges in self._distances_up(parent).items():
        found[above] = min(edges + 1, found.get(above, edges + 1))
    return found


class TreeTally:
  """Counts of how near the answers are on the tree, as shares of 1.

  "sibling_chance" is the share on a class with a common parent if errors were uniform
  over the other classes. "top1" of the hierarchy counts ancestors and descendants of
  the class as right. "at_depth" is the share with a common ancestor at that depth, over
  the classes that are as deep.
  """

  def __init__(self, hierarchy: Hierarchy):
    self._hierarchy = hierarchy
    self._batches: list[tuple[np.ndarray, ...]] = []  # labels, answers, right ones

  def add(
    self, labels_B: np.ndarray, answers_B: np.ndarray, right_B: np.ndarray
  ) -> None:
    self._batches.append((labels_B, answers_B, right_B))

  def figures(self) -> dict[str, Any]:
    """The figures above, as JSON values."""
    labels_n, answers_n, right_n = map(np.concatenate, zip(*self._batches, strict=True))
    found, wrong_n, n = (
      self._hierarchy.relate(labels_n, answers_n),
      ~right_n,
      len(labels_n),
    )
    n_siblings, n_others = self._hierarchy.n_siblings, max(len(self._hierarchy) - 1, 1)
    siblings = sum(
      n_siblings[own[~right]].sum() / n_others for own, _, right in self._batches
    )
    n_errors = int(wrong_n.sum())
    errors = max(n_errors, 1)
    distances = zip(
      *np.unique(found.distance[wrong_n], return_counts=True), strict=True
    )
    depth_n, heights = self._hierarchy.depth[labels_n], int(found.ancestor_height.sum())
    at_depth = {
      str(depth): (found.ancestor_depth >= depth).sum() / (depth_n >= depth).sum()
      for depth in range(1, int(depth_n.max()) + 1)
    }
    return {
      "errors": {
        "images": n_errors,
        "sibling": int(found.sibling[wrong_n].sum()) / errors,
        "sibling_chance": siblings / errors,
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
