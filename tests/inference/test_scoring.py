"""Counting in batches over eight devices against all scores at once, in NumPy's float64."""

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.wordnet import load_tree
from pomp_jax.inference.hierarchy import Hierarchy
from pomp_jax.inference.metrics import EvaluationError
from pomp_jax.inference.scoring import tally

IMAGES, CLASSES, N_BINS = 83, 200, 15


class Noise:
  """Random pictures; counts how often each is read."""

  def __init__(self, labels, size):
    self.names = tuple(f"class {c}" for c in range(CLASSES))
    self.labels = np.asarray(labels, np.int32)
    self.read = np.zeros(len(labels), int)
    self._size = size

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    np.add.at(self.read, indices, 1)
    return np.stack(
      [
        np.random.default_rng(i).integers(0, 256, (self._size, self._size, 3), np.uint8)
        for i in indices
      ]
    )


@pytest.fixture(scope="module")
def case(encoder):
  """A source, two prompts' class features, and the cosines in float64."""
  rng = np.random.default_rng(0)
  source = Noise(np.zeros(IMAGES), encoder.clip.image_size)
  images = encoder.image_features(source.images(np.arange(IMAGES))).astype(np.float64)
  features, cosines = {}, {}
  for prompt in ("one", "two"):
    # Around the images' mean, or one class would be nearest to all of them.
    classes = images.mean(0) + rng.normal(size=(CLASSES, images.shape[1])) / 6
    features[prompt] = (classes / np.linalg.norm(classes, axis=-1, keepdims=True)).astype(
      np.float32
    )
    cosines[prompt] = images @ features[prompt].T.astype(np.float64)
  # Half of the labels are the first prompt's best, so that it is right about some.
  best = np.argmax(cosines["one"], axis=-1)
  source.labels = np.where(np.arange(IMAGES) % 2, best, rng.integers(0, CLASSES, IMAGES)).astype(
    np.int32
  )
  return source, features, cosines


@pytest.mark.parametrize("batch_size", [20, 512])
def test_figures_equal_all_scores_at_once(encoder, case, batch_size):
  source, features, cosines = case
  source.read[:] = 0
  tallies = tally(encoder, source, features, batch_size=batch_size)
  # Once each, and the last image again to fill up the last batch.
  size = 8 * -(-min(batch_size, IMAGES) // 8)
  assert source.read[:-1].tolist() == [1] * (IMAGES - 1)
  assert source.read.sum() == size * -(-IMAGES // size)
  assert list(tallies) == list(features)
  for prompt, one in tallies.items():
    figures, scores = one.figures(), cosines[prompt]
    for k in (1, 5):
      expected = top_k_accuracy_score(source.labels, scores, k=k, labels=np.arange(CLASSES))
      assert figures[f"top{k}"] == pytest.approx(expected)
    answers = np.argmax(scores, axis=-1)
    assert figures["macro_top1"] == pytest.approx(balanced_accuracy_score(source.labels, answers))
    confidence = scipy.special.softmax(encoder.clip.logit_scale * scores, axis=-1).max(-1)
    right = answers == source.labels
    bins = [np.ceil(confidence * N_BINS) == s + 1 for s in range(N_BINS)]
    ece = sum(abs(right[b].sum() - confidence[b].sum()) for b in bins) / IMAGES
    assert figures["ece"] == pytest.approx(ece, abs=1e-5)
    assert figures["images"] == IMAGES
  assert 0.4 < tallies["one"].figures()["top1"] < 0.9


def test_errors_are_the_nearest_wrong_classes(encoder, case):
  source, features, cosines = case
  tree = load_tree()
  nodes = tree.nodes(load_class_list("imagenet_a").synsets)
  figures = tally(encoder, source, features, hierarchy=Hierarchy(tree, nodes))["one"].figures()
  answers = np.argmax(cosines["one"], axis=-1)
  wrong = answers != source.labels
  distance = tree.path_distance(nodes[answers[wrong]], nodes[source.labels[wrong]])
  assert figures["errors"]["images"] == wrong.sum()
  assert figures["errors"]["mean_distance"] == pytest.approx(distance.mean())


def test_a_constant_classifier_scores_nothing_and_one_that_is_not_finite_fails(encoder, case):
  source, features, _ = case
  same = np.broadcast_to(features["one"][:1], features["one"].shape)
  figures = tally(encoder, source, {"same": same})["same"].figures()
  assert (figures["top1"], figures["top5"]) == (0, 0)
  with pytest.raises(EvaluationError, match="83 of 83 images"):
    tally(encoder, source, {"broken": np.full_like(same, np.nan)})
