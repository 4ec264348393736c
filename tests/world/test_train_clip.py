"""What a CLIP of our own is trained on: a tokenizer and batches of the pairs that are given."""

import numpy as np

from pomp_jax.world import class_names, train_clip


def _draw(seed, indices, noise):
  """Images of one value each, and captions of names in order."""
  images = np.zeros((len(indices), 40, 40, 3), np.uint8) + indices[:, None, None, None]
  names = class_names("all")
  return images.astype(np.uint8), [f"a photo of a {names[seed + i]}." for i in indices]


def test_tokenizer_and_batches_follow_from_the_pairs(tmp_path):
  recipe = train_clip.Recipe(steps=3, batch=8, short_tokens=18, vocabulary=550)
  texts = _draw(recipe.seed, np.arange(200), 0.0)[1]
  train_clip.train_tokenizer(texts * 5, tmp_path, recipe.vocabulary)
  vocabulary = train_clip.CLIPTokenizerFast.from_pretrained(tmp_path)
  assert len(vocabulary) == recipe.vocabulary
  pairs = train_clip.Pairs(_draw, train_clip.WORLD.test)
  found = list(train_clip._batches(recipe, pairs, vocabulary, 1))
  assert len(found) == 2  # steps 1 and 2: a training resumes behind its checkpoint
  for step, (images, ids_BxL) in enumerate(found, 1):
    expected, texts = _draw(recipe.seed, 8 * step + np.arange(8), 0.0)
    np.testing.assert_array_equal(images, expected)
    for ids, text in zip(ids_BxL, texts, strict=True):
      own = vocabulary(text, truncation=True, max_length=18).input_ids
      assert ids[: len(own)].tolist() == own
