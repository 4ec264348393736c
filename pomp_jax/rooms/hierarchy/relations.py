"""Relations between classes, which samplers of negatives and the loss read.

They come from WordNet for classes with synsets. Names of the embedded world combine
four attributes: siblings differ in one, kin are words that captions confuse, and the
levels are the shape, then the texture, then the colour. Shapes: N classes, G groups of
a class, S groups, D kin of a class, H levels, A attributes.
"""

from collections.abc import Sequence

from jaxtyping import Int32
import numpy as np

from pomp_jax.config import WORLD
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import Tree, load_tree
from pomp_jax.prompt.sampling.samplers import SamplingArrays
from pomp_jax.world import names as world_names

# Depths below WordNet's root of the ancestors in the loss: artifact and living thing;
# animal and instrumentality; mammal and vehicle.
TREE_LEVELS = (4, 6, 8)


def relations(data: Data, names: Sequence[str]) -> SamplingArrays | None:
  """Groups, group sizes, kin and levels of training classes; None if their relations
  are unknown.

  Known are those of the embedded world, and of a class list with a synset a name.
  """
  if data.source == WORLD:
    row = {name: i for i, name in enumerate(world_names.class_names("base"))}
    kept_N = np.array([row[name] for name in names])
    return attribute_relations(world_names.class_attributes("base")[kept_N])
  try:
    classes = load_class_list(data.names or data.dataset)
  except ValueError:
    return None
  if classes.synsets is None:
    return None
  synset = dict(zip(classes.names, classes.synsets, strict=True))
  # A name that several classes share has no known synset.
  if not set(names) <= set(synset) or len(synset) < len(classes):
    return None
  tree = load_tree()
  return wordnet_relations(tree, tree.nodes([synset[name] for name in names]))


def wordnet_relations(
  tree: Tree, class_nodes_N: Int32[np.ndarray, " N"]
) -> SamplingArrays:
  """Groups, group sizes, kin and levels of classes in WordNet.

  Siblings share a parent. Kin are ancestors or descendants. The level at a depth is the
  first ancestor, by id, at that depth. The classes are distinct nodes of the tree.
  """
  n_classes = len(class_nodes_N)
  class_of_n = np.full(len(tree), -1, np.int32)
  class_of_n[class_nodes_N] = np.arange(n_classes)
  kin = []
  levels_NxH = np.full((n_classes, len(TREE_LEVELS)), -1, np.int32)
  for c, node in enumerate(class_nodes_N):
    above = tree.ancestors[node]
    related = class_of_n[above[above != node]]
    kin.append(related[related >= 0])
    for column, depth in enumerate(TREE_LEVELS):
      at = above[tree.depth[above] == depth]
      if len(at):
        levels_NxH[c, column] = at[0]
  return _arrays(
    _padded([tree.parents[node] for node in class_nodes_N]), kin, levels_NxH
  )


def attribute_relations(attributes_NxA: Int32[np.ndarray, "N A"]) -> SamplingArrays:
  """Groups, group sizes, kin and levels of the embedded world's classes."""
  n_attributes = attributes_NxA.shape[1]
  # All attributes but one, and the index of that one: a class is in as many groups as
  # attributes.
  keys = [
    _key(np.insert(np.delete(attributes_NxA, dropped, axis=1), 0, dropped, axis=1))
    for dropped in range(n_attributes)
  ]
  family_of = [
    np.repeat(np.arange(len(families)), [len(family) for family in families])
    for families in world_names.FAMILIES
  ]
  family_N = _key(
    np.stack([of[a] for of, a in zip(family_of, attributes_NxA.T, strict=True)], 1)
  )
  members = {
    family: np.flatnonzero(family_N == family) for family in np.unique(family_N)
  }
  kin = [members[family][members[family] != c] for c, family in enumerate(family_N)]
  colour, texture, shape, _ = range(n_attributes)
  columns = [[shape], [shape, texture], [shape, texture, colour]]
  levels = [
    np.unique(_key(attributes_NxA[:, some]), return_inverse=True)[1] for some in columns
  ]
  return _arrays(np.stack(keys, axis=1), kin, np.stack(levels, axis=1).astype(np.int32))


def _key(columns_NxA: np.ndarray) -> np.ndarray:
  """One number per row, equal for equal rows only; values are below 32."""
  return columns_NxA.astype(np.int64) @ (32 ** np.arange(columns_NxA.shape[1]))


def _padded(rows: Sequence[np.ndarray]) -> Int32[np.ndarray, "N G"]:
  padded = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded


def _arrays(
  keys_NxG: np.ndarray, kin: list[np.ndarray], levels_NxH: np.ndarray
) -> SamplingArrays:
  """Numbers the groups from 0, and drops those of one class."""
  found, index, sizes = np.unique(keys_NxG, return_inverse=True, return_counts=True)
  kept = (found >= 0) & (sizes >= 2)
  number = np.where(kept, np.cumsum(kept) - 1, -1)
  # At least one group, so that the array can be indexed.
  sizes_S = (sizes[kept] if kept.any() else np.array([2])).astype(np.int32)
  groups_NxG = number[index].reshape(keys_NxG.shape).astype(np.int32)
  return SamplingArrays(
    groups=groups_NxG, group_sizes=sizes_S, kin=_padded(kin), levels=levels_NxH
  )
