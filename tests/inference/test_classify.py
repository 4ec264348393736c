"""Features and probabilities against HuggingFace's torch CLIP; accuracy against scikit-learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import top_k_accuracy_score
import torch

from pomp_jax.clip import load_clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.data.vocabulary import VocabularyError
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import ArrayCache
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.inference.accuracy import evaluate, split_features
from pomp_jax.inference.classify import Classifier, accuracy_of_scores, ranks, topk_accuracy
from pomp_jax.inference.metrics import EvaluationError
from pomp_jax.prompt.step import make_mesh

NAMES = ["cat", "dog", "grey_wolf", "star", "sea star", "hat", "a rather long name", "x", "the"]


def unit(array):
  return array / np.linalg.norm(array, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def torch_outputs(clip_and_torch, images):
  """(text features, image features, probabilities) of "a photo of a {}."."""
  clip, model = clip_and_torch
  texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
  tokens = clip.tokenizer(texts, return_tensors="pt", padding=True)
  pixels = (images / 255 - np.array(clip.mean)) / np.array(clip.std)
  with torch.no_grad():
    output = model(**tokens, pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)).float())
  return (
    output.text_embeds.numpy(),
    output.image_embeds.numpy(),
    output.logits_per_image.softmax(-1).numpy(),
  )


def words_as_prompt(clip, words, **fields):
  ids = clip.tokenizer(words)["input_ids"][1:-1]
  return Prompt(
    np.asarray(token_embeddings(clip.params, np.array(ids, np.int32))), "random", **fields
  )


def test_features_of_a_template_and_of_its_words_as_context(clip_and_torch, encoder, torch_outputs):
  clip, _ = clip_and_torch
  for prompt in ("a photo of a {}.", words_as_prompt(clip, "a photo of a")):
    features = encoder.class_features(NAMES, prompt)
    np.testing.assert_allclose(features, torch_outputs[0], atol=1e-5)


def test_words_after_the_name(clip_and_torch, encoder):
  clip, model = clip_and_torch
  found = encoder.class_features(["star", "grey wolf"], "the {} of a hat!")
  tokens = clip.tokenizer(
    ["the star of a hat!", "the grey wolf of a hat!"], return_tensors="pt", padding=True
  )
  with torch.no_grad():
    expected = unit(model.get_text_features(**tokens).numpy())
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_probabilities_equal_huggingface(clip_and_torch, images, torch_outputs):
  classifier = Classifier(clip_and_torch[0], "a photo of a {}.", NAMES)
  found = classifier.probabilities(list(images))
  np.testing.assert_allclose(found, torch_outputs[2], atol=1e-5)
  best = classifier.predict(list(images), top=2)
  for row, probabilities in zip(best, torch_outputs[2], strict=True):
    assert row[0][0] == NAMES[int(np.argmax(probabilities))]
    assert row[0][1] >= row[1][1]
    assert len(row) == 2


def test_chunks_and_meshes_do_not_change_features(clip_and_torch, images):
  clip, _ = clip_and_torch
  # 9 names and 5 images over 8 devices: padded; 3 at a time on one: a ragged last chunk.
  whole = Encoder(clip, chunk=64)
  parts = Encoder(clip, mesh=make_mesh(1, jax.devices()[:1]), chunk=3)
  for prompt in ("{}.", words_as_prompt(clip, "a photo of a", position="middle")):
    np.testing.assert_allclose(
      whole.class_features(NAMES, prompt), parts.class_features(NAMES, prompt), atol=1e-6
    )
  np.testing.assert_allclose(whole.image_features(images), parts.image_features(images), atol=1e-6)


class Counted(ArrayCache):
  """A cache that counts what is computed."""

  computed = 0

  def keep(self, key, array, **options):
    self.computed += 1
    return super().keep(key, array, **options)


def test_features_are_computed_once_for_a_prompt_a_clip_and_names(clip_and_torch, tmp_path):
  clip, _ = clip_and_torch
  cache = Counted(tmp_path / "cache")
  encoder = Encoder(clip, chunk=8, cache=cache)
  words = words_as_prompt(clip, "a photo of a")
  first = encoder.class_features(NAMES, words)
  again = encoder.class_features(list(NAMES), words_as_prompt(clip, "a photo of a"))
  np.testing.assert_array_equal(first, again)
  assert cache.computed == 1
  # In another process: from the file.
  later = Counted(tmp_path / "cache")
  found = Encoder(load_clip(clip.name), chunk=8, cache=later).class_features(NAMES, words)
  np.testing.assert_array_equal(first, found)
  assert later.computed == 0
  others = (
    lambda: encoder.class_features(NAMES[:-1], words),
    lambda: encoder.class_features(NAMES[::-1], words),
    lambda: encoder.class_features(NAMES, words_as_prompt(clip, "a photo of the")),
    lambda: encoder.class_features(NAMES, words_as_prompt(clip, "a photo of a", position="front")),
    lambda: encoder.class_features(NAMES, "a photo of a {}."),
    lambda: Encoder(_moved(clip), chunk=8, cache=cache).class_features(NAMES, words),
    lambda: Encoder(clip, chunk=8, dtype="bfloat16", cache=cache).class_features(NAMES, words),
  )
  for number, other in enumerate(others, 2):
    other()
    assert cache.computed == number


def _moved(clip):
  """The CLIP with one weight of its text tower changed in the last place."""
  kernel = np.array(clip.params["text_projection"]["kernel"])
  kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(np.inf))
  return dataclasses.replace(clip, params=clip.params | {"text_projection": {"kernel": kernel}})


def test_class_specific_contexts_follow_their_class(clip_and_torch, encoder):
  clip, _ = clip_and_torch
  rng = np.random.default_rng(0)
  context = rng.normal(size=(len(NAMES), 3, clip.text_width)).astype(np.float32)
  found = encoder.class_features(NAMES, Prompt(context, "random"))
  for row, name, own in zip(found, NAMES, context, strict=True):
    expected = encoder.class_features([name], Prompt(own, "random"))[0]
    np.testing.assert_allclose(row, expected, atol=1e-5)
  with pytest.raises(PromptFileError, match="class-specific"):
    encoder.class_features(NAMES[:2], Prompt(context, "random"))


@pytest.mark.parametrize("name", ["prompt.npz", "prompt.safetensors", "model.pth.tar-20"])
def test_a_prompt_by_the_path_of_its_file(clip_and_torch, encoder, tmp_path, name):
  clip, _ = clip_and_torch
  words = words_as_prompt(clip, "a photo of a")
  save_prompt(tmp_path / name, words)
  expected = Classifier(encoder, words, NAMES).class_features
  for path in (tmp_path / name, str(tmp_path / name)):
    np.testing.assert_array_equal(Classifier(encoder, path, NAMES).class_features, expected)


@pytest.mark.parametrize("text", ["prompt.npz", "a photo of", "{} or {}", "", "."])
def test_a_text_that_is_neither_a_file_nor_a_template(encoder, text):
  with pytest.raises(PromptFileError, match=r"^prompt '.*exactly one \{\}$") as error:
    Classifier(encoder, text, NAMES)
  assert repr(text) in str(error.value)
  with pytest.raises(PromptFileError, match=r"exactly one \{\}$"):
    encoder.class_features(NAMES, text)


def test_refused_prompts_and_names(encoder, tmp_path):
  (tmp_path / "prompt.npz").write_bytes(b"nothing")
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    Classifier(encoder, tmp_path / "prompt.npz", NAMES)
  with pytest.raises(PromptFileError, match="width 7"):
    Classifier(encoder, Prompt(np.zeros((4, 7), np.float32), "other"), NAMES)
  with pytest.raises(VocabularyError, match="twice"):
    Classifier(encoder, "a photo of a {}.", ["cat", "cat"])
  with pytest.raises(VocabularyError, match="empty"):
    Classifier(encoder, "a photo of a {}.", [])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_equals_scikit_learn(k):
  rng = np.random.default_rng(k)
  images, classes = unit(rng.normal(size=(200, 8))), unit(rng.normal(size=(30, 8)))
  labels = rng.integers(0, 30, 200)
  expected = top_k_accuracy_score(labels, images @ classes.T, k=k, labels=np.arange(30))
  found = topk_accuracy(images, classes, labels, ks=(k,), chunk=64)
  assert found[f"top{k}"] == pytest.approx(expected)
  assert found["images"] == 200
  if k == 1:
    interval = scipy.stats.binomtest(round(200 * expected), 200).proportion_ci(method="wilson")
    assert found["top1_interval"] == pytest.approx([interval.low, interval.high])


def test_a_constant_classifier_scores_nothing():
  images, classes = np.ones((10, 2)), np.ones((5, 2))
  assert topk_accuracy(images, classes, np.zeros(10, int), ks=(1,))["top1"] == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("namespace", [np, jnp])
def test_scores_that_are_not_finite_are_wrong_for_every_k(broken, namespace):
  """Also where k is not below the number of classes, and where the broken score is another's."""
  labels = np.array([0, 1, 2, 2])
  scores = np.eye(3, dtype=np.float32)[labels]
  scores[0, 0] = scores[1, 0] = scores[2] = broken
  found = ranks(namespace.asarray(scores), namespace.asarray(labels))
  np.testing.assert_array_equal(found, [3, 3, 3, 0])
  accuracy = accuracy_of_scores(lambda part: scores[part], labels, ks=(1, 5), chunk=3)
  assert (accuracy["top1"], accuracy["top5"]) == (0.25, 0.25)


