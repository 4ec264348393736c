"""Reads and writes torch's zip archives without torch.

`<root>/data.pkl` is a pickle of the value, in which a tensor is a reference to a record
`<root>/data/<key>` of raw numbers, with an offset, a shape and strides. Nothing is compressed.
"""

import contextlib
import dataclasses
import math
import os
import re
import struct
from typing import Any, BinaryIO, NamedTuple, NoReturn
import zipfile

import ml_dtypes
import numpy as np

from pomp_jax.files.paths import local_copy
from pomp_jax.files.restricted_pickle import PickledObject, PickleError, RestrictedUnpickler
from pomp_jax.files.terminal import printable

# A CLIP with its optimizer's state takes a few hundred kilobytes; each byte may cost a hundred.
_MAX_PICKLE_BYTES = 2 * 2**20
_MAX_TENSOR_BYTES = 4 * 2**30
# Values of a view beyond those of its storage (a stride of 0 repeats them).
_MAX_REPEATED = 2**20

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
_ORDERED_DICT = "collections.OrderedDict"
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"


class TorchArchiveError(ValueError):
  """An archive that can't be read: one line with the file, the part, and what is accepted."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """Reference to a tensor's values.

  Attributes:
    storage: name of the record that holds them.
    kind: torch's name of their type, such as FloatStorage.
    count: number of values of the record.
    offset: index of the tensor's first value in it.
    shape: shape of the tensor.
    strides: values between neighbours along each axis.
  """

  storage: str
  kind: str
  count: int
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Storage(NamedTuple):
  key: str
  kind: str
  count: int


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
    """Returns a dict, a tensor or an object."""
    if name == _ORDERED_DICT and not arguments:
      return {}
    if name == _REBUILD_TENSOR:
      storage, offset, shape, strides, *_ = arguments
      fits = isinstance(storage, _Storage) and len(shape) == len(strides) <= 64
      if not fits or not all(map(_is_size, (offset, *shape, *strides))):
        raise PickleError("a tensor without a storage, a shape or strides")
      return StoredTensor(*storage, offset, tuple(shape), tuple(strides))
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], StoredTensor):
      return arguments[0]
    return PickledObject(name)

  def persistent_load(self, pid: Any) -> _Storage:
    """Checks a reference to a storage."""
    what, kind, key, _, count = pid
    kind = re.fullmatch(r"torch\.(\w+Storage)", kind.name)
    if what != "storage" or not kind or not re.fullmatch(r"\w+", key) or not _is_size(count):
      raise PickleError("a reference to something that is no storage")
    return _Storage(key, kind[1], count)


def is_torch_archive(archive: zipfile.ZipFile) -> bool:
  """Whether a zip file has the names of a torch archive."""
  return any(_PICKLE_NAME.fullmatch(name) for name in archive.namelist())


class TorchArchive(contextlib.AbstractContextManager):
  """Open archive; `value` is what `TorchUnpickler` reads."""

  value: Any

  def __init__(self, path: str | os.PathLike):
    """Opens a file and reads the value, without the tensors.

    Raises:
      TorchArchiveError: missing, damaged, or a pickle with anything that checkpoints don't hold.
    """
    self._path = path
    try:
      self._zip = zipfile.ZipFile(local_copy(path))
    except FileNotFoundError:
      self._refuse("the file", "missing", "a torch checkpoint")
    except Exception as error:  # a damaged archive fails in more ways than zipfile documents
      self._refuse("the file", f"not a whole zip ({error})", "a checkpoint of torch 1.6 or newer")
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._zip)
      names = [name for name in self._zip.namelist() if _PICKLE_NAME.fullmatch(name)]
      if len(names) != 1:
        found = f"a zip with {len(names)} data.pkl"
        self._refuse("the file", found, "a torch checkpoint, with one")
      self._root = names[0].removesuffix("/data.pkl")
      try:
        self.value = TorchUnpickler.read(self._read("data.pkl", _MAX_PICKLE_BYTES))
      except PickleError as error:
        accepted = "tensors, plain values, and torch's optimizer state"
        self._refuse("data.pkl", f"refused for {error}", accepted)
      self._order = self._byte_order()
      stack.pop_all()

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def array(self, tensor: StoredTensor, field: str = "the tensor") -> np.ndarray:
    """Reads a tensor of `value` into a new array; bfloat16 becomes float32.

    Raises:
      TorchArchiveError: unknown number type, a record that is missing, damaged or of another
        length, a view that reaches beyond it, or too large. The line names `field`.
    """
    kind = _TYPES.get(tensor.kind)
    if kind is None:
      self._refuse(field, f"of type {tensor.kind}", ", ".join(_TYPES))
    dtype = np.dtype(self._order + kind)
    size = math.prod(tensor.shape)
    claimed = dtype.itemsize * max(size, tensor.count)
    if claimed > _MAX_TENSOR_BYTES:
      self._refuse(field, f"{claimed} bytes large", f"at most {_MAX_TENSOR_BYTES} bytes")
    if size > max(tensor.count, _MAX_REPEATED):
      found = f"{list(tensor.shape)} on {tensor.count} values"
      self._refuse(field, found, f"at most {_MAX_REPEATED} values that repeat others")
    data = self._read(f"data/{tensor.storage}", _MAX_TENSOR_BYTES)
    if len(data) != tensor.count * dtype.itemsize:
      found = f"on a record of {len(data)} bytes"
      self._refuse(field, found, f"{tensor.count * dtype.itemsize}, for {tensor.count} values")
    try:
      view = _view(np.frombuffer(data, dtype), tensor)
    except (ValueError, OverflowError) as error:
      self._refuse(field, f"{list(tensor.shape)} on {tensor.count} values ({error})", "a whole one")
    array = view.astype(dtype.newbyteorder("="))
    if tensor.kind == "BFloat16Storage":
      return array.view(ml_dtypes.bfloat16).astype(np.float32)
    return array

  def _byte_order(self) -> str:
    if f"{self._root}/byteorder" not in self._zip.namelist():
      return "<"  # torch before 2.1
    order = self._read("byteorder", 16)
    if order not in (b"little", b"big"):
      self._refuse("byteorder", repr(order), "little, big")
    return "<" if order == b"little" else ">"

  def _read(self, record: str, max_bytes: int) -> bytes:
    """Reads a record. It is not compressed, so that it can't be larger than the file."""
    try:
      info = self._zip.getinfo(f"{self._root}/{record}")
    except KeyError:
      self._refuse(record, "missing", "a record of that name")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
      self._refuse(record, "compressed", "stored as torch stores it")
    if info.file_size > max_bytes:
      self._refuse(record, f"{info.file_size} bytes large", f"at most {max_bytes} bytes")
    try:
      with self._zip.open(info) as member:
        data = member.read()
    except Exception as error:  # zipfile, on a bad byte
      self._refuse(record, f"damaged ({error})", "an undamaged record")
    if len(data) != info.file_size:
      self._refuse(record, f"cut off at {len(data)} bytes", f"{info.file_size}, as the zip says")
    return data

  def _refuse(self, part: str, found: str, accepted: str) -> NoReturn:
    raise TorchArchiveError(f"{self._path}: {part} is {printable(found)}; accepted: {accepted}")


