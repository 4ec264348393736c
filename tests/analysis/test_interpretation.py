"""Nearest tokens against scikit-learn's neighbours."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pomp_jax.analysis.interpretation import nearest_tokens, token_spacing


def test_nearest_tokens():
  rng = np.random.default_rng(0)
  table = rng.normal(size=(60, 8)).astype(np.float32)
  vectors = rng.normal(size=(5, 8)).astype(np.float32)
  found = nearest_tokens(vectors, table, 4)
  distances, tokens = NearestNeighbors(n_neighbors=4).fit(table).kneighbors(vectors)
  np.testing.assert_array_equal(found.tokens, tokens)
  np.testing.assert_allclose(found.distances, distances, rtol=1e-5)
  assert nearest_tokens(vectors, table, 100).tokens.shape == (5, 60)


def test_a_token_is_nearest_to_itself_and_ties_go_to_the_lower_id():
  table = np.eye(6, 3, dtype=np.float32)  # rows 3, 4 and 5 are zero
  found = nearest_tokens(table[[1, 4]], table, 2)
  assert found.tokens[0, 0] == 1
  assert found.tokens[1].tolist() == [3, 4]
  assert found.distances[:, 0].tolist() == [0, 0]


def test_the_spacing_of_tokens():
  table = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
  distances, _ = NearestNeighbors(n_neighbors=2).fit(table).kneighbors(table)
  assert token_spacing(table) == pytest.approx(np.median(distances[:, 1]), rel=1e-5)
  with pytest.raises(ValueError, match="at least 2"):
    token_spacing(table[:1])
