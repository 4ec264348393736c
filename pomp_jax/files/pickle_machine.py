"""The stack machine that a pickle is a program for, without what makes Python's unpickler unsafe.

A pickle may import and call anything. This machine knows what moves values about and no name; who
reads pickles of some kind adds the opcodes that these need.
"""

from collections.abc import Callable, Mapping
import pickletools
from typing import Any


class PickleError(ValueError):
  """A pickle that is not read; the message says what it does."""


class PickleMachine:
  """The stack, the stacks below the open marks, and the memo.

  Attributes:
    stack: values, the latest last.
    memo: values by their number.
    result: the value at the end.
  """

  def __init__(self):
    """Starts with nothing."""
    self.stack: list[Any] = []
    self._below: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.result: Any = None

  def push(self, value: Any) -> None:
    """Adds a value."""
    self.stack.append(value)

  def mark(self, _) -> None:
    """Opens a mark; `pop_mark` closes it."""
    self._below.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    """The values since the last mark, oldest first."""
    items, self.stack = self.stack, self._below.pop()
    return items

  def pop(self, count: int) -> list[Any]:
    """The last `count` values, oldest first."""
    return [self.stack.pop() for _ in range(count)][::-1]

  def remember(self, index: int | None) -> None:
    """Notes the last value under a number, the next one if None."""
    self.memo[len(self.memo) if index is None else index] = self.stack[-1]

  def stop(self, _) -> None:
    """The last value is the result."""
    self.result = self.stack.pop()


# What an opcode does, given its argument.
Step = Callable[[Any, Any], None]


def run_pickle(
  data: bytes, machine: PickleMachine, steps: Mapping[str, Step], needless: str
) -> Any:
  """The value that a pickle stands for.

  Args:
    data: the pickle.
    machine: a new one.
    steps: opcode -> what it does to the machine.
    needless: of an opcode without a step, for the message: "which .. does not need".

  Raises:
    PickleError: it uses an opcode without a step, a step refuses it, or it is damaged.
  """
  try:
    for opcode, argument, _ in pickletools.genops(data):
      step = steps.get(opcode.name)
      if step is None:
        raise PickleError(f"opcode {opcode.name}, {needless}")
      step(machine, argument)
  except PickleError:
    raise
  except Exception as error:  # an empty stack, an unknown memo entry, whatever a bad byte can raise
    raise PickleError(f"damaged bytes ({type(error).__name__}: {error})") from error
  return machine.result


def _constant(value: Any) -> Step:
  return lambda machine, _: machine.push(value)


def _tuple(count: int) -> Step:
  return lambda machine, _: machine.push(tuple(machine.pop(count)))


# Of both kinds of pickles. The machine's own `append` and `set_items` take the items.
STEPS: dict[str, Step] = {
  "STOP": PickleMachine.stop,
  "MARK": PickleMachine.mark,
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
}
STEPS |= dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"), PickleMachine.push)
STEPS |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), PickleMachine.remember)
STEPS |= dict.fromkeys(
  ("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
)
