"""The class list: its size, its split, and that the split can never move."""

import hashlib

import numpy as np
import pytest

from pomp_jax.world import class_names, names


def test_sizes_and_names():
  base, novel, every = (class_names(group) for group in ("base", "novel", "all"))
  assert (len(base), len(novel)) == (21_841, 5_087)
  assert every == base + novel
  assert len(set(every)) == len(every)
  assert all(name == name.lower().strip() for name in every)
  with pytest.raises(ValueError, match="'test'.*base, novel, all"):
    class_names("test")


def test_each_novel_attribute_value_occurs_in_base():
  base, novel = (names.class_attributes(group) for group in ("base", "novel"))
  for a in range(4):
    assert set(novel[:, a]) <= set(base[:, a])
  words = {word for name in class_names("base") for word in name.split()}
  assert {word for name in class_names("novel") for word in name.split()} <= words


def test_the_split_is_fixed():
  digest = hashlib.sha256("\n".join(class_names("novel")).encode()).hexdigest()
  assert digest == "cba411d141aeff8c77f1a4d54ce481640e7efcb1b1548f7668e472b7ecc71e78"


def test_table_and_attributes_agree_with_the_names():
  table = names.base_table()
  assert table.sum() == len(class_names("base"))
  attributes = names.class_attributes("novel")
  assert not table[tuple(attributes.T)].any()
  for values, name in zip(attributes[::500], class_names("novel")[::500], strict=True):
    words = [names.WORDS[a][value] for a, value in enumerate(values)]
    assert name == f"{words[0]} {words[1]} {words[2]} on {words[3]}"


def test_families_partition_the_words():
  for words, families in zip(names.WORDS, names.FAMILIES, strict=True):
    assert sum(families, ()) == words and len(set(words)) == len(words)
    assert min(map(len, families)) >= 2


def test_mix_spreads_neighbours():
  bits = np.unpackbits(names.mix(np.arange(4096, dtype=np.uint64)).view(np.uint8))
  assert abs(bits.mean() - 0.5) < 0.01
