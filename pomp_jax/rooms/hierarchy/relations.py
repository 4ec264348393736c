"""Relations between classes, which samplers of negatives and the loss read.

For classes with synsets the relations come from WordNet. Class names of the embedded
world combine four attributes: siblings differ in one attribute, kin have words that
captions confuse, and the levels group classes by shape, then also by texture, then also
by colour.

Shapes: N classes, G groups of a class, D kin of a class, H levels, A attributes.
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

# Depths below WordNet's root at which the loss takes a class's ancestor. Examples of
# ancestors: artifact and living thing at 4, animal and instrumentality at 6, mammal and
# vehicle at 8.
TREE_LEVELS = (4, 6, 8)


def relations(data: Data, names: Sequence[str]) -> SamplingArrays | None:
  """Groups, group sizes, kin and levels of training classes.

  Args:
    data: source and class list of the training images.
    names: names of the training classes, in the order of their labels.

  Returns:
    The arrays, for the embedded world and for a class list with a synset for each name.
    None for other classes: their relations are unknown.
  """
  if data.source == WORLD:
    base_names = world_names.class_names("base")
    row_of = {name: row for row, name in enumerate(base_names)}
    rows_N = np.array([row_of[name] for name in names])
    attributes = world_names.class_attributes("base")
    return attribute_relations(attributes[rows_N])

  try:
    classes = load_class_list(data.names or data.dataset)
  except ValueError:
    # A user's data set may have no class list.
    return None
  if classes.synsets is None:
    return None
  synset_of = dict(zip(classes.names, classes.synsets, strict=True))
  # If several classes share a name, the synset of the name is ambiguous.
  has_shared_names = len(synset_of) < len(classes)
  if has_shared_names or not set(names) <= set(synset_of):
    return None
  synsets = [synset_of[name] for name in names]
  tree = load_tree()
  return wordnet_relations(tree, tree.nodes(synsets))


def wordnet_relations(
  tree: Tree, class_nodes_N: Int32[np.ndarray, " N"]
) -> SamplingArrays:
  """Groups, group sizes, kin and levels of classes in WordNet.

  Siblings share a parent. Kin are ancestors or descendants; `kin` lists a class's
  ancestors alone, because samplers look it up in both directions. The level at a depth
  is the first ancestor, by id, at that depth. The classes are distinct nodes of the
  tree.
  """
  n_classes = len(class_nodes_N)
  class_of_node = np.full(len(tree), -1, np.int32)
  class_of_node[class_nodes_N] = np.arange(n_classes)
  kin = []
  levels_NxH = np.full((n_classes, len(TREE_LEVELS)), -1, np.int32)
  for c, node in enumerate(class_nodes_N):
    ancestors = tree.ancestors[node]
    # `ancestors` includes the node itself.
    classes_above = class_of_node[ancestors[ancestors != node]]
    kin.append(classes_above[classes_above >= 0])
    for column, depth in enumerate(TREE_LEVELS):
      at_depth = ancestors[tree.depth[ancestors] == depth]
      if len(at_depth):
        levels_NxH[c, column] = at_depth[0]
  parents_NxG = _padded([tree.parents[node] for node in class_nodes_N])
  return _arrays(parents_NxG, kin, levels_NxH)


def attribute_relations(attributes_NxA: Int32[np.ndarray, "N A"]) -> SamplingArrays:
  """Groups, group sizes, kin and levels of the embedded world's classes.

  A class is in one group for each attribute, with the classes that differ from it in
  that attribute alone. Kin have words of the same families in all attributes.
  """
  n_attributes = attributes_NxA.shape[1]
  group_keys = []
  for dropped in range(n_attributes):
    columns = np.delete(attributes_NxA, dropped, axis=1)
    # Prepend the index of the dropped attribute: groups of different attributes may
    # have equal values in the other columns.
    group_keys.append(_key(np.insert(columns, 0, dropped, axis=1)))

  families_of_words = []
  for attribute, families in enumerate(world_names.FAMILIES):
    sizes = [len(family) for family in families]
    family_of_word = np.repeat(np.arange(len(families)), sizes)
    families_of_words.append(family_of_word[attributes_NxA[:, attribute]])
  family_N = _key(np.stack(families_of_words, axis=1))
  members = {
    family: np.flatnonzero(family_N == family) for family in np.unique(family_N)
  }
  kin = []
  for c, family in enumerate(family_N):
    kin.append(members[family][members[family] != c])

  # Columns of the attributes.
  colour, texture, shape, _ = range(n_attributes)
  levels = []
  for level_attributes in ([shape], [shape, texture], [shape, texture, colour]):
    keys_N = _key(attributes_NxA[:, level_attributes])
    _, level_N = np.unique(keys_N, return_inverse=True)
    levels.append(level_N)
  levels_NxH = np.stack(levels, axis=1).astype(np.int32)
  return _arrays(np.stack(group_keys, axis=1), kin, levels_NxH)


def _key(columns_NxA: np.ndarray) -> np.ndarray:
  """One number per row, equal for equal rows only; all values must be below 32."""
  return columns_NxA.astype(np.int64) @ (32 ** np.arange(columns_NxA.shape[1]))


def _padded(rows: Sequence[np.ndarray]) -> Int32[np.ndarray, "N G"]:
  """Returns the rows as an array; shorter rows are padded with -1."""
  longest = max((len(row) for row in rows), default=0)
  padded = np.full((len(rows), max(longest, 1)), -1, np.int32)
  for number, row in enumerate(rows):
    padded[number, : len(row)] = row
  return padded


def _arrays(
  keys_NxG: np.ndarray, kin: list[np.ndarray], levels_NxH: np.ndarray
) -> SamplingArrays:
  """Numbers the groups from 0, and drops groups of one class."""
  keys, index, sizes = np.unique(keys_NxG, return_inverse=True, return_counts=True)
  is_group = (keys >= 0) & (sizes >= 2)
  number_of_key = np.where(is_group, np.cumsum(is_group) - 1, -1)
  group_sizes = sizes[is_group]
  if not is_group.any():
    # Return at least one group, so that the array can be indexed.
    group_sizes = np.array([2])
  return SamplingArrays(
    groups=number_of_key[index].reshape(keys_NxG.shape).astype(np.int32),
    group_sizes=group_sizes.astype(np.int32),
    kin=_padded(kin),
    levels=levels_NxH,
  )
