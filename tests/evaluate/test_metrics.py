"""Figures against scikit-learn and torchmetrics, and in NumPy's float64 from all
scores at once."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import (
  balanced_accuracy_score,
  confusion_matrix,
  top_k_accuracy_score,
)
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from pomp_jax.evaluate import metrics

# The bins are those of Guo et al. (2017); a literal, so that another number shows.
N, IMAGES, N_BINS = 30, 1000, 15


@pytest.fixture(scope="module")
def scores():
  """Logits that are right about half of the time, and labels; two classes have no
  image."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, N - 2, IMAGES)
  # Unequal classes: micro and macro must differ.
  labels[:300] = 3
  logits = 2 * rng.normal(size=(IMAGES, N)) + 3 * np.eye(N)[labels]
  return labels, logits


def answers(labels, logits):
  """By sorting: another way than counting."""
  order = np.argsort(-logits, axis=-1)
  rank = np.argmax(order == labels[:, None], axis=-1)
  return rank, order[:, 0], scipy.special.softmax(logits, axis=-1).max(-1)


def tallied(labels, logits, batch):
  tally = metrics.Tally(N)
  for start in range(0, IMAGES, batch):
    part = slice(start, start + batch)
    tally.add(labels[part], *answers(labels[part], logits[part]))
  return tally


def test_errors_and_the_difference_of_two_classifiers(scores):
  labels, logits = scores
  other = np.roll(logits, 3, axis=-1) + 4 * np.eye(N)[labels]
  tally, first = metrics.Tally(N), answers(labels, logits)
  tally.add(labels, *answers(labels, other), first[0] == 0)
  counts = np.zeros((N, N), int)
  for c, answer, count in tally.by_class()["confusions"]:
    counts[c, answer] = count
  expected = confusion_matrix(labels, other.argmax(-1), labels=range(N))
  np.testing.assert_array_equal(counts, expected - np.diag(np.diag(expected)))
  of_classes = np.bincount(labels, minlength=N)
  rates = np.where(of_classes, np.diag(expected) / np.maximum(of_classes, 1), np.nan)
  assert np.isnan(rates[-2:]).all()
  per_class = tally.by_class()["per_class"]
  np.testing.assert_array_equal(per_class["images"], of_classes)
  np.testing.assert_allclose(np.array(per_class["top1"], float), rates)
  most = [count for *_, count in tally.by_class(most=10)["confusions"]]
  assert most == sorted(counts.ravel(), reverse=True)[:10]
  gains = (other.argmax(-1) == labels) * 1 - (logits.argmax(-1) == labels)
  found = tally.figures()["difference"]
  assert found["top1"] == pytest.approx(gains.mean())
  # Wald's of the images, and of one gained and one lost beside two halves of equal
  # ones.
  padded = np.append(np.repeat(gains, 2), [1, -1, 0, 0])
  reach = scipy.stats.norm.ppf(0.975) * padded.std() / np.sqrt(IMAGES + 2)
  np.testing.assert_allclose(
    found["interval"], padded.mean() + np.array([-reach, reach])
  )
  gained, lost = np.sum(gains > 0), np.sum(gains < 0)
  for pair in ((gained, lost), (0, 0), (3, 0), (2, 9), (5, 5)):
    p = metrics.paired_difference(*map(int, pair), 100)["p_value"]
    assert p == pytest.approx(
      scipy.stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1
    )


def test_the_difference_of_two_means_over_classes():
  """Of even classes it is that of the images; of uneven ones its ends are a
  bootstrap's."""
  rng = np.random.default_rng(5)
  even = np.repeat(np.arange(40), 25)
  first, second = rng.random(1000) < 0.6, rng.random(1000) < 0.5
  difference = metrics.paired_difference_over_classes(first, second, even)
  gained, lost = int(np.sum(first & ~second)), int(np.sum(second & ~first))
  expected = metrics.paired_difference(gained, lost, 1000)
  assert (difference["gained"], difference["lost"]) == (gained, lost)
  assert difference["macro_top1"] == pytest.approx(expected["top1"], abs=1e-12)
  assert difference["interval"] == pytest.approx(expected["interval"], abs=1e-12)
  labels = np.repeat(np.arange(40), rng.permuted(np.r_[[5] * 20, [45] * 20]))
  difference = metrics.paired_difference_over_classes(first, second, labels)
  balanced = [
    balanced_accuracy_score(labels, np.where(r, labels, -1)) for r in (first, second)
  ]
  assert difference["macro_top1"] == pytest.approx(balanced[0] - balanced[1], abs=1e-12)
  draws = []
  for _ in range(2000):
    rows = np.concatenate(
      [rng.choice(np.flatnonzero(labels == c), np.sum(labels == c)) for c in range(40)]
    )
    means = [
      np.mean([right[rows][labels == c].mean() for c in range(40)])
      for right in (first, second)
    ]
    draws.append(means[0] - means[1])
  np.testing.assert_allclose(
    difference["interval"], np.quantile(draws, [0.025, 0.975]), atol=0.012
  )


