"""What samplers know of a training's classes: counts, siblings, kin, kinds.

WordNet's tree says it for classes with synsets. The embedded world's names are combinations of
four attributes: siblings differ in one of them, kin are words that captions take for one another,
and kinds share the shape, then the texture, then the colour.

Shapes: N classes, G groups of a class, S groups, D kin of a class, H levels, A attributes.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Int32
from ml_collections import ConfigDict
import numpy as np

from pomp_jax.config import WORLD, ConfigError
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import Tree, load_tree
from pomp_jax.prompt.sampling import Sampling, SamplingArrays
from pomp_jax.world import names as world_names

# Edges below WordNet's root of the kinds whose contrast is learned: artifact and living thing;
# animal and instrumentality; mammal and vehicle.
TREE_LEVELS = (4, 6, 8)


def sampling_arrays(
  config: ConfigDict, names: Sequence[str], labels_n: np.ndarray
) -> SamplingArrays:
  """What `config.sampling` needs, but the bank, which follows the prompt.

  Args:
    config: the whole.
    names: N classes.
    labels_n: the class of every training image.

  Raises:
    ConfigError: a sampler that needs relations which nothing tells for these classes.
  """
  sampling, arrays = config.sampling, SamplingArrays()
  if sampling.name == "frequency":
    counts_N = np.bincount(labels_n, minlength=len(names)).astype(np.float64)
    # Relative to the largest: no power of it is beyond a float.
    counts_N = (counts_N / counts_N.max()) ** sampling.power
    arrays = arrays._replace(frequency=(counts_N / counts_N.sum()).astype(np.float32))
  wanted = {
    "sampling.name": sampling.name == "hierarchical",
    "sampling.exclude": sampling.exclude == "kin",
    "sampling.ancestors_weight": sampling.ancestors_weight > 0,
  }
  if not any(wanted.values()):
    return arrays
  relations = _relations(config, names)
  if relations is None:
    field = next(field for field, is_wanted in wanted.items() if is_wanted)
    leaf = field.rpartition(".")[2]
    takes = "what needs no relations between classes, or data.names with WordNet's synsets"
    raise ConfigError(field, sampling[leaf], takes)
  groups_NxG, group_sizes_S, kin_NxD, levels_NxH = relations
  if wanted["sampling.name"]:
    arrays = arrays._replace(groups=groups_NxG, group_sizes=group_sizes_S)
  if wanted["sampling.exclude"]:
    arrays = arrays._replace(kin=kin_NxD)
  if wanted["sampling.ancestors_weight"]:
    arrays = arrays._replace(levels=levels_NxH)
  return arrays


def sampling_of(fields: ConfigDict) -> Sampling:
  """`config.sampling` as the step has it."""
  return Sampling(**{field.name: fields[field.name] for field in dataclasses.fields(Sampling)})


def _relations(config: ConfigDict, names: Sequence[str]):
  if config.data.source == WORLD:
    row = {name: i for i, name in enumerate(world_names.class_names("base"))}
    kept_N = np.array([row[name] for name in names])
    return of_attributes(world_names.class_attributes("base")[kept_N])
  listed = config.data.names or config.data.dataset
  try:
    classes = load_class_list(listed)
  except ValueError:
    return None
  if classes.synsets is None:
    return None
  synset = dict(zip(classes.names, classes.synsets, strict=True))
  # (Of one name for several classes there is no telling which synset is meant.)
  if not set(names) <= set(synset) or len(synset) < len(classes):
    return None
  tree = load_tree()
  return of_tree(tree, tree.nodes([synset[name] for name in names]))


def of_tree(tree: Tree, class_nodes_N: Int32[np.ndarray, " N"]):
  """Groups, group sizes, kin and levels of classes in WordNet.

  Siblings share a parent; kin are a kind of one another, or the other way round; the kind on a
  level is the first, by id, of the ancestors at that depth.

  Args:
    tree: WordNet's.
    class_nodes_N: the classes' nodes, distinct.

  Returns:
    groups int32 [N,G], group_sizes int32 [S], kin int32 [N,D], levels int32 [N,H], as
    `prompt.sampling.SamplingArrays` has them.
  """
  n_classes = len(class_nodes_N)
  parents = [tree.parents[node] for node in class_nodes_N]
  groups_NxG, group_sizes_S = _groups(_padded(parents))
  class_of_n = np.full(len(tree), -1, np.int32)
  class_of_n[class_nodes_N] = np.arange(n_classes)
  above = [tree.ancestors[node] for node in class_nodes_N]
  kin = [class_of_n[nodes[nodes != own]] for nodes, own in zip(above, class_nodes_N, strict=True)]
  levels_NxH = np.full((n_classes, len(TREE_LEVELS)), -1, np.int32)
  for column, depth in enumerate(TREE_LEVELS):
    for c, nodes in enumerate(above):
      at = nodes[tree.depth[nodes] == depth]
      if len(at):
        levels_NxH[c, column] = at[0]
  return groups_NxG, group_sizes_S, _padded([row[row >= 0] for row in kin]), levels_NxH


def of_attributes(attributes_NxA: Int32[np.ndarray, "N A"]):
  """The same of the embedded world's classes; see `of_tree`."""
  n_attributes = attributes_NxA.shape[1]
  # All attributes but one, and which one: so a class is in as many groups as it has attributes.
  keys = [
    _key(np.insert(np.delete(attributes_NxA, left_out, axis=1), 0, left_out, axis=1))
    for left_out in range(n_attributes)
  ]
  groups_NxG, group_sizes_S = _groups(np.stack(keys, axis=1))
  family_of = [
    np.repeat(np.arange(len(families)), [len(family) for family in families])
    for families in world_names.FAMILIES
  ]
  family_N = _key(np.stack([of[a] for of, a in zip(family_of, attributes_NxA.T, strict=True)], 1))
  members: dict[int, list[int]] = {}
  for c, family in enumerate(family_N.tolist()):
    members.setdefault(family, []).append(c)
  kin = [
    np.array([other for other in members[family] if other != c], np.int32)
    for c, family in enumerate(family_N.tolist())
  ]
  colour, texture, shape, _ = range(n_attributes)
  kinds = [(shape,), (shape, texture), (shape, texture, colour)]
  levels = [
    np.unique(_key(attributes_NxA[:, list(columns)]), return_inverse=True)[1] for columns in kinds
  ]
  return groups_NxG, group_sizes_S, _padded(kin), np.stack(levels, axis=1).astype(np.int32)


def _key(columns_NxA: np.ndarray) -> np.ndarray:
  """One number a row, the same for equal rows alone; values below 32."""
  return columns_NxA.astype(np.int64) @ (32 ** np.arange(columns_NxA.shape[1]))


def _padded(rows: Sequence[np.ndarray]) -> Int32[np.ndarray, "N G"]:
  padded = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded


def _groups(keys_NxG: np.ndarray):
  """Groups numbered from 0, those with a single class left out: groups [N,G], sizes [S]."""
  found, index, sizes = np.unique(keys_NxG, return_inverse=True, return_counts=True)
  kept = (found >= 0) & (sizes >= 2)
  number = np.where(kept, np.cumsum(kept) - 1, -1)
  # At least one group, for an array to index.
  sizes = sizes[kept] if kept.any() else np.array([2])
  return number[index].reshape(keys_NxG.shape).astype(np.int32), sizes.astype(np.int32)
