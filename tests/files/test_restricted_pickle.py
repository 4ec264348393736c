"""Pickles that are read without importing or calling what they name."""

import collections
import pickle
import re
import tracemalloc

import pytest

from pomp_jax.files.restricted_pickle import PickledObject, PickleError, RestrictedUnpickler


class Unpickler(RestrictedUnpickler):
  names = re.compile(r"collections\.(OrderedDict|Counter)")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_other_names(protocol):
  if protocol >= 2:
    plain = {"a": [1, 2.5, "b\ud800", None, True, ({"d": 2**80, 7: ()}, [])] * 2, "b": "x" * 300}
    found = Unpickler.read(pickle.dumps([plain, collections.Counter("aab")], protocol))
    assert found[0] == plain
    assert isinstance(found[1], PickledObject) and found[1].name == "collections.Counter"
  for value in (print, collections.deque([1]), pytest.raises, {1}):
    with pytest.raises(PickleError):
      Unpickler.read(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
  ("body", "reason"),
  [
    (b"N2.", "opcode DUP"),
    (b"(ios\nsystem\n.", "opcode INST"),
    (b"I1\n.", "opcode INT"),
    (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "the name os.system"),
    (b"N)R.", "no function"),
    (b"ccollections\nOrderedDict\n)R)R.", "no function"),  # the result is not called in turn
    (b"NNNs.", "items for a NoneType"),
    *((body, "damaged") for body in (b"", b".", b"h\x05.", b"0.", b"t.", b"}(Nu.", b"}Na.", b"]")),
    (b"\xff.", "opcode"),
  ],
)
def test_other_programs_are_refused(body, reason):
  with pytest.raises(PickleError, match=reason):
    Unpickler.read(b"\x80\x02" + body)


@pytest.mark.parametrize(
  ("body", "value"),
  [
    (b"\x96" + (2**33).to_bytes(8, "little") + b".", None),  # BYTEARRAY8
    (b"B" + (2**32 - 1).to_bytes(4, "little") + b"a.", None),  # BINBYTES
    (b"X" + (2**32 - 1).to_bytes(4, "little") + b"a.", None),  # BINUNICODE
    (b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"a.", None),  # LONG4
    (b"\x95" + (2**40).to_bytes(8, "little") + b"N", None),  # FRAME
    (b"]r" + b"\xff" * 4 + b".", []),  # LONG_BINPUT
  ],
)
def test_claimed_sizes_take_no_memory(body, value):
  tracemalloc.start()
  try:
    assert Unpickler.read(b"\x80\x05" + body) == value
  except PickleError:
    assert value is None
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert peak < 2**20


def test_hostile_hashes_take_no_time():
  """Nested tuples as a key, 2^60 steps if they were hashed, and integers that collide."""
  nested = b")" + b"q\x00h\x00\x86" * 60
  assert Unpickler.read(b"\x80\x02}" + nested + b"Ns.") == {}
  colliding = b"".join(
    b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, 20_000)
  )
  assert Unpickler.read(b"\x80\x02}(" + colliding + b"u.") == {}
