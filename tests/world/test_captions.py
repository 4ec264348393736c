"""Captions, and the stored CLIP and its tokenizer that are trained on them."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizerFast

from docs.generators import captions, train_clip
from pomp_jax.world import CLIP_PATH, IMAGE_SIZE, class_names, names, render


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


def test_training_images_are_of_base_classes():
  attributes = captions.training_classes(0, np.arange(8_000))
  assert captions.base_table()[tuple(attributes.T)].all()


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
  assert (
    max(map(len, ids)) + 16 <= train_clip.MAX_POSITIONS and len(set(map(len, ids))) >= 4
  )
