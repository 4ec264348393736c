"""Relations of nodes against NetworkX."""

import networkx as nx
import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import Tree, load_tree
from pomp_jax.rooms.analysis.tree_relations import TreeRelations, relations_of


@pytest.fixture(scope="module")
def tree():
  return load_tree()


def graph_of(tree):
  """Edges from parent to child."""
  graph = nx.DiGraph()
  graph.add_nodes_from(range(len(tree)))
  graph.add_edges_from((parent, node) for node in range(len(tree)) for parent in tree.parents[node])
  return graph


def random_tree(seed, n=40):
  """Each node but the first has one to three parents before it; then ids are shuffled."""
  rng = np.random.default_rng(seed)
  ids = [f"n{i:08}" for i in rng.permutation(n)]
  parents = {
    ids[i]: [ids[p] for p in rng.choice(i, min(i, rng.integers(1, 4)), replace=False)]
    for i in range(n)
  }
  return Tree(sorted(ids), sorted(ids), [parents[synset] for synset in sorted(ids)])


def test_ancestors_are_networkxs(tree):
  graph, relations = graph_of(tree), relations_of(tree)
  longest = np.zeros(len(tree), int)
  for level, nodes in enumerate(nx.topological_generations(graph)):
    longest[nodes] = level
  np.testing.assert_array_equal(relations.longest_depth, longest)
  assert relations.is_ancestor(tree.root, np.arange(len(tree))).all()
  backward, starts = graph.reverse(), relations.ancestors.starts
  for node in np.random.default_rng(0).choice(len(tree), 300):
    ways = nx.single_source_shortest_path_length(backward, node)
    distances = relations.ancestor_distance[starts[node] : starts[node + 1]].tolist()
    assert dict(zip(relations.ancestors[node].tolist(), distances, strict=True)) == ways


def check_pairs(tree, a, b):
  backward, relations = graph_of(tree).reverse(), TreeRelations(tree)
  lowest, distances = relations.lowest_common_ancestor(a, b)
  for i, pair in enumerate(zip(a, b, strict=True)):
    up_a, up_b = (nx.single_source_shortest_path_length(backward, node) for node in pair)
    common = set(up_a) & set(up_b)
    assert distances[i] == min(up_a[c] + up_b[c] for c in common)
    assert lowest[i] in common
    # It is a lowest one, and no common ancestor is deeper.
    assert not any(lowest[i] in nx.descendants(backward, c) for c in common - {lowest[i]})
    assert relations.longest_depth[lowest[i]] == max(relations.longest_depth[list(common)])
  np.testing.assert_array_equal((lowest, distances), relations.lowest_common_ancestor(b, a))


def test_pairs_are_networkxs(tree):
  rng = np.random.default_rng(1)
  check_pairs(tree, rng.choice(len(tree), 200), rng.choice(len(tree), 200))
  for seed in range(3):
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(40), np.arange(40)))
    check_pairs(random_tree(seed), a, b)


def test_pairs_broadcast_and_come_in_parts(tree, monkeypatch):
  rng = np.random.default_rng(2)
  a, b = rng.choice(len(tree), (7, 1)), rng.choice(len(tree), (1, 9))
  relations = relations_of(tree)
  whole = relations.lowest_common_ancestor(a, b)
  monkeypatch.setattr("pomp_jax.rooms.analysis.tree_relations._CHUNK", 4)
  assert whole.shape == (2, 7, 9)
  np.testing.assert_array_equal(whole, relations.lowest_common_ancestor(a, b))
  assert relations.lowest_common_ancestor(a[:0, 0], a[:0, 0]).shape == (2, 0)


def plain_siblings(tree, nodes):
  index_of = {node: index for index, node in enumerate(nodes)}
  children = {}
  for node in nodes:
    for parent in tree.parents[node]:
      children.setdefault(parent, set()).add(index_of[node])
  return [
    sorted(set().union(*(children[p] for p in tree.parents[node])) - {index_of[node]})
    for node in nodes
  ]


@pytest.mark.parametrize("name", ["imagenet21k", "imagenet_r", "random"])
def test_siblings(tree, name):
  if name == "random":  # in any order of the classes
    tree = random_tree(7)
    nodes = np.random.default_rng(7).permutation(40)[:25].astype(np.int32)
  else:
    nodes = tree.nodes(load_class_list(name).synsets)
  rows = [row.tolist() for row in TreeRelations(tree).siblings(nodes)]
  assert rows == plain_siblings(tree, nodes.tolist())
