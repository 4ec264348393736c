"""The value in a torch checkpoint's `data.pkl`, without Python's unpickler.

A pickle is a program for a stack machine that may import and call anything. Here is such a machine
that can do neither. It knows the opcodes that `torch.save` writes (protocol 2); a name in the
pickle stays a name, and is refused unless it is one that checkpoints are known to hold. Of these,
ordered dicts, tensors and TorchScript's modules are understood, the latter as their attributes and
without their code; objects of the others (the optimizer inside a learning rate scheduler, NumPy
scalars) become `Unread`, which is nothing but the name.

That is more than `torch.load(weights_only=True)` reads: Dassl's warm-up schedulers keep a whole
scheduler object in their state, which torch refuses.
"""

from collections.abc import Callable
import dataclasses
import pickletools
import re
from typing import Any


class PickleError(ValueError):
  """A pickle that is not read; the message says what it does."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """Where a tensor's values lie; none of them is read yet.

  Attributes:
    storage: name of the record that holds them.
    kind: torch's name of their type, such as FloatStorage.
    count: values in the whole record.
    offset: where the tensor's first value stands in it.
    shape: the tensor's.
    strides: values to the next one, along each axis.
  """

  storage: str
  kind: str
  count: int
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Unread:
  """An object that was not built.

  Attributes:
    name: of its class, or of the function that would have made it.
  """

  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Scripted:
  """An object of a class that the archive itself defines, in TorchScript; nothing of it is run.

  Attributes:
    name: of its class.
    attributes: its state: tensors, plain values, and further such objects.
  """

  name: str
  attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Name:
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
  key: str
  kind: str
  count: int


ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_SCRIPT = "__torch__."
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_STORAGE = re.compile(r"torch\.(\w+Storage)")
# What is understood, and what torch's own safe loader takes too, by the names of protocol 2.
_KNOWN = re.compile(
  r"collections\.(OrderedDict|Counter|defaultdict)"
  r"|__builtin__\.(dict|set|bytearray|complex)"
  r"|_codecs\.encode"
  r"|numpy\.(dtype|ndarray|(_core|core)\.multiarray\.(scalar|_reconstruct))"
  r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout)"
  r"|torch\.(u?int\d+|b?float\d+|complex\d+|half|double|bool)"
  r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
  r"|torch\.\w+Storage|torch\.storage\.(UntypedStorage|TypedStorage)"
  # What torch.jit.save writes: classes of the archive's own, and marks of types.
  r"|__torch__(\.\w+)+|torch\.jit\._pickle\.\w+"
  # Objects in the state of schedulers: the scheduler that follows a warm-up, and its optimizer.
  r"|torch\.optim\.(\w+\.)+\w+"
)


def read_pickle(data: bytes) -> Any:
  """The value that a checkpoint's pickle stands for.

  Args:
    data: the pickle.

  Returns:
    None, bools, ints, floats, strings, tuples, lists, dicts with string or integer keys (an item
    with another key stands under an `Unread`), `StoredTensor` and `Unread`.

  Raises:
    PickleError: it uses a name or an opcode that checkpoints don't, or is damaged.
  """
  machine = _Machine()
  try:
    for opcode, argument, _ in pickletools.genops(data):
      step = _STEPS.get(opcode.name)
      if step is None:
        raise PickleError(f"opcode {opcode.name}, which torch.save does not write")
      step(machine, argument)
  except PickleError:
    raise
  except Exception as error:  # an empty stack, an unknown memo entry, whatever a bad byte can raise
    raise PickleError(f"damaged bytes ({type(error).__name__}: {error})") from error
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
    """The last `count` values, oldest first."""
    return [self.stack.pop() for _ in range(count)][::-1]

  def remember(self, index: int) -> None:
    self.memo[index] = self.stack[-1]

  def global_(self, argument: str) -> None:
    module, _, attribute = argument.partition(" ")
    name = f"{module}.{attribute}"
    if not attribute.isidentifier() or not _KNOWN.fullmatch(name):
      raise PickleError(f"the name {name}")
    self.push(_Name(name))

  def append(self, items: list[Any]) -> None:
    self._target((list,)).extend(items)

  def set_items(self, items: list[Any]) -> None:
    target = self._target((dict,))
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Others need not be addressed, and hashes of tuples and of huge integers can be a trap.
      plain = type(key) is str or (type(key) is int and abs(key) < 2**60)
      target[key if plain else Unread("a key")] = value

  def build(self, _) -> None:
    """State for an object; of those that are built, only scripted ones have any."""
    state, target = self.stack.pop(), self.stack[-1]
    if isinstance(target, Scripted) and isinstance(state, dict):
      target.attributes.update(state)
    elif not isinstance(target, dict | Unread | StoredTensor | Scripted):
      raise PickleError(f"state for a {type(target).__name__}")

  def call(self, _) -> None:
    function, arguments = self.pop(2)
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
      raise PickleError("a call of something that is no function")
    self.push(_called(function.name, arguments))

  def persistent(self, _) -> None:
    what, kind, key, _, count = self.stack.pop()
    kind = _STORAGE.fullmatch(kind.name)
    if what != "storage" or not kind or not re.fullmatch(r"\w+", key) or not _is_size(count):
      raise PickleError("a reference to something that is no storage")
    self.push(_Storage(key, kind[1], count))

  def protocol(self, version: int) -> None:
    if version != 2:
      raise PickleError(f"protocol {version}, not 2")

  def stop(self, _) -> None:
    self.result = self.stack.pop()

  def _target(self, kinds: tuple[type, ...]) -> Any:
    target = self.stack[-1]
    if isinstance(target, Unread):
      return kinds[0]()
    if not isinstance(target, kinds):
      raise PickleError(f"items for a {type(target).__name__}")
    return target


def _called(name: str, arguments: tuple) -> Any:
  """What a function of that name would make of its arguments."""
  if name == ORDERED_DICT and not arguments:
    return {}
  if name == REBUILD_TENSOR:
    storage, offset, shape, strides, *_ = arguments
    sizes = (offset, *shape, *strides)
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(strides)
      or not all(map(_is_size, sizes))
    ):
      raise PickleError("a tensor without a storage, a shape or strides")
    return StoredTensor(
      storage.key, storage.kind, storage.count, offset, tuple(shape), tuple(strides)
    )
  if name == _REBUILD_PARAMETER and isinstance(arguments[0], StoredTensor):
    return arguments[0]
  if name.startswith(_SCRIPT) and not arguments:
    return Scripted(name, {})
  return Unread(name)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(value)


def _new(kind: type) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(kind())


def _last_as_tuple(count: int) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push(tuple(machine.pop(count)))


# Opcodes that the pickler uses in protocol 2.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": _Machine.protocol,
  "STOP": _Machine.stop,
  "MARK": _Machine.mark,
  "POP": lambda machine, _: machine.pop(1),
  "POP_MARK": lambda machine, _: machine.pop_mark(),
  "NONE": _constant(None),
  "NEWTRUE": _constant(True),
  "NEWFALSE": _constant(False),
  "EMPTY_TUPLE": _constant(()),
  "EMPTY_LIST": _new(list),
  "EMPTY_DICT": _new(dict),
  "TUPLE1": _last_as_tuple(1),
  "TUPLE2": _last_as_tuple(2),
  "TUPLE3": _last_as_tuple(3),
  "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
  "APPEND": lambda machine, _: machine.append(machine.pop(1)),
  "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
  "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
  "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
  "GLOBAL": _Machine.global_,
  "REDUCE": _Machine.call,
  "NEWOBJ": _Machine.call,
  "BUILD": _Machine.build,
  "BINPERSID": _Machine.persistent,
}
_STEPS |= dict.fromkeys(
  ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"), _Machine.push
)
_STEPS |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember)
_STEPS |= dict.fromkeys(
  ("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
)
