"""The data of `tests.glyph_study`: characters, their pictures and captions."""

import unicodedata

from fontTools.ttLib import TTFont
import numpy as np

from pomp_jax.world import train_clip
from tests.support import glyphs


def test_every_class_is_base_or_novel_and_no_name_is_given_twice():
  base, novel = glyphs.names("base"), glyphs.names("novel")
  assert sorted(base + novel) == sorted(set(glyphs.names("all")))
  assert len(base) - len(novel) in (0, 1) and len(base) > 1000


def test_names_are_unicodes_and_faces_have_the_character():
  tables = {
    file.stem: TTFont(file)["cmap"].getBestCmap() for file in glyphs.FONTS.glob("DejaVu*.ttf")
  }
  for name, (character, faces) in glyphs.characters().items():
    assert unicodedata.lookup(name) == character
    assert len(faces) >= 3 and all(ord(character) in tables[face] for face in faces)


def test_a_picture_follows_from_its_seed_and_shows_the_character():
  draw = lambda name, seed: glyphs.render(name, np.random.default_rng(seed))
  every = glyphs.names("all")
  for name in every[:: len(every) // 40]:
    image = draw(name, 3)
    assert image.shape == (40, 40, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(draw(name, 3), image)
    assert (draw(name, 4) != image).any()
    # Paper and ink: beyond the noise, whose deviation is at most 15.
    assert np.ptp(image.mean(axis=2)) > 45


def test_captions_are_right_without_noise_and_careless_with_it():
  names = glyphs.names("all")[:400]
  write = lambda noise: [
    glyphs.caption(name, np.random.default_rng(i), noise) for i, name in enumerate(names)
  ]
  assert all(name in text for name, text in zip(names, write(0.0), strict=True))
  right = np.mean([name in text for name, text in zip(names, write(1.0), strict=True)])
  assert 0.35 < right < 0.75


def test_a_batch_is_the_same_whatever_is_drawn_with_it():
  images, texts = glyphs.training_batch(0, np.arange(16), 1.0)
  some, some_texts = glyphs.training_batch(0, np.array([5, 11]), 1.0)
  np.testing.assert_array_equal(some, images[[5, 11]])
  assert some_texts == [texts[5], texts[11]]


def test_the_clip_is_trained_on_the_pairs_that_are_given(tmp_path):
  recipe = train_clip.Recipe(steps=1, batch=8, short_tokens=18, vocabulary=550)
  pairs = train_clip.Pairs(glyphs.training_batch, glyphs.test_images)
  images, texts = pairs.batch(recipe.seed, np.arange(8), 0.0)
  train_clip.train_tokenizer(texts * 20, tmp_path, recipe.vocabulary)
  vocabulary = train_clip.CLIPTokenizerFast.from_pretrained(tmp_path)
  assert len(vocabulary) == recipe.vocabulary
  [(found, ids_BxL)] = train_clip._batches(recipe, pairs, vocabulary, 0)
  np.testing.assert_array_equal(found, images)
  for ids, text in zip(ids_BxL, texts, strict=True):
    expected = vocabulary(text, truncation=True, max_length=18).input_ids
    assert ids[: len(expected)].tolist() == expected
