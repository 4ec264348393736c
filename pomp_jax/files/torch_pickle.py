"""The value in a torch checkpoint's `data.pkl`, without Python's unpickler.

The machine knows the opcodes that `torch.save` writes (protocol 2); a name in the pickle stays a
name, and is refused unless it is one that checkpoints are known to hold. Of these, ordered dicts,
tensors and TorchScript's modules are understood, the latter as their attributes and without their
code; objects of the others (the optimizer inside a learning rate scheduler, NumPy scalars) become
`Unread`, which is nothing but the name.

That is more than `torch.load(weights_only=True)` reads: Dassl's warm-up schedulers keep a whole
scheduler object in their state, which torch refuses.
"""

import dataclasses
import re
from typing import Any

from pomp_jax.files.pickle_machine import STEPS, PickleError, PickleMachine, run_pickle


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
  return run_pickle(data, _Machine(), _STEPS, "which torch.save does not write")


class _Machine(PickleMachine):
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


# Opcodes that the pickler uses in protocol 2.
_STEPS = STEPS | {
  "PROTO": _Machine.protocol,
  "POP": lambda machine, _: machine.pop(1),
  "POP_MARK": lambda machine, _: machine.pop_mark(),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "LONG4": _Machine.push,
  "BINFLOAT": _Machine.push,
  "GLOBAL": _Machine.global_,
  "REDUCE": _Machine.call,
  "NEWOBJ": _Machine.call,
  "BUILD": _Machine.build,
  "BINPERSID": _Machine.persistent,
}
