"""Floor and sets: quantiles against their definition, and promises on new images."""

import json
import pathlib

import numpy as np
import pytest
import scipy.special
import scipy.stats

from pomp_jax.files.calibration import SETS, Sets
from pomp_jax.rooms.certainty import outputs as device
from pomp_jax.rooms.certainty import promises
from tests.rooms.certainty.answers import unit_rows


@pytest.mark.parametrize(
  ("n", "error", "n_below"), [(99, 0.05, 5), (19, 0.05, 1), (18, 0.05, 0), (9, 0.1, 1)]
)
def test_the_floor_is_an_order_statistic(n, error, n_below):
  confidence = np.random.default_rng(n).permutation(np.arange(1, n + 1)) / (n + 1)
  found = promises.floor_of(confidence, error)
  if not n_below:
    assert found is None and n < promises.least_right_answers(error)
  else:
    assert found == pytest.approx(n_below / (n + 1))


@pytest.mark.parametrize(("n", "place"), [(9, 9), (19, 18), (8, None), (100, 91)])
def test_the_threshold_is_an_order_statistic(n, place):
  scores = np.random.default_rng(n).permutation(np.arange(1, n + 1)) / n
  found = promises.threshold_of(scores, 0.9)
  assert found == (None if place is None else pytest.approx(place / n))


def drawn(rng, n_images, n_classes=10):
  """Probabilities of images of an overconfident classifier, and their classes."""
  logits = rng.normal(size=(n_images, n_classes))
  labels = rng.choice(n_classes, n_images, p=np.arange(1, n_classes + 1) / 55)
  logits[np.arange(n_images), labels] += rng.normal(1.5, 1, n_images)
  return scipy.special.softmax(2 * logits, axis=1), labels


def of_right(probabilities, labels):
  """Probability of the right class, the mass above it, its rank, and the labels."""
  own = probabilities[np.arange(len(labels)), labels]
  above = probabilities > own[:, None]
  return own, (probabilities * above).sum(1), above.sum(1), labels


def mapie_sets(validation, labels, new, coverage):
  """MAPIE's `lac`, from probabilities that its classifier returns as they are: whether
  each class is in the set of each new image."""
  base = pytest.importorskip("sklearn.base")
  mapie = pytest.importorskip("mapie.classification")

  class Given(base.ClassifierMixin, base.BaseEstimator):
    classes_ = np.arange(10)

    def fit(self, probabilities, labels):
      return self

    def predict(self, probabilities):
      return probabilities.argmax(axis=1)

    def predict_proba(self, probabilities):
      return probabilities

    def __sklearn_is_fitted__(self):
      return True

  oracle = mapie.SplitConformalClassifier(
    Given(), confidence_level=coverage, conformity_score="lac", prefit=True
  )
  oracle.conformalize(validation, labels)
  return oracle.predict_set(new)[1][:, :, 0]


def is_member(sets, probabilities):
  """Whether each class is in the set of each image."""
  inside = np.zeros(probabilities.shape, bool)
  for row, is_in in zip(probabilities, inside, strict=True):
    is_in[promises.members(sets, row)] = True
  return inside


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_pooled_sets_are_mapies(coverage):
  rng = np.random.default_rng(5)
  validation, labels = drawn(rng, 400)
  new, _ = drawn(rng, 300)
  expected = mapie_sets(validation, labels, new, coverage)
  sets = promises.sets_of("pooled", coverage, *of_right(validation, labels))
  assert sets is not None
  found = is_member(sets, new)
  # MAPIE also takes what misses the threshold by less than 1e-8.
  is_clear = np.abs(1 - new - sets.threshold) > 1e-8
  np.testing.assert_array_equal(found[is_clear], expected[is_clear])
  assert is_clear.sum() >= new.size - 3 and 0.1 < found.mean() < 0.9


def test_classwise_sets_are_mapies_of_the_images_of_each_class():
  """A class is in the set where MAPIE, with the images of this class alone, says so."""
  rng = np.random.default_rng(8)
  validation, labels = drawn(rng, 400)
  new, _ = drawn(rng, 300)
  sets = promises.sets_of("classwise", 0.8, *of_right(validation, labels))
  assert sets is not None and len(sets.of_class) >= 8
  found = is_member(sets, new)
  for label, threshold in sets.of_class.items():
    of_label = labels == label
    expected = mapie_sets(validation[of_label], labels[of_label], new, 0.8)[:, label]
    is_clear = np.abs(1 - new[:, label] - threshold) > 1e-8
    np.testing.assert_array_equal(found[is_clear, label], expected[is_clear])
    assert is_clear.sum() >= len(new) - 3 and 0.05 < expected.mean() < 0.95


@pytest.fixture(scope="module")
def torchcp():
  """Scores and TorchCP's answers to them, of docs/studies/torchcp_sets.py."""
  file = pathlib.Path(__file__).with_name("torchcp_sets.json")
  return json.loads(file.read_text(encoding="utf-8"))


def softmax(logits):
  """Probabilities in float64."""
  return scipy.special.softmax(np.array(logits), axis=1)


