"""Feature geometry against SciPy and scikit-learn; `test_analyse` has alignment."""

import numpy as np
import pytest
import scipy.spatial
from sklearn.neighbors import NearestNeighbors

from pomp_jax.rooms.analysis import geometry
from tests.support import oracles


def unit(seed, *shape):
  return oracles.unit(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("n_classes", [2, 3, 40, 101])
def test_uniformity_is_over_distinct_pairs(n_classes, monkeypatch):
  monkeypatch.setattr(geometry, "_CHUNK", 20)  # several blocks, the last one not full
  classes = unit(3, n_classes, 6)
  squares = scipy.spatial.distance.pdist(classes.astype(np.float64), "sqeuclidean")
  expected = np.log(np.mean(np.exp(-2 * squares)))
  assert geometry.uniformity(classes) == pytest.approx(expected, abs=1e-6)


def test_similarity_of_prompts():
  a, b = unit(5, 9, 4), unit(6, 9, 4)
  mean = np.mean(np.sum(a.astype(np.float64) * b, axis=1))
  expected = [[1, mean, 1], [mean, 1, mean], [1, mean, 1]]
  np.testing.assert_allclose(geometry.prompt_similarity([a, b, a]), expected, atol=1e-6)


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
  assert geometry.token_spacing(table) == pytest.approx(
    np.median(distances[:, 1]), rel=1e-5
  )


def test_a_set_of_one_class_has_no_uniformity_and_no_point(tmp_path, drawn):
  one, two = (
    {"alignment": 1.0, "uniformity": None},
    {"alignment": 1.2, "uniformity": -0.5},
  )
  sets = {
    "pets/novel": {"images": 1, "classes": 1, "prompts": {"a {}": one}},
    "pets/base": {"images": 2000, "classes": 2, "prompts": {"a {}": two}},
  }
  geometry.alignment_uniformity(tmp_path / "plot.png", sets)
  points = [axes.get_lines()[0].get_xdata() for axes in drawn[0].axes[:2]]
  assert np.isnan(points[0]).all() and points[1].tolist() == [-0.5]
  titles = [axes.get_title() for axes in drawn[0].axes[:2]]
  assert titles == [
    "pets/novel, 1 image, 1 class",
    "pets/base, 2,000 images, 2 classes",
  ]


def test_the_first_panel_of_each_row_says_what_is_up(tmp_path, drawn):
  """Five panels stand in rows of three and two, though four fit into a row."""
  figures = {"alignment": 1.2, "uniformity": -0.5}
  of_set = {"images": 2, "classes": 2, "prompts": {"{}.": figures}}
  geometry.alignment_uniformity(tmp_path / "plot.png", dict.fromkeys("abcde", of_set))
  has_label = [bool(axes.get_ylabel()) for axes in drawn[0].axes]
  assert has_label == [True, False, False, True, False]
