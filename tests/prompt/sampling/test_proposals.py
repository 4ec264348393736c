"""Proposals against plain loops in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pomp_jax.prompt.sampling.proposals import by_siblings, by_similarity

LABELS = np.array([2, 2, 5, 0], np.int32)


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.1, -0.3])
def test_similarity_is_the_mean_of_the_images_softmaxes(temperature):
  rng = np.random.default_rng(0)
  bank, anchors = _unit(rng.normal(size=(9, 4))), _unit(rng.normal(size=(4, 4)))
  expected = np.zeros(9)
  for anchor, label in zip(anchors, LABELS, strict=True):
    scores = {c: np.exp(anchor @ bank[c] / temperature) for c in range(9) if c != label}
    for c, score in scores.items():
      expected[c] += score / sum(scores.values()) / 4
  found = by_similarity(
    jnp.asarray(anchors, jnp.float32),
    jnp.asarray(bank, jnp.float32),
    jnp.asarray(LABELS),
    temperature,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found.sum() == pytest.approx(1)


def test_siblings_are_drawn_through_a_group_of_the_image():
  groups = [{0, 1, 2}, {2, 3}, {4, 5, 6, 7}]
  of_class = [[g for g, members in enumerate(groups) if c in members] for c in range(9)]
  groups_NxG = np.full((9, 2), -1, np.int32)
  for c, own in enumerate(of_class):
    groups_NxG[c, : len(own)] = own
  labels = np.array([2, 2, 5, 8], np.int32)  # class 8 has no group
  expected = np.zeros(9)
  for label in labels:
    if not of_class[label]:
      expected += 1 / 9 / 4
    for g in of_class[label]:
      for c in groups[g] - {int(label)}:
        expected[c] += 1 / 4 / len(of_class[label]) / (len(groups[g]) - 1)
  sizes = np.array([len(members) for members in groups], np.int32)
  found = by_siblings(jnp.asarray(labels), jnp.asarray(groups_NxG), jnp.asarray(sizes))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  assert found.sum() == pytest.approx(1)
