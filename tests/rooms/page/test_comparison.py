"""Prompts side by side: which features are computed once, and the labels of prompts."""

from unittest import mock

import numpy as np
from PIL import Image
import pytest
import scipy.special

from pomp_jax.data.images import CLIPS_RESIZE, Resize
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.prompt_file import ClassFeatures, Prompt
from pomp_jax.rooms.page import comparison as module
from pomp_jax.rooms.page.comparison import Comparison, shown_prompts
from pomp_jax.rooms.page.form import FormError

NAMES = ["red star", "teal leaf", "blue ring"]


@pytest.fixture
def computed(monkeypatch):
  """Prompts and names of the features that are computed; these are random unit rows."""
  found = []

  def features(encoder, classes, prompt):
    found.append((prompt, classes.names))
    rows = np.random.default_rng(len(found)).normal(size=(len(classes), 4))
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

  monkeypatch.setattr(module, "features_under", features)
  return found


@pytest.fixture
def opened(clip_and_torch):
  """A function: prompts -> the comparison, two names an answer, of pictures with one
  feature."""
  encoder = mock.Mock(spec=Encoder, clip=clip_and_torch[0], resize=CLIPS_RESIZE)
  encoder.image_features.return_value = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
  return lambda *prompts: Comparison(encoder, prompts, 2)


def test_features_are_computed_once_for_a_prompt_and_names(computed, opened):
  page = opened(NamedPrompt("a", "a {}."), NamedPrompt("b", "the {}."))
  first = page._class_features(NAMES)
  assert [rows.tolist() for rows in page._class_features(NAMES)] == [
    x.tolist() for x in first
  ]
  # Padded to eight names, so that few shapes are compiled; to sixteen from nine on.
  padded = (*NAMES, *NAMES[:1] * 5)
  assert computed == [("a {}.", padded), ("the {}.", padded)]
  page._class_features(NAMES[::-1])
  assert len(computed) == 4
  # Another prompt under the same label, such as of a run that was started again.
  page.under([NamedPrompt("a", "an {}.")])._class_features(NAMES)
  assert computed[4:] == [("an {}.", padded)]
  page._class_features(list("abcdefghi"))
  page._class_features(list("abcdefgh"))
  assert [len(names) for _, names in computed[5:]] == [16, 16, 8, 8]


def test_answers_are_the_likeliest_names_without_the_padding(
  computed, opened, clip_and_torch
):
  page = opened(NamedPrompt("a", "a {}."), NamedPrompt("b", "the {}."))
  found = page.classify(Image.new("RGB", (9, 9)), NAMES)
  assert [named.label for named, _ in found] == ["a", "b"]
  for (_, answer), rows in zip(found, page._class_features(NAMES), strict=True):
    expected = scipy.special.softmax(clip_and_torch[0].logit_scale * rows[:3, 0])
    order = np.argsort(-expected)[:2]
    assert answer == [(NAMES[c], pytest.approx(expected[c], rel=1e-5)) for c in order]


def test_a_picture_is_prepared_as_the_clip_asks(computed, opened, clip_and_torch):
  """Of an encoder that squashes pictures, with Pillow's own resize."""
  page = opened(NamedPrompt("a", "a {}."))
  page._encoder.resize = Resize(squash=True, bilinear=True)
  pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
  image = Image.fromarray(pixels)
  page.classify(image, NAMES)
  size = clip_and_torch[0].image_size
  squashed = image.resize((size, size), Image.Resampling.BILINEAR)
  [[given]] = [call.args for call in page._encoder.image_features.call_args_list]
  np.testing.assert_array_equal(given[0], np.asarray(squashed))


def test_a_prompt_of_one_list_is_no_prompt_of_the_page(opened):
  rows = ClassFeatures(np.eye(2, 4, dtype=np.float32))
  with pytest.raises(FormError, match="^mine: is of one list"):
    opened().under([NamedPrompt("mine", rows)])


def test_labels_tell_no_folder_of_the_server():
  prompt = Prompt(np.zeros((2, 4), np.float32), "clip")
  names = [
    "/home/me/runs/demo/prompt.npz",
    "/other/demo/prompt.npz",
    "hf://me/a",
    *["a {}."] * 3,
  ]
  given = [NamedPrompt(name, prompt if "{}" not in name else name) for name in names]
  found = [named.label for named in shown_prompts(given)]
  assert found == [
    "demo/prompt.npz",
    "demo/prompt.npz #2",
    "hf://me/a",
    "a {}.",
    "a {}. #2",
    "a {}. #3",
  ]
