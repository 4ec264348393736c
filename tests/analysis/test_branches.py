"""Branches: every class in the one it belongs to, by networkx; the world's by its attributes."""

import networkx as nx
import numpy as np
import pytest

from pomp_jax.analysis.branches import shape_branches, wordnet_branches
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.world.names import SHAPES, class_attributes, class_names


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet21k"])
def test_branches_of_wordnet(name):
  tree = load_tree()
  nodes = tree.nodes(load_class_list(name).synsets)
  branches = wordnet_branches(tree, nodes)
  sizes = np.bincount(branches.of_class)
  assert len(sizes) == len(branches.names)
  assert 8 <= len(sizes) <= 16
  assert sizes[: len(sizes) - 1].min() >= len(nodes) / 50
  assert sizes.max() < len(nodes) / 2
  assert len(set(branches.names)) == len(branches.names)
  graph = nx.DiGraph(
    (int(child), int(parent)) for child in range(len(tree)) for parent in tree.parents[child]
  )
  named = {label: node for node, label in enumerate(tree.names)}
  for c in range(0, len(nodes), 97):
    branch = branches.names[branches.of_class[c]]
    if branch != "other":
      # A lemma may name several synsets; one of them has to be above.
      above = nx.descendants(graph, int(nodes[c])) | {int(nodes[c])}
      assert branch in {tree.names[node] for node in above}, (named[branch], c)


def test_the_worlds_nouns():
  names = class_names("novel")
  branches = shape_branches(names)
  shapes = class_attributes("novel")[:, 2]
  assert [branches.names[b] for b in branches.of_class] == [SHAPES[s] for s in shapes]
  assert shape_branches(["goldfish", *names]) is None
