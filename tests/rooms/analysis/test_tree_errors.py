"""Relations and the figures on a tree against networkx; random errors on ImageNet's
classes."""

import networkx as nx
import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import Tree
from pomp_jax.evaluate.metrics import Tally
from pomp_jax.rooms.analysis.tree_errors import Hierarchy, TreeTally, tallies
from tests.support.oracles import tree_graph


def related(tree, pairs):
  """Each relation of pairs of nodes by networkx, pair by pair; the depth of each
  node."""
  graph = tree_graph(tree)
  depth = {tree.root: 0}
  for node in nx.topological_sort(graph):
    for child in graph[node]:
      depth[child] = max(depth.get(child, 0), depth[node] + 1)
  height = {}
  for node in reversed(list(nx.topological_sort(graph))):
    height[node] = 1 + max((height[child] for child in graph[node]), default=-1)
  rows = []
  for a, b in pairs:
    above_a, above_b = nx.ancestors(graph, a) | {a}, nx.ancestors(graph, b) | {b}
    common = above_a & above_b
    up_a = nx.single_source_shortest_path_length(graph.reverse(copy=False), a)
    up_b = nx.single_source_shortest_path_length(graph.reverse(copy=False), b)
    deepest = max(depth[c] for c in common)
    rows.append(
      (
        min(up_a[c] + up_b[c] for c in common),
        0 if a == b else {height[c] for c in common if depth[c] == deepest},
        deepest,
        a != b and bool(set(graph.predecessors(a)) & set(graph.predecessors(b))),
        a in above_b or b in above_a,
      )
    )
  return [np.array(column) for column in zip(*rows, strict=True)], depth


@pytest.mark.parametrize("seed", range(3))
def test_relations_and_figures_in_any_tree_equal_networkx(seed):
  """Each node but the first has one to three parents before it; ids and classes are
  shuffled."""
  rng, n = np.random.default_rng(seed), 40
  ids = [f"n{i:08}" for i in rng.permutation(n)]
  parents = {
    ids[i]: [ids[p] for p in rng.choice(i, min(i, rng.integers(1, 4)), replace=False)]
    for i in range(n)
  }
  tree = Tree(sorted(ids), sorted(ids), [parents[synset] for synset in sorted(ids)])
  nodes = rng.permutation(n)[:25].astype(np.int32)
  labels, answers = (grid.ravel() for grid in np.meshgrid(np.arange(25), np.arange(25)))
  hierarchy = Hierarchy(tree, nodes)
  pairs = zip(nodes[labels].tolist(), nodes[answers].tolist(), strict=True)
  (distance, height, common_depth, sibling, kin), depth = related(tree, pairs)
  found = hierarchy.relate(labels, answers)
  np.testing.assert_array_equal(found.distance, distance)
  np.testing.assert_array_equal(found.ancestor_depth, common_depth)
  np.testing.assert_array_equal(found.sibling, sibling)
  np.testing.assert_array_equal(found.kin, kin)
  for one, possible in zip(found.ancestor_height, height, strict=True):
    # Of several common ancestors as deep any may be the lowest.
    assert one == possible or (possible and one in possible)
  np.testing.assert_array_equal(
    hierarchy.n_siblings, sibling.reshape(25, 25).sum(axis=1)
  )
  right = labels == answers
  tally = Tally(25, TreeTally(hierarchy))
  for part in (slice(0, 150), slice(150, None)):
    rank = np.where(right, 0, 7)[part]
    tally.add(labels[part], rank, answers[part], np.full(len(rank), 0.5))
  figures = tally.figures()
  errors, tree = figures["errors"], figures["hierarchy"]
  assert errors["images"] == np.sum(~right)
  assert errors["sibling"] == pytest.approx(sibling[~right].mean())
  assert errors["mean_distance"] == pytest.approx(distance[~right].mean())
  assert {int(d): share for d, share in errors["distance"].items()} == pytest.approx(
    {int(d): np.mean(distance[~right] == d) for d in np.unique(distance[~right])}
  )
  assert tree["top1"] == pytest.approx(kin.mean())
  own = np.array([depth[node] for node in nodes[labels].tolist()])
  assert {int(d): share for d, share in tree["at_depth"].items()} == pytest.approx(
    {d: np.mean(common_depth[own >= d] >= d) for d in range(1, own.max() + 1)}
  )
  heights = found.ancestor_height
  assert tree["ancestor_height"] == pytest.approx(heights.mean())
  assert tree["ancestor_height_of_errors"] == pytest.approx(heights[~right].mean())


def test_chance_of_a_sibling_is_what_random_errors_do():
  """Uniformly over all wrong answers to each of some classes of ImageNet-A, and not
  to others."""
  synsets = load_class_list("imagenet_a").synsets
  n = len(synsets)
  labels, answers = (
    x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
  )
  wrong = (labels != answers) & (labels < n // 2)
  tally = Tally(n, tallies(synsets)())
  rank = np.ones(wrong.sum(), int)
  tally.add(labels[wrong], rank, answers[wrong], np.full(len(rank), 0.5))
  errors = tally.figures()["errors"]
  assert errors["sibling"] == pytest.approx(errors["sibling_chance"])
  assert 0.001 < errors["sibling"] < 0.1
