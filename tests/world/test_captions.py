"""Captions: the table is a distribution, noise 0 tells the truth, none names a novel class."""

import collections

import numpy as np
import pytest

from pomp_jax.world import captions, names, render


def _draw(n, noise, seed=0):
  keys = render.image_keys(seed, 5, np.arange(n))
  base = names.class_attributes("base")
  attributes = base[(names.mix(keys) % np.uint64(len(base))).astype(int)]
  register, style = captions.sources(keys)
  return attributes, register, style, captions.write(keys, attributes, register, noise)


def test_the_table_holds_probabilities():
  registers = captions.REGISTERS.values()
  assert sum(r.weight for r in registers) == pytest.approx(1)
  shares = collections.Counter()
  for register in registers:
    assert sum(register.styles.values()) == pytest.approx(1)
    assert set(register.styles) <= set(render.STYLES) - {"shifted"}
    assert all(0 <= p <= 1 for p in register.named + register.right)
    assert register.named[names.ATTRIBUTES.index("shape")] == 1
    for template in register.templates:
      assert template.count("{}") == 1
      shares[template] += register.weight / len(register.templates)
  # Bare names occur.
  assert max(shares, key=shares.get) == "a photo of a {}." and shares["{}."] > 0.01


def test_shares_of_registers_and_styles():
  _, register, style, _ = _draw(20_000, 1.0)
  shares = np.bincount(register, minlength=len(captions.REGISTERS)) / 20_000
  weights = np.array([r.weight for r in captions.REGISTERS.values()])
  np.testing.assert_allclose(shares, weights, atol=0.01)
  sketches = register == list(captions.REGISTERS).index("sketch")
  assert (style[sketches] == render.STYLES.index("sketch")).all()


def test_noise_0_names_everything_rightly():
  attributes, register, _, texts = _draw(2_000, 0.0)
  rows = list(captions.REGISTERS.values())
  for values, r, text in zip(attributes.tolist(), register, texts, strict=True):
    phrase = names.phrase(*values)
    assert text in {template.format(phrase) for template in rows[r].templates}


def test_noise_1_slips_as_often_as_the_table_says():
  attributes, register, _, texts = _draw(40_000, 1.0)
  shapes = names.SHAPES
  for r, row in enumerate(captions.REGISTERS.values()):
    at = np.flatnonzero(register == r)
    right = np.mean([shapes[attributes[i, 2]] in texts[i] for i in at])
    # "ring" is also found in "ringed": a little above the table is in order.
    assert row.right[2] - 0.04 < right < row.right[2] + 0.06


def test_a_slip_is_another_word_and_half_the_time_of_the_family():
  attributes = names.class_attributes("base")
  slipped = captions._other(attributes, np.random.RandomState(0).rand(*attributes.shape))
  assert (slipped != attributes).all()
  for a, families in enumerate(names.FAMILIES):
    family_of = np.repeat(np.arange(len(families)), [len(family) for family in families])
    within = np.mean(family_of[attributes[:, a]] == family_of[slipped[:, a]])
    # Half, and what an arbitrary other word hits of the family by chance.
    assert 0.5 < within < 0.6


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_no_caption_spells_a_novel_class(noise):
  novel = set(names.class_names("novel"))
  for text in _draw(30_000, noise, seed=2)[3]:
    words = text.replace(",", " ").replace(":", " ").rstrip(".").split()
    # Every run of words, whatever stands around the name.
    for start in range(len(words)):
      for length in range(5, 8):
        assert " ".join(words[start : start + length]) not in novel


def test_training_batches_are_repeatable_item_by_item():
  images, texts = captions.training_batch(0, np.arange(40), 0.7)
  part_images, part_texts = captions.training_batch(0, np.array([30, 4]), 0.7)
  np.testing.assert_array_equal(images[[30, 4]], part_images)
  assert [texts[30], texts[4]] == part_texts


def test_training_images_are_of_base_classes_in_sets_that_differ_by_one_attribute():
  attributes = captions.training_classes(0, np.arange(8_000))
  assert names.base_table()[tuple(attributes.T)].all()
  sets = attributes.reshape(-1, captions.SET_SIZE, 4)
  # Each differs in one attribute at most from a common class, hence in two from each other.
  assert ((sets[:, :1] != sets).sum(-1) <= 2).all()
  assert len(np.unique(sets[:, 0], axis=0)) > 900
