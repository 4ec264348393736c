"""TFDS's label names, read from its package without running it, against the stored ones."""

import importlib.metadata

import numpy as np
import pytest

from pomp_jax.data.class_lists import CLASS_LISTS, load_class_list, load_tfds_labels
from pomp_jax.data.prepare import class_names
from pomp_jax.data.vocabulary import VocabularyError

WITH_TFDS = [
  name
  for name in CLASS_LISTS
  if not (name.startswith("imagenet21k") or name in ("imagenet1k", "fgvc_aircraft"))
]


def package_file(package, file):
  try:
    path = importlib.metadata.distribution(package).locate_file(file)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{package} is not installed")
  return path


@pytest.mark.parametrize("name", WITH_TFDS)
def test_labels_are_those_of_tfds(name):
  package_file("tensorflow-datasets", ".")
  known, _ = load_tfds_labels(name)
  if name.startswith("imagenet"):
    file = package_file(
      "tensorflow-datasets", "tensorflow_datasets/datasets/imagenet2012/labels.txt"
    )
    labels = file.read_text().split()
  else:
    labels = class_names.tfds_labels(name)
  assert known == tuple(labels)


@pytest.mark.parametrize("name", WITH_TFDS)
def test_every_class_has_one_label(name):
  (labels, class_of_label), classes = load_tfds_labels(name), load_class_list(name)
  assert len(labels) == len(class_of_label)
  used = class_of_label[class_of_label >= 0]
  assert sorted(used) == list(range(len(classes)))
  with pytest.raises(ValueError, match="read-only"):
    class_of_label[0] = 1


@pytest.mark.parametrize("name", WITH_TFDS)
def test_labels_and_names_share_their_words(name):
  """Letters of the longest word of a name stand in the label: a shifted table would not do."""
  labels, class_of_label = load_tfds_labels(name)
  classes = load_class_list(name)
  words = classes.synsets or classes.names
  for label, index in zip(labels, class_of_label, strict=True):
    if index >= 0:
      longest = max(words[index].replace("_", " ").split(), key=len)
      assert longest.lower() in label.lower().replace("_", " ")


@pytest.mark.parametrize(
  "name",
  [
    "oxford_pets",
    "stanford_cars",
    "flowers102",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenet_v2",
    "imagenet_sketch",
  ],
)
def test_the_order_is_the_same_where_nothing_else_is_said(name):
  _, classes = load_tfds_labels(name)
  np.testing.assert_array_equal(classes, np.arange(len(classes)))


def test_the_order_differs():
  labels, classes = load_tfds_labels("food101")
  differing = np.flatnonzero(classes != np.arange(101))
  assert {labels[i]: classes[i] for i in differing} == {
    "cheesecake": 17,
    "cheese_plate": 16,
  }
  labels, classes = load_tfds_labels("caltech101")
  left_out = [labels[i] for i in np.flatnonzero(classes < 0)]
  assert left_out == ["background_google", "faces_easy"]
  assert classes[labels.index("faces")] == 0
  assert classes[labels.index("accordion")] == 3


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_two_hundred_of_a_thousand(name):
  labels, class_of_label = load_tfds_labels(name)
  assert len(labels) == 1000
  assert (class_of_label >= 0).sum() == 200
  synsets = load_class_list(name).synsets
  for label, index in zip(labels, class_of_label, strict=True):
    assert (label == synsets[index]) if index >= 0 else (label not in synsets)


@pytest.mark.parametrize("name", ["imagenet21k", "fgvc_aircraft"])
def test_sets_that_tfds_lacks(name):
  with pytest.raises(VocabularyError, match=name):
    load_tfds_labels(name)
