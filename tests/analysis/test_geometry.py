"""Alignment, uniformity and the plane against their definitions in NumPy float64, and sklearn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pomp_jax.analysis import geometry
from pomp_jax.analysis.geometry import alignment, branch_plane, prompt_similarity, uniformity


def unit(seed, *shape):
  rows = np.random.default_rng(seed).normal(size=shape)
  return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_alignment_is_the_mean_squared_distance():
  images, classes = unit(0, 50, 8), unit(1, 7, 8)
  labels = np.random.default_rng(2).integers(0, 7, 50)
  pairs = [
    np.linalg.norm(image.astype(np.float64) - classes[label].astype(np.float64)) ** 2
    for image, label in zip(images, labels, strict=True)
  ]
  assert alignment(images, classes, labels) == pytest.approx(np.mean(pairs), rel=1e-6)
  assert alignment(classes, classes, np.arange(7)) == 0
  assert alignment(classes, -classes, np.arange(7)) == pytest.approx(4, rel=1e-6)
  with pytest.raises(ValueError, match="at least one image"):
    alignment(images[:0], classes, labels[:0])


@pytest.mark.parametrize("n_classes", [2, 3, 40, 101])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_uniformity_is_over_distinct_pairs(n_classes, temperature, monkeypatch):
  monkeypatch.setattr(geometry, "_CHUNK", 20)  # several blocks, the last one not full
  classes = unit(3, n_classes, 6)
  exact = classes.astype(np.float64)
  potentials = [
    np.exp(-temperature * np.sum((exact[i] - exact[j]) ** 2))
    for i in range(n_classes)
    for j in range(i + 1, n_classes)
  ]
  expected = np.log(np.mean(potentials))
  assert uniformity(classes, temperature) == pytest.approx(expected, abs=1e-6)


def test_uniformity_of_equal_and_of_opposite_classes():
  row = unit(4, 1, 6)
  assert uniformity(np.repeat(row, 30, axis=0)) == pytest.approx(0, abs=1e-6)
  assert uniformity(np.concatenate([row, -row])) == pytest.approx(-8, abs=1e-5)
  with pytest.raises(ValueError, match="at least 2 classes, got 1"):
    uniformity(row)


def test_similarity_of_prompts():
  a, b = unit(5, 9, 4), unit(6, 9, 4)
  found = prompt_similarity([a, b, a])
  expected = np.mean([np.dot(x.astype(np.float64), y) for x, y in zip(a, b, strict=True)])
  np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
  np.testing.assert_allclose(found[0, 1], expected, atol=1e-6)
  np.testing.assert_array_equal(found, found.T)
  np.testing.assert_allclose(found[0, 2], 1, atol=1e-6)


def test_the_plane_of_a_class_each_is_that_of_principal_components():
  features = unit(7, 30, 5) * np.array([4, 2, 1, 1, 1])
  pca = PCA(2).fit(features)
  for branches in (np.arange(30), np.zeros(30, int)):
    plane = branch_plane(features, branches)
    np.testing.assert_allclose(np.abs(plane.points), np.abs(pca.transform(features)), atol=1e-5)
    np.testing.assert_allclose(plane.explained, pca.explained_variance_ratio_, atol=1e-6)


def test_the_plane_is_that_of_the_branches_means():
  """The widest direction is noise; only what tells the branches apart is drawn."""
  rng = np.random.default_rng(8)
  branches = np.repeat(np.arange(4), 50)
  means = np.array([[1, 0], [-1, 0], [0, 0.5], [0, -0.5]])[branches]
  features = np.concatenate([rng.normal(0, 30, (200, 1)), means], axis=1)
  features[:, 0] -= np.array([features[branches == b, 0].mean() for b in range(4)])[branches]
  plane = branch_plane(features, branches)
  np.testing.assert_allclose(plane.points, means, atol=1e-6)
  assert sum(plane.explained) < 0.01
