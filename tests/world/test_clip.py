"""The stored tiny CLIP and its tokenizer, loaded as anyone would load them, offline."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizer, CLIPTokenizerFast

from pomp_jax.world import CLIP_PATH, IMAGE_SIZE, captions, class_names, train_clip
from tests.support.flax_clip import flax_clip


@pytest.fixture(scope="module")
def vocabulary():
  return CLIPTokenizerFast.from_pretrained(CLIP_PATH)


@pytest.fixture(scope="module")
def model():
  """The model and its weights; no random ones are drawn, which takes seconds."""
  return flax_clip().FlaxCLIPModel.from_pretrained(CLIP_PATH, _do_init=False)


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


def test_every_name_fits_beside_sixteen_context_vectors(vocabulary):
  ids = vocabulary([f"{name}." for name in class_names("all")]).input_ids
  lengths = np.array([len(i) for i in ids])  # with the start and end tokens
  assert lengths.max() + 16 <= train_clip.MAX_POSITIONS
  assert len(set(lengths)) >= 4  # ragged


def test_any_text_can_be_encoded_by_both_tokenizers(vocabulary):
  slow, foreign = CLIPTokenizer.from_pretrained(CLIP_PATH), "größe 42: полка, 棚"
  texts = ("A photo of a  sky blue lightning bolt on navy.", "close-up, Café no. 7!", foreign)
  for text in texts[:2]:
    assert slow(text).input_ids == vocabulary(text).input_ids
  assert vocabulary.unk_token_id not in vocabulary(foreign, add_special_tokens=False).input_ids
  assert vocabulary.decode(vocabulary(foreign).input_ids, skip_special_tokens=True).strip()


def test_hardly_a_short_caption_is_cut(vocabulary):
  for noise in (0.0, 1.0):
    texts = captions.training_batch(1, np.arange(2_000), noise)[1]
    lengths = np.array([len(ids) for ids in vocabulary(texts).input_ids])
    assert np.mean(lengths > train_clip.Recipe().short_tokens) < 0.015


def test_wordy_captions_fill_the_positions(vocabulary):
  texts = captions.training_batch(1, np.arange(64), 1.0)[1]
  lengths = [len(i) for i in vocabulary(train_clip._wordy(texts, vocabulary, 0)).input_ids]
  assert max(lengths) == train_clip.MAX_POSITIONS and np.mean(lengths) > 28


def test_zero_shot_is_far_above_chance_and_short_of_perfect(model, vocabulary):
  top1 = train_clip.zero_shot(*model, vocabulary, "a photo of a {}.", n_images=400)
  assert 0.15 < top1 < 0.9
