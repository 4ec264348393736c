"""A few large groups of classes to colour a map by: WordNet's branches, or the world's shapes.

Shapes: N classes.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

from jaxtyping import Int
import numpy as np

from pomp_jax.data.wordnet import Tree
from pomp_jax.world.names import SHAPES

# A branch is shown by its own colour from this share of the classes on.
_SMALLEST = 1 / 50


class Branches(NamedTuple):
  """Classes in groups.

  Attributes:
    names: what each group is called.
    of_class: the group of each class, an index into `names`.
  """

  names: tuple[str, ...]
  of_class: Int[np.ndarray, " N"]


def wordnet_branches(
  tree: Tree, class_nodes_N: Int[np.ndarray, " N"], n_branches: int = 10
) -> Branches:
  """Cuts WordNet's tree into branches of comparable size.

  From the root down the branch with most classes is split into its kinds, until there are about
  so many that hold 2% of the classes or more. What is left in smaller ones is "other". A class
  of two kinds goes with the first by id.

  Args:
    tree: of the classes.
    class_nodes_N: the classes' nodes.
    n_branches: how many to aim at.
  """
  branch_N = np.full(len(class_nodes_N), tree.root)
  children = np.repeat(np.arange(len(tree)), tree.parents.lengths)
  whole: set[int] = set()
  while True:
    found, counts = np.unique(branch_N, return_counts=True)
    large = {int(b): int(n) for b, n in zip(found, counts, strict=True)}
    large = {b: n for b, n in large.items() if n >= _SMALLEST * len(branch_N)}
    divisible = [b for b in large if b not in whole]
    if len(large) >= n_branches or not divisible:
      break
    largest = max(divisible, key=large.__getitem__)
    whole.add(largest)
    members = np.flatnonzero(branch_N == largest)
    for child in children[tree.parents.values == largest]:
      below = members[tree.is_ancestor(child, class_nodes_N[members])]
      branch_N[below] = child
      members = np.setdiff1d(members, below)
  order = sorted(large, key=lambda b: -large[b])
  group = {b: i for i, b in enumerate(order)}
  of_class = np.array([group.get(int(b), len(order)) for b in branch_N])
  other = ("other",) if np.any(of_class == len(order)) else ()
  return Branches((*(tree.names[b] for b in order), *other), of_class)


def shape_branches(names: Sequence[str]) -> Branches | None:
  """The noun of each of the world's classes; None where the names are not the world's."""
  pattern = re.compile(rf" ({'|'.join(map(re.escape, SHAPES))}) on ")
  found = [pattern.search(name) for name in names]
  if not all(found):
    return None
  shapes = np.array([SHAPES.index(match[1]) for match in found if match])
  present, of_class = np.unique(shapes, return_inverse=True)
  return Branches(tuple(SHAPES[s] for s in present), of_class)