def write_torch_archive(file: BinaryIO, value: Any) -> None:
  """Writes an archive that `torch.load(weights_only=True)` reads. Equal values make equal bytes.

  The value may have dicts (they become ordered dicts), strings, 32-bit integers, and float32 arrays
  (they become tensors on the CPU).
  """
  tensors: list[np.ndarray] = []
  records = {"data.pkl": b"\x80\x02" + _pickled(value, tensors) + b".", "byteorder": b"little"}
  for key, tensor in enumerate(tensors):
    records[f"data/{key}"] = tensor.astype("<f4", copy=False).tobytes()
  records["version"] = b"3\n"
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, data in records.items():
      archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # always dated 1980


def _view(flat: np.ndarray, tensor: StoredTensor) -> np.ndarray:
  if 0 in tensor.shape:
    return np.empty(tensor.shape, flat.dtype)
  reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
  if tensor.offset + reach >= len(flat):
    raise ValueError("it reaches beyond them")
  # An axis of one may have any stride.
  strides = [
    step * flat.itemsize if size > 1 else 0
    for size, step in zip(tensor.shape, tensor.strides, strict=True)
  ]
  return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63


def _pickled(value: Any, tensors: list[np.ndarray]) -> bytes:
  """Opcodes of a value in protocol 2; arrays are appended to `tensors`."""
  if isinstance(value, dict):
    items = b"".join(_pickled(part, tensors) for item in value.items() for part in item)
    return _global(_ORDERED_DICT) + b")R(" + items + b"u"  # EMPTY_TUPLE REDUCE MARK .. SETITEMS
  if isinstance(value, str):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data  # BINUNICODE
  if type(value) is int and -(2**31) <= value < 2**31:
    return b"J" + struct.pack("<i", value)  # BININT
  if isinstance(value, np.ndarray) and value.dtype == np.float32:
    tensors.append(value)
    return _tensor(value, key=str(len(tensors) - 1))
  raise TypeError(f"a {type(value).__name__} can't be written to a torch archive")


def _tensor(array: np.ndarray, key: str) -> bytes:
  """Opcodes of _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
  strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
  kind = _global("torch.FloatStorage")
  storage = _pickled("storage", []) + kind + _pickled(key, []) + _pickled("cpu", [])
  arguments = [
    b"(" + storage + _long(array.size) + b"tQ",  # TUPLE BINPERSID
    _long(0),
    b"(" + b"".join(map(_long, array.shape)) + b"t",
    b"(" + b"".join(map(_long, strides)) + b"t",
    b"\x89",  # NEWFALSE
    _global(_ORDERED_DICT) + b")R",
  ]
  return _global(_REBUILD_TENSOR) + b"(" + b"".join(arguments) + b"tR"


def _global(name: str) -> bytes:
  module, _, attribute = name.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def _long(value: int) -> bytes:
  data = value.to_bytes(9, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data  # LONG1
