"""Captions, and the stored CLIP and its tokenizer that are trained on them."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizerFast

from docs.generators import captions, train_clip
from pomp_jax.world import CLIP_PATH, IMAGE_SIZE, class_names, names, render
from tests.support.clips import flax_clip


def _draw(n, noise, seed=0):
  keys = render.image_keys(seed, 5, np.arange(n))
  base = names.class_attributes("base")
  attributes = base[(names.mix(keys) % np.uint64(len(base))).astype(int)]
  register, _ = captions.sources(keys)
  return attributes, register, captions.write(keys, attributes, register, noise)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_no_caption_spells_a_novel_class(noise):
  novel = set(names.class_names("novel"))
  for text in _draw(30_000, noise, seed=2)[2]:
    words = text.replace(",", " ").replace(":", " ").rstrip(".").split()
    # Every run of words, whatever stands around the name.
    for start in range(len(words)):
      for length in range(5, 8):
        assert " ".join(words[start : start + length]) not in novel


def test_training_images_are_of_base_classes_in_sets_that_differ_by_one_attribute():
  attributes = captions.training_classes(0, np.arange(8_000))
  assert captions.base_table()[tuple(attributes.T)].all()
  sets = attributes.reshape(-1, captions.SET_SIZE, 4)
  # Each differs in one attribute at most from a common class, hence in two from each other.
  assert ((sets[:, :1] != sets).sum(-1) <= 2).all()
  assert len(np.unique(sets[:, 0], axis=0)) > 900


@pytest.fixture(scope="module")
def vocabulary():
  return CLIPTokenizerFast.from_pretrained(CLIP_PATH)


def test_config_agrees_with_the_tokenizer_and_the_renderer(vocabulary):
  assert (CLIP_PATH / "flax_model.msgpack").stat().st_size <= 8_000_000
  config = json.loads((CLIP_PATH / "config.json").read_text())
  preprocessor = json.loads((CLIP_PATH / "preprocessor_config.json").read_text())
  expected = {
    "vocab_size": len(vocabulary),
    "eos_token_id": len(vocabulary) - 1,
    "bos_token_id": vocabulary.bos_token_id,
    "max_position_embeddings": train_clip.MAX_POSITIONS,
  }
  assert config["text_config"].items() >= expected.items()
  assert vocabulary.eos_token_id == expected["eos_token_id"]
  assert config["vision_config"]["image_size"] == IMAGE_SIZE
  assert tuple(preprocessor["image_mean"]) == train_clip.PIXEL_MEAN
  assert tuple(preprocessor["image_std"]) == train_clip.PIXEL_STD
  ids = vocabulary([f"{name}." for name in class_names("all")]).input_ids
  # Ragged, and with the start and end tokens every name fits beside 16 context vectors.
  assert max(map(len, ids)) + 16 <= train_clip.MAX_POSITIONS and len(set(map(len, ids))) >= 4


def test_zero_shot_is_far_above_chance_and_short_of_perfect(vocabulary):
  # No random weights are drawn, which takes seconds.
  model = flax_clip().FlaxCLIPModel.from_pretrained(CLIP_PATH, _do_init=False)
  top1 = train_clip.zero_shot(*model, vocabulary, "a photo of a {}.", n_images=400)
  assert 0.15 < top1 < 0.9


def _numbered(seed, indices, noise):
  """Images of one value each, and captions of names in order."""
  images = np.zeros((len(indices), 40, 40, 3), np.uint8) + indices[:, None, None, None]
  names = class_names("all")
  return images.astype(np.uint8), [f"a photo of a {names[seed + i]}." for i in indices]


def test_tokenizer_and_batches_follow_from_the_pairs(tmp_path):
  recipe = train_clip.Recipe(steps=3, batch=8, short_tokens=18, vocabulary=550)
  texts = _numbered(recipe.seed, np.arange(200), 0.0)[1]
  train_clip.train_tokenizer(texts * 5, tmp_path, recipe.vocabulary)
  vocabulary = train_clip.CLIPTokenizerFast.from_pretrained(tmp_path)
  assert len(vocabulary) == recipe.vocabulary
  pairs = train_clip.Pairs(_numbered, train_clip.WORLD.test)
  found = list(train_clip._batches(recipe, pairs, vocabulary, 1))
  assert len(found) == 2  # steps 1 and 2: a training resumes behind its checkpoint
  for step, (images, ids_BxL) in enumerate(found, 1):
    expected, texts = _numbered(recipe.seed, 8 * step + np.arange(8), 0.0)
    np.testing.assert_array_equal(images, expected)
    for ids, text in zip(ids_BxL, texts, strict=True):
      own = vocabulary(text, truncation=True, max_length=18).input_ids
      assert ids[: len(own)].tolist() == own
