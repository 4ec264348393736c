"""Reads pickles without importing or calling anything that they name."""

import dataclasses
import io
import pickle
import pickletools
import re
from typing import Any, ClassVar, NamedTuple, NoReturn

# What plain values and objects of protocols 2 to 5 need.
_OPCODES = re.compile(
  r"PROTO|FRAME|STOP|MARK|POP|POP_MARK|BINPUT|LONG_BINPUT|MEMOIZE|BINGET|LONG_BINGET|NONE|"
  r"NEWTRUE|NEWFALSE|BININT|BININT1|BININT2|LONG1|LONG4|BINFLOAT|BINUNICODE|"
  r"SHORT_BINUNICODE|EMPTY_TUPLE|TUPLE|TUPLE1|TUPLE2|TUPLE3|EMPTY_LIST|APPEND|APPENDS|"
  r"EMPTY_DICT|GLOBAL|STACK_GLOBAL|BINPERSID"
)


class PickleError(ValueError):
  """A pickle that is not read; the message says what it contains."""


@dataclasses.dataclass(frozen=True, eq=False)
class PickledObject:
  """Object of a class that is not imported, or result of a function that is not called.

  Attributes:
    name: name of the class or the function.
    attributes: state that the pickle sets.
  """

  name: str
  attributes: dict[Any, Any] = dataclasses.field(default_factory=dict)


class _Name(NamedTuple):
  name: str


class _Dispatch(dict):
  def __missing__(self, code: int) -> NoReturn:
    opcode = pickletools.code2op.get(chr(code))
    raise PickleError(f"opcode {opcode.name if opcode else code}")


class RestrictedUnpickler(pickle._Unpickler):
  """Unpickler that imports nothing and calls nothing; objects become `PickledObject`.

  Python's own pure unpickler with an allow-list of opcodes and of `names`. (The one in C allocates
  what a memo index claims, and hashes any key.)
  """

  names: ClassVar[re.Pattern[str]]
  dispatch = _Dispatch(
    (ord(op.code), pickle._Unpickler.dispatch[ord(op.code)])
    for op in pickletools.opcodes
    if _OPCODES.fullmatch(op.name)
  )

  @classmethod
  def read(cls, data: bytes) -> Any:
    """Reads a pickle of protocol 2 or newer: plain values, dicts, lists, tuples and objects.

    Items of dicts whose keys are neither strings nor integers are dropped.

    Raises:
      PickleError: it contains another name or opcode, or is damaged.
    """
    try:
      return cls(io.BytesIO(data)).load()
    except PickleError:
      raise
    except Exception as error:  # damaged bytes can raise anything
      raise PickleError(f"damaged bytes ({type(error).__name__}: {error})") from error

  def find_class(self, module: str, attribute: str) -> _Name:
    """Checks a name."""
    name = f"{module}.{attribute}"
    if not attribute.isidentifier() or not self.names.fullmatch(name):
      raise PickleError(f"the name {name}")
    return _Name(name)

  def construct(self, name: str, arguments: tuple) -> Any:
    """Returns the substitute for a call of `name`."""
    return PickledObject(name)

  def _call(self) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
      raise PickleError("a call of something that is no function")
    self.append(self.construct(function.name, arguments))

  def _build(self) -> None:
    state, target = self.stack.pop(), self.stack[-1]
    if isinstance(target, PickledObject) and isinstance(state, dict):
      target.attributes.update(state)

  def _set_items(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, PickledObject):
      return
    if not isinstance(target, dict):
      raise PickleError(f"items for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Hashing nested tuples takes exponential time, and huge integers can be made to collide.
      if type(key) is str or (type(key) is int and abs(key) < 2**60):
        target[key] = value

  dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _call
  dispatch[pickle.BUILD[0]] = _build
  dispatch[pickle.SETITEM[0]] = lambda self: self._set_items(
    [self.stack.pop(), self.stack.pop()][::-1]
  )
  dispatch[pickle.SETITEMS[0]] = lambda self: self._set_items(self.pop_mark())