@pytest.mark.parametrize("batch", [1000, 77])
def test_accuracies_equal_scikit_learn(scores, batch):
  labels, logits = scores
  figures = tallied(labels, logits, batch).figures()
  for k in (1, 5):
    expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(N))
    assert figures[f"top{k}"] == pytest.approx(expected, abs=1e-12)
  expected = balanced_accuracy_score(labels, logits.argmax(-1))
  assert figures["macro_top1"] == pytest.approx(expected, abs=1e-12)
  assert abs(figures["macro_top1"] - figures["top1"]) > 0.005
  counts = ("images", "classes", "classes_with_images")
  assert [figures[name] for name in counts] == [IMAGES, N, N - 2]
  assert figures["top1_interval"] == metrics.wilson_interval(figures["top1"], IMAGES)


def test_calibration_equals_torchmetrics(scores):
  labels, logits = scores
  probabilities = scipy.special.softmax(logits, axis=-1)
  expected = multiclass_calibration_error(
    torch.tensor(probabilities), torch.tensor(labels), num_classes=N, n_bins=N_BINS
  )
  figures = tallied(labels, logits, 77).figures()
  assert figures["ece"] == pytest.approx(float(expected), abs=1e-6)
  assert figures["ece"] > 0.03
  assert figures["mean_confidence"] == pytest.approx(probabilities.max(-1).mean())
  reliability = figures["reliability"]
  assert {len(values) for values in reliability.values()} == {N_BINS}
  assert sum(reliability["images"]) == IMAGES
  right = np.dot(reliability["images"], reliability["accuracy"])
  assert right == pytest.approx(IMAGES * figures["top1"])


def test_bins_are_open_below_and_closed_above():
  edges = np.arange(N_BINS + 1) / N_BINS
  np.testing.assert_array_equal(metrics.confidence_bins(edges), [0, *range(N_BINS)])
  # The definition, by a linear scan.
  values = np.random.default_rng(1).uniform(size=500).astype(np.float32)
  expected = [
    next(s for s in range(N_BINS) if s / N_BINS < value <= (s + 1) / N_BINS)
    for value in values
  ]
  np.testing.assert_array_equal(metrics.confidence_bins(values), expected)


@pytest.mark.parametrize(
  ("right", "n"),
  [(0, 1), (1, 1), (0, 40), (40, 40), (1, 40), (17, 33), (1234, 2048), (9, 10_450)],
)
def test_the_interval_is_wilsons_as_scipy_has_it(right, n):
  expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
  found = metrics.wilson_interval(right / n, n)
  assert found == pytest.approx([expected.low, expected.high], abs=1e-12)
  assert 0 <= found[0] <= right / n <= found[1] <= 1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("namespace", [np, jnp])
def test_scores_that_are_not_finite_are_wrong_for_every_k(broken, namespace):
  """Also where k is not below the number of classes, and where the broken score is
  another's."""
  labels = np.array([0, 1, 2, 2])
  scores = np.eye(3, dtype=np.float32)[labels]
  scores[0, 0] = scores[1, 0] = scores[2] = broken
  found = metrics.ranks(namespace.asarray(scores), namespace.asarray(labels))
  np.testing.assert_array_equal(found, [3, 3, 3, 0])
  accuracy = metrics.accuracy_of_ranks(np.asarray(found), 3)
  assert (accuracy["top1"], accuracy["top5"]) == (0.25, 0.25)


@pytest.mark.parametrize("n_classes", [2, 4, 5, 6])
def test_top5_of_few_classes(n_classes):
  """An image of each rank, the last of which stands for scores that are not finite."""
  rank = np.arange(n_classes + 1)
  expected = min(5, n_classes) / (n_classes + 1)
  accuracy = metrics.accuracy_of_ranks(rank, n_classes)
  assert accuracy["top5"] == pytest.approx(expected)
  tally = metrics.Tally(n_classes)
  tally.add(
    np.zeros_like(rank), rank, np.minimum(rank, n_classes - 1), np.full(len(rank), 0.5)
  )
  assert tally.figures()["top5"] == pytest.approx(expected)
  assert (
    accuracy["top1"] == tally.figures()["top1"] == pytest.approx(1 / (n_classes + 1))
  )
