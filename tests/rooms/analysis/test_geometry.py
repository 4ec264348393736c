"""Feature geometry against SciPy, scikit-learn and networkx; `test_analyse` has alignment."""

import networkx as nx
import numpy as np
import pytest
import scipy.spatial
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.rooms.analysis import geometry
from pomp_jax.world.names import SHAPES, class_attributes, class_names
from tests.support import oracles
from tests.support.oracles import tree_graph


def unit(seed, *shape):
  return oracles.unit(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("n_classes", [2, 3, 40, 101])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_uniformity_is_over_distinct_pairs(n_classes, temperature, monkeypatch):
  monkeypatch.setattr(geometry, "_CHUNK", 20)  # several blocks, the last one not full
  classes = unit(3, n_classes, 6)
  squares = scipy.spatial.distance.pdist(classes.astype(np.float64), "sqeuclidean")
  expected = np.log(np.mean(np.exp(-temperature * squares)))
  assert geometry.uniformity(classes, temperature) == pytest.approx(expected, abs=1e-6)


def test_similarity_of_prompts():
  a, b = unit(5, 9, 4), unit(6, 9, 4)
  mean = np.mean(np.sum(a.astype(np.float64) * b, axis=1))
  expected = [[1, mean, 1], [mean, 1, mean], [1, mean, 1]]
  np.testing.assert_allclose(geometry.prompt_similarity([a, b, a]), expected, atol=1e-6)


def test_the_plane_of_a_class_each_is_that_of_principal_components():
  rows = unit(7, 30, 5) * np.array([4, 2, 1, 1, 1])
  pca = PCA(2).fit(rows)
  for branches in (np.arange(30), np.zeros(30, int)):
    points, explained = geometry.branch_plane(rows, branches)
    np.testing.assert_allclose(np.abs(points), np.abs(pca.transform(rows)), atol=1e-5)
    np.testing.assert_allclose(explained, pca.explained_variance_ratio_, atol=1e-6)


def test_the_plane_is_that_of_the_branches_means():
  """The widest direction is noise; only what tells the branches apart is drawn."""
  rng = np.random.default_rng(8)
  branches = np.repeat(np.arange(4), 50)
  means = np.array([[1, 0], [-1, 0], [0, 0.5], [0, -0.5]])[branches]
  rows = np.concatenate([rng.normal(0, 30, (200, 1)), means], axis=1)
  rows[:, 0] -= np.array([rows[branches == b, 0].mean() for b in range(4)])[branches]
  points, explained = geometry.branch_plane(rows, branches)
  np.testing.assert_allclose(points, means, atol=1e-6)
  assert sum(explained) < 0.01


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet21k"])
def test_branches_of_wordnet(name):
  tree = load_tree()
  nodes = tree.nodes(load_class_list(name).synsets)
  branches = geometry.wordnet_branches(tree, nodes)
  sizes = np.bincount(branches.of_class)
  assert len(sizes) == len(branches.names)
  assert 8 <= len(sizes) <= 16
  assert sizes[: len(sizes) - 1].min() >= len(nodes) / 50
  assert sizes.max() < len(nodes) / 2
  assert len(set(branches.names)) == len(branches.names)
  graph = tree_graph(tree)
  for c in range(0, len(nodes), 97):
    branch = branches.names[branches.of_class[c]]
    if branch != "other":
      # A lemma may name several synsets; one of them has to be above.
      above = nx.ancestors(graph, int(nodes[c])) | {int(nodes[c])}
      assert branch in {tree.names[node] for node in above}, c


def test_the_worlds_nouns():
  names = class_names("novel")
  branches = geometry.shape_branches(names)
  shapes = class_attributes("novel")[:, 2]
  assert [branches.names[b] for b in branches.of_class] == [SHAPES[s] for s in shapes]
  assert geometry.shape_branches(["goldfish", *names]) is None


def test_nearest_tokens():
  rng = np.random.default_rng(0)
  table = rng.normal(size=(60, 8)).astype(np.float32)
  vectors = rng.normal(size=(5, 8)).astype(np.float32)
  found = geometry.nearest_tokens(vectors, table, 4)
  distances, tokens = NearestNeighbors(n_neighbors=4).fit(table).kneighbors(vectors)
  np.testing.assert_array_equal(found[0], tokens)
  np.testing.assert_allclose(found[1], distances, rtol=1e-5)
  assert geometry.nearest_tokens(vectors, table, 100)[0].shape == (5, 60)
  # Ties go to the lower id.
  table = np.eye(6, 3, dtype=np.float32)  # rows 3, 4 and 5 are zero
  assert geometry.nearest_tokens(table[[4]], table, 2)[0].tolist() == [[3, 4]]


def test_the_spacing_of_tokens():
  table = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
  distances, _ = NearestNeighbors(n_neighbors=2).fit(table).kneighbors(table)
  assert geometry.token_spacing(table) == pytest.approx(np.median(distances[:, 1]), rel=1e-5)


def test_a_set_of_one_class_has_no_uniformity_and_no_point(tmp_path, drawn):
  one, two = {"alignment": 1.0, "uniformity": None}, {"alignment": 1.2, "uniformity": -0.5}
  sets = {
    "pets/novel": {"images": 1, "classes": 1, "prompts": {"a {}": one}},
    "pets/base": {"images": 2000, "classes": 2, "prompts": {"a {}": two}},
  }
  geometry.alignment_uniformity(tmp_path / "plot.png", sets)
  points = [axes.get_lines()[0].get_xdata() for axes in drawn[0].axes[:2]]
  assert np.isnan(points[0]).all() and points[1].tolist() == [-0.5]
  titles = [axes.get_title() for axes in drawn[0].axes[:2]]
  assert titles == ["pets/novel, 1 image, 1 class", "pets/base, 2,000 images, 2 classes"]
