"""CoOp's few-shot files, without Python's unpickler.

CoOp keeps its subsets as pickles of `{"train": [Datum, ...], "val": [...]}`. The machine knows the
opcodes that such a file needs, and one class name, `Datum`, whose objects become plain dicts.
"""

from typing import Any

from pomp_jax.files.pickle_machine import STEPS, PickleError, PickleMachine, run_pickle


class _Name(str):
  """The name of Datum, whatever module it says it is from."""


def read_datum_pickle(data: bytes) -> Any:
  """What the pickle holds: dicts, lists, tuples, strings, numbers; a Datum is its attributes' dict.

  Raises:
    PickleError: it names another class or function, uses another opcode, or is damaged.
  """
  return run_pickle(data, _Machine(), _STEPS, "which such a file does not need")


class _Machine(PickleMachine):
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


def _of_type(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise PickleError(f"a {type(value).__name__} where a {kind.__name__} has to be")
  return value


# What the pickler uses for such objects in protocols 2 to 5.
_STEPS = STEPS | {
  "PROTO": lambda machine, _: None,
  "FRAME": lambda machine, _: None,
  "SHORT_BINUNICODE": _Machine.push,
  "MEMOIZE": _Machine.remember,
  "GLOBAL": lambda machine, argument: machine.name(*argument.rsplit(" ", 1)),
  "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
  "NEWOBJ": _Machine.new,
  "BUILD": _Machine.build,
}
