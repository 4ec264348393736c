"""Few shots, samples and halves: from seed and keys alone, whatever the order of the listing."""

import collections

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from pomp_jax.data.subsets import even_sample, few_shot, half_of_classes, held_out

LABELS = st.lists(st.integers(0, 5), max_size=60)


def keys_of(labels):
  return [f"{label}/{index}.jpg" for index, label in enumerate(labels)]


@given(LABELS, st.sampled_from((1, 2, 4, 8, 16)), st.integers(0, 3))
def test_so_many_of_each_class_and_all_of_a_small_one(labels, shots, seed):
  chosen = few_shot(np.array(labels, int), keys_of(labels), shots, seed)
  counts = collections.Counter(labels[index] for index in chosen)
  assert counts == {label: min(shots, n) for label, n in collections.Counter(labels).items()}
  assert chosen.tolist() == sorted(set(chosen.tolist()))


@given(
  LABELS.flatmap(lambda labels: st.tuples(st.just(labels), st.permutations(range(len(labels)))))
)
def test_the_order_of_the_listing_does_not_matter(case):
  labels, order = case
  keys = keys_of(labels)
  for choose, count in ((few_shot, 2), (even_sample, 7)):
    expected = {keys[i] for i in choose(np.array(labels, int), keys, count, 3)}
    shuffled = [keys[i] for i in order]
    again = choose(np.array([labels[i] for i in order], int), shuffled, count, 3)
    assert {shuffled[i] for i in again} == expected


def test_fewer_shots_lie_within_more_and_seeds_differ():
  labels = np.repeat(np.arange(4), 50)
  keys = keys_of(labels)
  subsets = [set(few_shot(labels, keys, shots).tolist()) for shots in (1, 2, 4, 8, 16)]
  assert all(a < b for a, b in zip(subsets, subsets[1:], strict=False))
  assert set(few_shot(labels, keys, 16, seed=1).tolist()) != subsets[-1]


@given(LABELS, st.sampled_from((0.0, 0.1, 0.5)), st.sampled_from((0.0, 0.2, 0.4)))
def test_what_is_held_out_is_a_share_of_each_class(labels, first, second):
  rest, parts = held_out(np.array(labels, int), keys_of(labels), (first, second))
  every = [*rest.tolist(), *parts[0].tolist(), *parts[1].tolist()]
  assert sorted(every) == list(range(len(labels)))
  for label, total in collections.Counter(labels).items():
    left, taken = total - 1, []
    for share in (first, second):
      # Halves are rounded up; Python's own `round` takes them to even.
      taken.append(min(left, int(total * share + 0.5)))
      left -= taken[-1]
    assert [sum(labels[i] == label for i in part) for part in parts] == taken


def test_the_choice_is_fixed_for_good():
  # Another hash, or another way to join seed and key, would change everybody's subsets.
  labels = np.zeros(1000, int)
  assert few_shot(labels, keys_of(labels), 4, seed=1).tolist() == [72, 333, 335, 534]
  _, [held] = held_out(labels, keys_of(labels), [0.004])
  assert held.tolist() == [27, 319, 669, 869]


def test_every_image_is_as_likely():
  # 200 seeds x 10 of 100: each image 20 times on average; chi-square with 99 degrees of freedom.
  labels = np.zeros(100, int)
  counts = np.zeros(100)
  for seed in range(200):
    counts[few_shot(labels, keys_of(labels), 10, seed)] += 1
  assert ((counts - 20) ** 2 / (20 * 0.9)).sum() < 150


@given(LABELS, st.integers(0, 70))
def test_a_sample_is_even(labels, count):
  chosen = even_sample(np.array(labels, int), keys_of(labels), count)
  assert len(chosen) == min(count, len(labels))
  taken = collections.Counter(labels[index] for index in chosen)
  most = max(taken.values(), default=0)
  for label, size in collections.Counter(labels).items():
    assert taken[label] >= min(size, most - 1)


def test_a_small_sample_spreads_over_the_list_of_classes():
  labels = np.repeat(np.arange(100), 3)
  classes = labels[even_sample(labels, keys_of(labels), 50)]
  assert len(set(classes.tolist())) == 50
  assert 10 < (classes >= 50).sum() < 40


@pytest.mark.parametrize(("n", "n_base"), [(1, 1), (2, 1), (37, 19), (100, 50), (101, 51)])
def test_halves(n, n_base):
  # OxfordPets has 37 classes: 19 base and 18 new in CoOp's tables.
  base, new = half_of_classes(n, "base"), half_of_classes(n, "new")
  assert len(base) == n_base
  np.testing.assert_array_equal(np.concatenate([base, new]), half_of_classes(n, "all"))
