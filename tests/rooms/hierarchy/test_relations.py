"""Relations that samplers read, against the names and WordNet."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import ClassList, load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.rooms.hierarchy import relations
from pomp_jax.rooms.hierarchy.relations import attribute_relations, wordnet_relations
from pomp_jax.train.sampling_data import sampling_arrays
from pomp_jax.world import names as world_names
from tests.support.small_run import small_config


def _pairs(rows) -> set[tuple[int, int]]:
  return {(i, int(c)) for i, row in enumerate(rows) for c in row if c >= 0}


def test_relations_of_the_world():
  attributes = world_names.class_attributes("base")[:2000]
  _, _, groups, sizes, kin, levels = attribute_relations(attributes)
  np.testing.assert_array_equal(np.bincount(groups[groups >= 0]), sizes)
  assert sizes.min() >= 2
  family_of = [
    {word: f for f, words in enumerate(families) for word in words}
    for families in world_names.FAMILIES
  ]
  families = np.array(
    [
      [family_of[a][world_names.WORDS[a][value]] for a, value in enumerate(row)]
      for row in attributes
    ]
  )
  # Random pairs, and near ones, which share more.
  pairs = np.random.default_rng(0).integers(0, 2000, (400, 2)).tolist()
  pairs += [[i, j] for i in (0, 70, 900) for j in range(2000)]
  i, j = np.array([pair for pair in pairs if pair[0] != pair[1]]).T
  same = attributes[i] == attributes[j]
  colour, texture, shape, _ = same.T
  of_one, of_other = groups[i, :, None], groups[j, None]
  share = ((of_one == of_other) & (of_one >= 0)).any((1, 2))
  np.testing.assert_array_equal(share, same.sum(1) == 3)
  same_families = (families[i] == families[j]).all(1)
  np.testing.assert_array_equal((kin[i] == j[:, None]).any(1), same_families)
  same_levels = np.stack([shape, shape & texture, shape & texture & colour], 1)
  np.testing.assert_array_equal(levels[i] == levels[j], same_levels)


def test_relations_in_wordnet():
  synsets = load_class_list("imagenet21k").synsets[:3000]
  tree = load_tree()
  nodes = tree.nodes(synsets)
  _, _, groups, sizes, kin, levels = wordnet_relations(tree, nodes)
  np.testing.assert_array_equal(np.bincount(groups[groups >= 0]), sizes)
  of_group = collections.defaultdict(set)
  for c, group in _pairs(groups):
    of_group[group].add(c)
  found = {
    pair for members in of_group.values() for pair in itertools.permutations(members, 2)
  }
  children = collections.defaultdict(set)
  for c, node in enumerate(nodes):
    for parent in tree.parents[node]:
      children[parent].add(c)
  assert found == {
    pair for own in children.values() for pair in itertools.permutations(own, 2)
  }
  above = _pairs(kin)
  one, other = np.random.default_rng(0).integers(0, 3000, (2, 20_000))
  near_one, near_other = np.array(sorted(above)).T
  one, other = np.concatenate([one, near_one]), np.concatenate([other, near_other])
  # b above a: a is a kind of b.
  pairs = list(zip(one.tolist(), other.tolist(), strict=True))
  expected = [a != b and nodes[b] in tree.ancestors[nodes[a]] for a, b in pairs]
  assert [pair in above for pair in pairs] == expected
  assert sum(expected) > 100
  for column, depth in enumerate((4, 6, 8)):
    has = levels[:, column] >= 0
    assert 0 < has.sum() <= 3000
    assert np.all(tree.depth[levels[has, column]] == depth)
    found = zip(levels[has, column], nodes[has], strict=True)
    assert all(ancestor in tree.ancestors[node] for ancestor, node in found)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("sampling.name", "hierarchical"),
    ("sampling.exclude", "kin"),
    ("sampling.ancestors_weight", 0.5),
  ],
)
def test_classes_without_known_relations(field, value):
  config = small_config(
    **{field: value, "data.source": "folder", "data.names": "food101"}
  )
  names = load_class_list("food101").names
  with pytest.raises(ConfigError, match=rf"config\.{field}: got "):
    sampling_arrays(config.sampling, config.data, names, np.zeros(1, int))
  data = dataclasses.replace(config.data, names="imagenet1k")
  names = load_class_list("imagenet1k").names[:500]
  arrays = sampling_arrays(config.sampling, data, names, np.zeros(1, int))
  assert sum(part is not None for part in arrays) in (1, 2)


def test_a_list_with_a_name_of_two_synsets_has_no_relations(monkeypatch):
  """ "crane" is a bird and a machine: which one a class is, the name does not say."""
  synsets = ("n02012849", "n03126707", "n02084071")
  data = small_config(**{"data.source": "folder", "data.names": "list.csv"}).data
  for names, is_known in (
    (("crane", "hoist", "dog"), True),
    (("crane", "crane", "dog"), False),
  ):
    classes = ClassList(names, synsets)
    monkeypatch.setattr(relations, "load_class_list", lambda text, it=classes: it)
    assert (relations.relations(data, names) is not None) == is_known
