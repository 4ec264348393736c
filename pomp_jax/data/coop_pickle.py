"""CoOp's few-shot files, without Python's unpickler.

CoOp keeps its subsets as pickles of `{"train": [Datum, ...], "val": [...]}`. A pickle is a program
that may import and call anything, so here is a machine that can do neither: it knows the opcodes
that such a file needs, and one class name, `Datum`, whose objects become plain dicts.
"""

from collections.abc import Callable
import pickletools
from typing import Any


class PickleError(ValueError):
  """A pickle that is not read; the message says what it does."""


class _Name(str):
  """The name of Datum, whatever module it says it is from."""


def read_datum_pickle(data: bytes) -> Any:
  """What the pickle holds: dicts, lists, tuples, strings, numbers; a Datum is its attributes' dict.

  Raises:
    PickleError: it names another class or function, uses another opcode, or is damaged.
  """
  machine = _Machine()
  try:
    for opcode, argument, _ in pickletools.genops(data):
      step = _STEPS.get(opcode.name)
      if step is None:
        raise PickleError(f"opcode {opcode.name}, which such a file does not need")
      step(machine, argument)
  except PickleError:
    raise
  except Exception as error:  # an empty stack, an unknown memo entry, whatever a bad byte can raise
    raise PickleError(f"damaged bytes ({type(error).__name__})") from error
  return machine.result


class _Machine:
  """The stack, the stacks below the open marks, and the memo."""

  def __init__(self):
    self.stack: list[Any] = []
    self.below: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.result: Any = None

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def mark(self, _) -> None:
    self.below.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.below.pop()
    return items

  def pop(self, count: int) -> list[Any]:
    return [self.stack.pop() for _ in range(count)][::-1]

  def remember(self, index: int | None) -> None:
    self.memo[len(self.memo) if index is None else index] = self.stack[-1]

  def name(self, module: str, attribute: str) -> None:
    if attribute != "Datum":
      raise PickleError(f"the name {module}.{attribute}")
    self.push(_Name(attribute))

  def new(self, _) -> None:
    kind, arguments = self.pop(2)
    if not isinstance(kind, _Name) or arguments != ():
      raise PickleError("a call of something that is no Datum")
    self.push({})

  def build(self, _) -> None:
    state = self.stack.pop()
    _of_type(self.stack[-1], dict).update(_of_type(state, dict))

  def append(self, items: list[Any]) -> None:
    _of_type(self.stack[-1], list).extend(items)

  def set_items(self, items: list[Any]) -> None:
    target = _of_type(self.stack[-1], dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_of_type(key, str)] = value

  def stop(self, _) -> None:
    self.result = self.stack.pop()


def _of_type(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise PickleError(f"a {type(value).__name__} where a {kind.__name__} has to be")
  return value


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(value)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(tuple(machine.pop(count)))


# What the pickler uses for such objects in protocols 2 to 5.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": lambda machine, _: None,
  "FRAME": lambda machine, _: None,
  "STOP": _Machine.stop,
  "MARK": _Machine.mark,
  "NONE": _constant(None),
  "EMPTY_TUPLE": _constant(()),
  "EMPTY_LIST": lambda machine, _: machine.push([]),
  "EMPTY_DICT": lambda machine, _: machine.push({}),
  "TUPLE1": _tuple(1),
  "TUPLE2": _tuple(2),
  "TUPLE3": _tuple(3),
  "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
  "APPEND": lambda machine, _: machine.append(machine.pop(1)),
  "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
  "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
  "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
  "GLOBAL": lambda machine, argument: machine.name(*argument.rsplit(" ", 1)),
  "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
  "NEWOBJ": _Machine.new,
  "BUILD": _Machine.build,
}
_STEPS |= dict.fromkeys(
  ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"), _Machine.push
)
_STEPS |= dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember)
_STEPS |= dict.fromkeys(
  ("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
)