@pytest.mark.parametrize("case", range(2))
def test_classwise_thresholds_and_sets_are_torchcps(torchcp, case):
  expected = torchcp["classwise"][case]
  labels = np.array(torchcp["labels"])
  validation = softmax(torchcp["validation"])
  found = promises.sets_of(
    "classwise", expected["coverage"], *of_right(validation, labels)
  )
  assert found is not None
  # Where the images are too few TorchCP takes the class into each set; ours is shared.
  own = {
    label: threshold
    for label, threshold in enumerate(expected["thresholds"])
    if threshold is not None
  }
  assert 0 < len(own) < len(expected["thresholds"])
  assert found.of_class == pytest.approx(own, abs=1e-6)
  inside = is_member(found, softmax(torchcp["new"]))
  for is_in, members in zip(inside, expected["sets"], strict=True):
    assert set(np.flatnonzero(is_in)) & own.keys() == set(members) & own.keys()


@pytest.mark.parametrize("case", range(4))
def test_raps_thresholds_and_sets_are_torchcps(torchcp, case):
  expected = torchcp["raps"][case]
  probability, mass_above, rank, _ = of_right(
    softmax(torchcp["validation"]), np.array(torchcp["labels"])
  )
  penalty = expected["penalty"]
  free_ranks = expected["free_ranks"]
  coverage = expected["coverage"]
  scores = promises.raps_scores(
    probability, mass_above, rank, penalty=penalty, free_ranks=free_ranks
  )
  threshold = promises.threshold_of(scores, coverage)
  assert threshold == pytest.approx(expected["threshold"], abs=1e-7)
  # TorchCP adds penalties in float32.
  sets = Sets(
    "raps", coverage, threshold + 1e-7, penalty=penalty, free_ranks=free_ranks
  )
  inside = is_member(sets, softmax(torchcp["new"]))
  assert [np.flatnonzero(row).tolist() for row in inside] == expected["sets"]


def test_raps_has_the_penalty_of_a_case_of_torchcp(torchcp):
  labels = np.array(torchcp["labels"])
  validation = softmax(torchcp["validation"])
  found = promises.sets_of("raps", 0.9, *of_right(validation, labels))
  expected = [
    case["threshold"]
    for case in torchcp["raps"]
    if (case["coverage"], case["penalty"], case["free_ranks"])
    == (0.9, promises.PENALTY, promises.FREE_RANKS)
  ]
  assert found is not None and [found.threshold] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", SETS)
def test_coverage_of_sets_over_many_validations(kind):
  """The mean over validations is at least the promise, and not far above it."""
  rng = np.random.default_rng(2)
  covered = []
  for _ in range(200):
    sets = promises.sets_of(kind, 0.8, *of_right(*drawn(rng, 150)))
    assert sets is not None
    covered.append(promises.covered(sets, *of_right(*drawn(rng, 150))).mean())
  # The standard error of the mean is 0.003.
  assert 0.79 < np.mean(covered) < 0.87


def test_coverage_of_each_class_with_a_threshold_of_its_own():
  rng = np.random.default_rng(3)
  covered = {0: [], 9: []}
  for _ in range(200):
    sets = promises.sets_of("classwise", 0.8, *of_right(*drawn(rng, 400)))
    probabilities, labels = drawn(rng, 400)
    inside = promises.covered(sets, *of_right(probabilities, labels))
    for label in covered:
      if label in sets.of_class:
        covered[label] += inside[labels == label].tolist()
  for label, inside in covered.items():
    # 0.8 promised; the few images of class 0 make its set larger
    assert np.mean(inside) > 0.79, label


def test_the_floor_refuses_few_right_answers():
  rng = np.random.default_rng(4)
  refused = []
  for _ in range(300):
    old, new = rng.beta(5, 2, (2, 120))
    refused.append((new < promises.floor_of(old, 0.1)).mean())
  assert 0.085 < np.mean(refused) < 0.105


@pytest.mark.parametrize("kind", SETS)
def test_members_are_those_by_the_scores_of_each_class(kind):
  rng = np.random.default_rng(5)
  sets = promises.sets_of(kind, 0.8, *of_right(*drawn(rng, 300)))
  probabilities, _ = drawn(rng, 50)
  for row in probabilities:
    found = promises.members(sets, row)
    for label in range(10):
      alone = of_right(row[None], np.array([label]))
      assert promises.covered(sets, *alone)[0] == (label in found)
    assert (np.diff(row[found]) <= 0).all()


@pytest.mark.parametrize("kind", SETS)
def test_sizes_on_the_device_are_those_of_the_members(kind):
  rng = np.random.default_rng(6)
  rows = unit_rows(rng.normal(size=(10, 8)))
  features = unit_rows(rng.normal(size=(40, 8)))
  own = {1: 0.93, 4: 0.5} if kind == "classwise" else {}
  penalty = {"penalty": 0.02, "free_ranks": 2} if kind == "raps" else {}
  sets = Sets(kind, 0.9, 0.9, own, **penalty)
  probabilities = scipy.special.softmax(5.0 * features @ rows.T, axis=1)
  expected = [len(promises.members(sets, row)) for row in probabilities]
  if kind == "raps":
    found = device.adaptive_set_sizes(features, rows, 5.0, sets)
  else:
    least = promises.least_probabilities(sets, 10)
    found = device.set_sizes(features, rows, 5.0, least)
  assert found.tolist() == expected and len(set(expected)) > 1


def test_too_few_images_promise_nothing():
  assert (
    promises.sets_of("pooled", 0.9, *of_right(*drawn(np.random.default_rng(0), 5)))
    is None
  )
