"""Evaluation in batches against all scores at once, in NumPy's float64."""

import dataclasses
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from pomp_jax.data.skipped_images import CorruptDataError, SkippedImages
from pomp_jax.data.source import FeatureSource, Files, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.image_batches import image_batches
from pomp_jax.evaluate.metrics import EvaluationError, Tally
from pomp_jax.evaluate.ranking import evaluate, tally
from pomp_jax.evaluate.split_features import split_features
from tests.evaluate.test_metrics import answers
from tests.evaluate.test_split_features import BAD, GOOD, pictures
from tests.support.checks import assert_close
from tests.support.clips import with_kernel
from tests.support.oracles import unit

IMAGES, CLASSES = 83, 200


class Pictures:
  """Given images; counts how often each is read."""

  def __init__(self, names, labels, images):
    self.names, self.labels, self._images = (
      tuple(names),
      np.asarray(labels, np.int32),
      images,
    )
    self.read = np.zeros(len(labels), int)

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    np.add.at(self.read, indices, 1)
    return self._images[indices]


@pytest.fixture(scope="module")
def case(encoder):
  """A source, the text features of two prompts, and the cosines in float64."""
  rng = np.random.default_rng(0)
  size = encoder.clip.image_size
  pictures = rng.integers(0, 256, (IMAGES, size, size, 3), np.uint8)
  images = encoder.image_features(pictures).astype(np.float64)
  features, cosines = {}, {}
  for prompt in ("one", "two"):
    # Around the mean of the images, or one class would be nearest to all of them.
    near = images.mean(0) + rng.normal(size=(CLASSES, images.shape[1])) / 6
    features[prompt] = unit(near).astype(np.float32)
    cosines[prompt] = images @ features[prompt].T.astype(np.float64)
  # Half of the labels are the first prompt's best, so that it is right about some.
  best = np.argmax(cosines["one"], axis=-1)
  labels = np.where(np.arange(IMAGES) % 2, best, rng.integers(0, CLASSES, IMAGES))
  return (
    Pictures([f"class {c}" for c in range(CLASSES)], labels, pictures),
    features,
    cosines,
  )


