"""Pickles that are read without importing or calling what they name."""

import collections
import pickle
import tracemalloc

import pytest

from pomp_jax.files.restricted_pickle import PickleError, load_restricted


def only_ordered_dicts(module, name):
  if (module, name) != ("collections", "OrderedDict"):
    raise PickleError(f"{module}.{name}")
  return collections.OrderedDict


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_allowed_classes(protocol):
  value = collections.OrderedDict(a=[1, 2.5, "b", None, True, (b"c", {"d": 2**80})])
  found = load_restricted(pickle.dumps(value, protocol), lambda module, name: {
    "OrderedDict": collections.OrderedDict, "encode": lambda text, _: text.encode("latin1"),
  }[name])  # fmt: skip
  assert found == value and type(found) is collections.OrderedDict


@pytest.mark.parametrize("value", [print, collections.Counter, pytest.raises])
def test_other_names_are_refused(value):
  with pytest.raises(PickleError, match=value.__name__):
    load_restricted(pickle.dumps(value), only_ordered_dicts)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x80\x04]",
    b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # BYTEARRAY8
    b"\x80\x04B" + (2**32 - 1).to_bytes(4, "little") + b"a.",  # BINBYTES
    b"\x80\x04Pid\n.",  # a persistent id
  ],
)
def test_damage_is_an_error_and_takes_no_memory(data):
  tracemalloc.start()
  with pytest.raises(PickleError):
    load_restricted(data, only_ordered_dicts)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def test_a_memo_of_any_number_takes_no_memory():
  tracemalloc.start()
  assert load_restricted(b"\x80\x02Nr" + b"\xff" * 4 + b".", only_ordered_dicts) is None
  assert tracemalloc.get_traced_memory()[1] < 2**20
  tracemalloc.stop()
