"""Reads torch's zip archives, and weights in them, without torch.

`<root>/data.pkl` is a pickle of the value, in which a tensor is a reference to a record
`<root>/data/<key>` of raw numbers, with an offset, a shape and strides.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import re
from typing import Any, NamedTuple, NoReturn
import zipfile

import ml_dtypes
import numpy as np

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.weights import TORCH_FILES, Weights, refuse
from pomp_jax.files.paths import Path, local_copy
from pomp_jax.files.restricted_pickle import PickledObject, PickleError, RestrictedUnpickler
from pomp_jax.files.terminal import printable

# Item of a training checkpoint with the weights: open_clip's and CoOp's, and detectron2's.
_STATE_DICTS = ("state_dict", "model")
_PICKLE_NAME = re.compile(r"([^/]+)/data\.pkl")
_TYPES = {
  "DoubleStorage": "f8",
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "BFloat16Storage": "u2",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """Reference to a tensor's values."""

  storage: str  # name of the record that holds them
  kind: str  # torch's name of their type, such as FloatStorage
  offset: int  # index of the tensor's first value in the record
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # values between neighbours along each axis


class _Dict(dict):
  """An ordered dict, without its attributes: `_metadata` of a module's state."""

  def __setstate__(self, state: Any) -> None:
    pass


class _Storage(NamedTuple):
  key: str
  kind: str


class TorchUnpickler(RestrictedUnpickler):
  """Reads `data.pkl`: tensors as `StoredTensor`, ordered dicts as dicts, parameters as tensors.

  Reads more than `torch.load(weights_only=True)`: Dassl's warm-up schedulers keep a whole scheduler
  object in their state, which torch refuses.
  """

  # Names of protocol 2: those that torch's own safe loader takes, and
  names = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)"
    r"|__builtin__\.(dict|set|bytearray|complex)"
    r"|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|(_core|core)\.multiarray\.(scalar|_reconstruct))"
    r"|torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|torch\.(u?int\d+|b?float\d+|complex\d+|half|double|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.\w+Storage|torch\.storage\.(UntypedStorage|TypedStorage)"
    # TorchScript's: classes of the archive's own, and marks of types;
    r"|__torch__(\.\w+)+|torch\.jit\._pickle\.\w+"
    # the scheduler that follows a warm-up, and its optimizer.
    r"|torch\.optim\.(\w+\.)+\w+"
  )

  def construct(self, name: str, arguments: tuple) -> Any:
    if name == "collections.OrderedDict" and not arguments:
      return _Dict()
    if name == "torch._utils._rebuild_tensor_v2":
      storage, offset, shape, strides, *_ = arguments
      fits = isinstance(storage, _Storage) and len(shape) == len(strides)
      numbers = (offset, *shape, *strides)
      if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise PickleError("a tensor without a storage, a shape or strides")
      return StoredTensor(storage.key, storage.kind, offset, tuple(shape), tuple(strides))
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], StoredTensor):
      return arguments[0]
    return PickledObject(name)

  def persistent_load(self, pid: Any) -> _Storage:
    what, kind, key, *_ = pid
    kind = re.fullmatch(r"torch\.(\w+Storage)", kind.__name__)
    if what != "storage" or not kind or not isinstance(key, str):
      raise PickleError("a reference to something that is no storage")
    return _Storage(key, kind[1])