@pytest.mark.parametrize("batch_size", [20, 512])
def test_figures_equal_all_scores_at_once(encoder, case, batch_size):
  source, features, cosines = case
  source.read[:] = 0
  tallies = tally(encoder, source, features, batch_size=batch_size)
  # Each image once, and the last one again as padding.
  size = min(batch_size, IMAGES)
  assert source.read[:-1].tolist() == [1] * (IMAGES - 1)
  assert source.read.sum() == size * -(-IMAGES // size)
  assert list(tallies) == list(features)
  for prompt, one in tallies.items():
    expected = Tally(CLASSES)
    logits = encoder.clip.logit_scale * cosines[prompt]
    expected.add(source.labels, *answers(source.labels, logits))
    for name in ("images", "top1", "top5", "macro_top1", "ece", "mean_confidence"):
      assert one.figures()[name] == pytest.approx(expected.figures()[name], abs=1e-5), (
        name
      )
    # The answers, right and wrong, class by class.
    found, expected = one.by_class(), expected.by_class()
    assert found["confusions"] == expected["confusions"]
    for name, of_classes in expected["per_class"].items():
      np.testing.assert_array_equal(found["per_class"][name], of_classes)
  assert len(found["confusions"]) > IMAGES / 4
  assert 0.4 < tallies["one"].figures()["top1"] < 0.9


def test_figures_are_those_of_their_prompt_whatever_is_named_first(encoder, case):
  """Class vectors are scored together, a scorer by itself, here named before them."""
  source, features, _ = case
  two_NxE = features["two"]

  def scorer(features_BxE, images):
    return features_BxE @ two_NxE.T

  alone = tally(encoder, source, features)
  mixed = {"scored": scorer, "one": features["one"], "again": scorer}
  together = tally(encoder, source, mixed)
  assert list(together) == list(mixed)
  expected = {"scored": "two", "one": "one", "again": "two"}
  for label, prompt in expected.items():
    figures = alone[prompt].figures()
    for name in ("images", "top1", "top5", "ece"):
      found = together[label].figures()[name]
      assert found == pytest.approx(figures[name], abs=1e-5), (label, name)
  assert alone["one"].figures()["top1"] > alone["two"].figures()["top1"] + 0.2


def test_a_constant_classifier_scores_nothing_and_one_that_is_not_finite_fails(
  encoder, case
):
  source, features, _ = case
  same = np.broadcast_to(features["one"][:1], features["one"].shape)
  figures = tally(encoder, source, {"same": same})["same"].figures()
  assert (figures["top1"], figures["top5"]) == (0, 0)
  with pytest.raises(EvaluationError, match="83 of 83"):
    tally(encoder, source, {"broken": np.full_like(same, np.nan)})
  kernel = np.nan * encoder.clip.params["visual_projection"]["kernel"]
  broken = with_kernel(encoder.clip, "visual_projection", kernel)
  with pytest.raises(EvaluationError, match="83 of 83"):
    split_features(Encoder(broken, chunk=8), source)


def test_evaluate_ranks_over_the_classes_of_each_split(encoder, case):
  pictures = case[0].images(np.arange(5))
  names = [
    "cat",
    "dog",
    "grey_wolf",
    "star",
    "sea star",
    "hat",
    "a rather long name",
    "x",
    "the",
  ]
  text = encoder.class_features(names, "a photo of a {}.")
  image = encoder.image_features(pictures)
  labels = np.argmax(image @ text.T, axis=-1)
  labels[0] = (labels[0] + 1) % len(names)
  # Split "some" has fewer classes, in another order, and the same images.
  some = sorted(set(labels.tolist()), reverse=True)
  own = [some.index(c) for c in labels]
  splits = {
    "all": split_features(encoder, Pictures(names, labels, pictures)),
    "some": split_features(encoder, Pictures([names[c] for c in some], own, pictures)),
  }
  scores = evaluate(
    encoder, splits, {"hand": "a photo of a {}.", "name": "{}."}, "name"
  )
  scores = {
    split: {k: one.figures() for k, one in of.items()} for split, of in scores.items()
  }
  assert scores["all"]["hand"]["top1"] == pytest.approx(0.8)
  assert "difference" not in scores["all"]["name"]
  found = scores["all"]["hand"]["top1"] - scores["all"]["name"]["top1"]
  assert scores["all"]["hand"]["difference"]["top1"] == pytest.approx(found)
  expected = np.mean(np.argmax(image @ text[some].T, -1) == own)
  assert scores["some"]["hand"]["top1"] == pytest.approx(expected)
  assert set(scores["all"]) == {"hand", "name"}


@pytest.fixture
def stored(tmp_path):
  return pictures(tmp_path / "images", bad=BAD)


@pytest.fixture
def text(encoder):
  size = (4, encoder.clip.config.projection_dim)
  return {"a": unit(np.random.default_rng(1).normal(size=size)).astype(np.float32)}


def test_unreadable_images_are_dropped(encoder, stored, text, caplog):
  """Features without them: tests/evaluate/test_split_features.py."""
  expected = tally(encoder, stored.subset(GOOD), text)["a"].figures()
  for batch_size in (8, 512):
    caplog.clear()
    found = tally(encoder, stored, text, batch_size=batch_size, max_corrupt=0.2)["a"]
    figures = found.figures()
    assert figures["images"] == len(GOOD) and figures["top1"] == expected["top1"]
    assert figures["mean_confidence"] == pytest.approx(expected["mean_confidence"])
    of_classes = np.bincount(stored.labels[GOOD], minlength=4)
    np.testing.assert_array_equal(found.by_class()["per_class"]["images"], of_classes)
    (line,) = caplog.messages
    assert "2 of 21" in line and "/9.png" in line


def test_images_are_prepared_as_the_clip_asks(encoder, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "wide.png")
  source, size = (
    StoredImages(["a"], [0], ["wide.png"], Files(tmp_path)),
    encoder.clip.image_size,
  )
  squashing = Encoder(dataclasses.replace(encoder.clip, squash=True), mesh=encoder.mesh)
  (batch,) = image_batches(
    squashing, source, SkippedImages(source, 0.0), 1, 1, "images"
  )
  expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
  assert_close(np.asarray(batch.images[0], int), np.asarray(expected, int), 1 / 255)


def test_max_corrupt_bounds_an_evaluation(encoder, stored, text):
  # Two of 21 are more than a twentieth. Of few images, one is allowed above 0.
  one_bad = stored.subset(np.array([7, 8, 9]))
  for read in (split_features, lambda *args, **options: tally(*args, text, **options)):
    with pytest.raises(CorruptDataError, match=r"of 21 .* 1 .*data\.max_corrupt"):
      read(encoder, stored, max_corrupt=0.05)
    read(encoder, one_bad, max_corrupt=0.001)
    with pytest.raises(CorruptDataError, match=r"1 of 3 .* 0 .*9\.png"):
      read(encoder, one_bad, max_corrupt=0.0)
    with pytest.raises(CorruptDataError, match="1 of 1"):
      read(encoder, stored.subset(np.array([9])), max_corrupt=1.0)


def test_max_corrupt_bounds_an_evaluation_of_a_file_of_features(encoder, text):
  """Rows of NaN are images that were unreadable when the file was written."""
  rows = np.random.default_rng(3).normal(size=(21, encoder.clip.config.projection_dim))
  rows = rows.astype(np.float32)
  rows[BAD] = np.nan
  storage = mock.Mock(width=rows.shape[1], features=rows.__getitem__)
  storage.where.side_effect = lambda row, key: f"file, row {row}"
  labels = np.arange(21) % 4
  source = FeatureSource(list("abcd"), labels, [str(row) for row in range(21)], storage)
  figures = tally(encoder, source, text, max_corrupt=0.1)["a"].figures()
  right = (rows[GOOD] @ text["a"].T).argmax(1) == labels[GOOD]
  assert figures["images"] == len(GOOD) and figures["top1"] == pytest.approx(
    right.mean()
  )
  for share, n_allowed in ((0.05, 1), (0.0, 0)):
    with pytest.raises(
      CorruptDataError, match=rf"2 of 21 .* {n_allowed} are .*row 9: was"
    ):
      tally(encoder, source, text, max_corrupt=share)