@pytest.mark.parametrize("part", ["text_projection", "visual_projection"])
def test_a_clip_that_is_not_finite_classifies_nothing(clip_and_torch, images, part):
  clip, _ = clip_and_torch
  kernel = np.full_like(clip.params[part]["kernel"], np.nan)
  broken = dataclasses.replace(clip, params=clip.params | {part: {"kernel": kernel}})
  with pytest.raises(EvaluationError, match=r"of (9 classes|5 images) have features that are not"):
    Classifier(broken, "a photo of a {}.", NAMES).predict(list(images))
  if part == "visual_projection":
    with pytest.raises(EvaluationError, match="5 of 5 images have features that are not finite"):
      split_features(Encoder(broken, chunk=8), Split(NAMES, images, range(5)))


class Split:
  """A source of given images."""

  def __init__(self, names, images, labels):
    self.names, self._images, self.labels = tuple(names), images, np.array(labels, np.int32)

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    return self._images[indices]


def test_evaluate_ranks_over_the_classes_of_each_split(encoder, images, torch_outputs):
  text, image, _ = torch_outputs
  labels = np.argmax(image @ text.T, axis=-1)
  labels[0] = (labels[0] + 1) % len(NAMES)
  # Split "some" has fewer classes, in another order, and the same images.
  some = sorted(set(labels.tolist()), reverse=True)
  splits = {
    "all": split_features(encoder, Split(NAMES, images, labels)),
    "some": split_features(
      encoder, Split([NAMES[c] for c in some], images, [some.index(c) for c in labels])
    ),
  }
  scores = evaluate(encoder, splits, {"hand": "a photo of a {}.", "name": "{}."})
  assert scores["all"]["hand"]["top1"] == pytest.approx(0.8)
  logits = image @ text[some].T
  expected = np.mean(np.argmax(logits, -1) == [some.index(c) for c in labels])
  assert scores["some"]["hand"]["top1"] == pytest.approx(expected)
  assert set(scores["all"]) == {"hand", "name"}