class TorchArchive(contextlib.AbstractContextManager):
  """Open archive; `value` is what `TorchUnpickler` reads. What can't be read raises `error`."""

  value: Any

  def __init__(self, path: str | os.PathLike, error: type[Exception] = ClipError):
    """Reads the value, without the tensors."""
    self._path, self._error = path, error
    try:
      self._zip = zipfile.ZipFile(local_copy(path))
    except FileNotFoundError:
      self._refuse("the file", "missing", "a torch checkpoint")
    except Exception as error:  # a damaged archive fails in more ways than zipfile documents
      self._refuse("the file", f"not a whole zip ({error})", TORCH_FILES)
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._zip)
      names = [name for name in self._zip.namelist() if _PICKLE_NAME.fullmatch(name)]
      if len(names) != 1:
        self._refuse(
          "the file", f"a zip with {len(names)} data.pkl", "a torch checkpoint, with one"
        )
      self._root = names[0].removesuffix("/data.pkl")
      try:
        self.value = TorchUnpickler.read(self._read("data.pkl"))
      except PickleError as error:
        accepted = "tensors, plain values, and torch's optimizer state"
        self._refuse("data.pkl", f"refused for {error}", accepted)
      # torch before 2.1 wrote no byte order.
      is_told = f"{self._root}/byteorder" in self._zip.namelist()
      order = self._read("byteorder") if is_told else b"little"
      if order not in (b"little", b"big"):
        self._refuse("byteorder", repr(order[:16]), "little, big")
      self._order = "<" if order == b"little" else ">"
      stack.pop_all()

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def array(self, tensor: StoredTensor, field: str = "the tensor") -> np.ndarray:
    """Reads a tensor of `value` into a new array; bfloat16 becomes float32.

    The error names `field` if its type is unknown, its record missing or damaged, or if it reaches
    beyond the record.
    """
    kind = _TYPES.get(tensor.kind)
    if kind is None:
      self._refuse(field, f"of type {tensor.kind}", ", ".join(_TYPES))
    dtype = np.dtype(self._order + kind)
    data = self._read(f"data/{tensor.storage}")
    try:
      strides = [dtype.itemsize * stride for stride in tensor.strides]
      view = np.ndarray(tensor.shape, dtype, data, dtype.itemsize * tensor.offset, strides)
      array = view.astype(dtype.newbyteorder("="), order="C")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
      found = f"{list(tensor.shape)} on a record of {len(data)} bytes ({error})"
      self._refuse(field, found, "a tensor within its record")
    is_bfloat16 = tensor.kind == "BFloat16Storage"
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if is_bfloat16 else array

  def _read(self, record: str) -> bytes:
    try:
      return self._zip.read(f"{self._root}/{record}")
    except KeyError:
      self._refuse(record, "missing", "a record of that name")
    except Exception as error:  # zipfile and zlib, on a bad byte
      self._refuse(record, f"damaged ({error})", "an undamaged record")

  def _refuse(self, part: str, found: str, accepted: str) -> NoReturn:
    raise self._error(f"{self._path}: {part} is {printable(found)}; accepted: {accepted}")


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[Weights]:
  """Opens a state dict, a training checkpoint with an item of `_STATE_DICTS`, or TorchScript."""
  with TorchArchive(path) as archive:
    value = archive.value
    items = value.items() if isinstance(value, dict) else ()
    text = {name: item for name, item in items if isinstance(item, str)}
    for item in _STATE_DICTS:
      if isinstance(value, dict) and isinstance(value.get(item), dict):
        value = value[item]
    try:
      tensors = dict(_named_tensors(value))
    except RecursionError:
      refuse(path, "the checkpoint", "a module inside itself", "a state dict of weights")
    if not tensors:
      kind = value.name if isinstance(value, PickledObject) else type(value).__name__
      refuse(path, "the checkpoint", f"a {kind} without tensors", "a state dict of weights")
    # Distributed training wraps the model in another module.
    if all(name.startswith("module.") for name in tensors):
      tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

    def read(name: str) -> np.ndarray:
      values = archive.array(tensors[name], name)
      if values.dtype.kind != "f":
        refuse(path, name, f"of type {values.dtype}", "a float type")
      return np.asarray(values, np.float32)

    yield Weights(str(path), {name: tensor.shape for name, tensor in tensors.items()}, read, text)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
  """Finds the tensors of a state dict, or of a TorchScript module and its submodules."""
  children: dict[Any, Any] = {}
  if isinstance(value, StoredTensor):
    yield name, value
  elif isinstance(value, PickledObject) and value.name.startswith("__torch__."):
    children = value.attributes
  elif isinstance(value, dict) and not name:
    children = value
  for key, child in children.items():
    if isinstance(key, str):
      yield from _named_tensors(child, f"{name}.{key}" if name else key)
