"""Relations and the figures on the tree against networkx, on ImageNet's classes."""

import networkx as nx
import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.evaluate.metrics import Tally
from pomp_jax.rooms.analysis.tree_errors import Hierarchy, TreeTally, tallies
from pomp_jax.rooms.analysis.tree_relations import relations_of

PAIRS = 400


@pytest.fixture(scope="module")
def pairs():
  """Classes of ImageNet-21K, answers (some right, some siblings, some kinds), and the hierarchy."""
  tree = load_tree()
  synsets = load_class_list("imagenet21k").synsets
  nodes = tree.nodes(synsets)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, len(synsets), PAIRS)
  answers = rng.integers(0, len(synsets), PAIRS)
  answers[:60] = labels[:60]
  siblings = relations_of(tree).siblings(nodes)
  class_of = {node: c for c, node in enumerate(nodes)}
  for i in range(60, 200):
    near = siblings[labels[i]]
    answers[i] = rng.choice(near) if len(near) else answers[i]
  for i in range(200, 260):
    above = [class_of[a] for a in tree.ancestors[nodes[labels[i]]] if a in class_of]
    answers[i] = rng.choice(above)
  return synsets, labels, answers, Hierarchy(tree, nodes)


@pytest.fixture(scope="module")
def expected(pairs):
  """Each relation by networkx, pair by pair; the depth of each node."""
  synsets, labels, answers, _ = pairs
  ids, parents = load_tree().ids, load_tree().parents
  # From parent to child.
  graph = nx.DiGraph((ids[up], ids[down]) for down in range(len(ids)) for up in parents[down])
  root = "n00001740"
  depth = {root: 0}
  for node in nx.topological_sort(graph):
    for child in graph[node]:
      depth[child] = max(depth.get(child, 0), depth[node] + 1)
  height = {}
  for node in reversed(list(nx.topological_sort(graph))):
    height[node] = 1 + max((height[child] for child in graph[node]), default=-1)
  rows = []
  for label, answer in zip(labels, answers, strict=True):
    a, b = synsets[label], synsets[answer]
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
  return rows, depth


def test_relations_and_figures_equal_networkx(pairs, expected):
  synsets, labels, answers, hierarchy = pairs
  rows, depth = expected
  distance, height, common_depth, sibling, kin = map(np.array, zip(*rows, strict=True))
  found = hierarchy.relations(labels, answers)
  np.testing.assert_array_equal(found.distance, distance)
  np.testing.assert_array_equal(found.ancestor_depth, common_depth)
  np.testing.assert_array_equal(found.sibling, sibling)
  np.testing.assert_array_equal(found.kin, kin)
  assert 100 < sum(sibling) < PAIRS and sum(kin) > 100
  for one, possible in zip(found.ancestor_height, height, strict=True):
    # Of several common ancestors as deep any may be the lowest.
    assert one == possible or (possible and one in possible)
  right = labels == answers
  tally = Tally(len(synsets), TreeTally(hierarchy))
  for part in (slice(0, 150), slice(150, PAIRS)):
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
  own = np.array([depth[synsets[label]] for label in labels])
  assert {int(d): share for d, share in tree["at_depth"].items()} == pytest.approx(
    {d: np.mean(common_depth[own >= d] >= d) for d in range(1, own.max() + 1)}
  )
  heights = found.ancestor_height
  assert tree["ancestor_height"] == pytest.approx(heights.mean())
  assert tree["ancestor_height_of_errors"] == pytest.approx(heights[~right].mean())


def test_chance_of_a_sibling_is_what_random_errors_do():
  """Uniformly over all wrong answers to each class of ImageNet-A."""
  synsets = load_class_list("imagenet_a").synsets
  n = len(synsets)
  labels, answers = (x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
  wrong = labels != answers
  tally = Tally(n, tallies(synsets)())
  rank = np.ones(wrong.sum(), int)
  tally.add(labels[wrong], rank, answers[wrong], np.full(len(rank), 0.5))
  errors = tally.figures()["errors"]
  assert errors["sibling"] == pytest.approx(errors["sibling_chance"])
  assert 0.001 < errors["sibling"] < 0.1
