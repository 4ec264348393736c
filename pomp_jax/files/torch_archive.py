"""torch's zip archives, read and written without torch.

`<root>/data.pkl` is a pickle of the value, in which a tensor is a reference to a record
`<root>/data/<key>` of raw numbers, with an offset, a shape and strides. Nothing is compressed.
"""

import contextlib
import os
import re
import struct
from typing import Any, BinaryIO, NoReturn
import zipfile

import numpy as np

from pomp_jax.files.pickle_machine import PickleError
from pomp_jax.files.terminal import printable
from pomp_jax.files.torch_pickle import ORDERED_DICT, REBUILD_TENSOR, StoredTensor, read_pickle

# A CLIP with its optimizer's state takes a few hundred kilobytes; each byte may cost a hundred.
_MAX_PICKLE_BYTES = 2 * 2**20
_MAX_TENSOR_BYTES = 4 * 2**30
# Values of a view that may be more than those of its storage (a stride of 0 repeats them).
_MAX_REPEATED = 2**20

_PICKLE_NAME = re.compile(r"([^/]+)/data\.pkl")
_BFLOAT16 = "BFloat16Storage"
_TYPES = {
  "DoubleStorage": "f8",
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  _BFLOAT16: "u2",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}


class TorchArchiveError(ValueError):
  """An archive that can't be read: one line with the file, the part, and what it may be."""


def is_torch_archive(archive: zipfile.ZipFile) -> bool:
  """Whether a zip is one, by the names in it."""
  return any(_PICKLE_NAME.fullmatch(name) for name in archive.namelist())


class TorchArchive(contextlib.AbstractContextManager):
  """An open archive.

  Attributes:
    value: what was saved, see `torch_pickle.read_pickle`; tensors are `StoredTensor`.
  """

  value: Any

  def __init__(self, path: str | os.PathLike):
    """Opens a file and reads the value, without the tensors.

    Raises:
      TorchArchiveError: missing, not a whole archive, or a pickle with anything in it that
        checkpoints don't hold.
    """
    self._path = path
    try:
      self._zip = zipfile.ZipFile(path)
    except FileNotFoundError:
      self._refuse("the file", "missing", "a torch checkpoint")
    except Exception as error:  # a damaged archive fails in more ways than zipfile documents
      self._refuse("the file", f"not a whole zip ({error})", "a checkpoint of torch 1.6 or newer")
    try:
      names = [name for name in self._zip.namelist() if _PICKLE_NAME.fullmatch(name)]
      if len(names) != 1:
        self._refuse(
          "the file", f"a zip with {len(names)} data.pkl", "a torch checkpoint, with one"
        )
      self._root = names[0].removesuffix("/data.pkl")
      self.value = read_pickle(self._read("data.pkl", _MAX_PICKLE_BYTES))
      self._order = self._byte_order()
    except PickleError as error:
      self.__exit__()
      self._refuse(
        "data.pkl", f"refused for {error}", "tensors, plain values, and torch's optimizer state"
      )
    except BaseException:
      self.__exit__()
      raise

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def array(self, tensor: StoredTensor, field: str = "the tensor") -> np.ndarray:
    """A tensor's values.

    Args:
      tensor: from `value`.
      field: its name, for messages.

    Returns:
      An array of its own, in native byte order; bfloat16 comes as float32.

    Raises:
      TorchArchiveError: numbers of an unknown type, a record that is missing, damaged or of
        another length, a view that reaches beyond it, or too large.
    """
    kind = _TYPES.get(tensor.kind)
    if kind is None:
      self._refuse(field, f"of type {tensor.kind}", ", ".join(_TYPES))
    dtype = np.dtype(self._order + kind)
    claimed = dtype.itemsize * max(_product(tensor.shape), tensor.count)
    if claimed > _MAX_TENSOR_BYTES:
      self._refuse(field, f"{claimed} bytes large", f"at most {_MAX_TENSOR_BYTES} bytes")
    if _product(tensor.shape) > max(tensor.count, _MAX_REPEATED):
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
    if tensor.kind == _BFLOAT16:
      return np.asarray(view.astype(np.uint32) << 16).view(np.float32)  # << makes 0-d a scalar
    return view.astype(dtype.newbyteorder("="))

  def _byte_order(self) -> str:
    if f"{self._root}/byteorder" not in self._zip.namelist():
      return "<"  # torch before 2.1
    order = self._read("byteorder", 16)
    if order not in (b"little", b"big"):
      self._refuse("byteorder", repr(order), "little, big")
    return "<" if order == b"little" else ">"

  def _read(self, record: str, max_bytes: int) -> bytes:
    """A record; it is stored as it is, so it can't be larger than the file."""
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
    except Exception as error:  # zipfile, whatever a bad byte can raise
      self._refuse(record, f"damaged ({error})", "an undamaged record")
    if len(data) != info.file_size:
      self._refuse(record, f"cut off at {len(data)} bytes", f"{info.file_size}, as the zip says")
    return data

  def _refuse(self, part: str, found: str, accepted: str) -> NoReturn:
    raise TorchArchiveError(f"{self._path}: {part} is {printable(found)}; accepted: {accepted}")


def write_torch_archive(file: BinaryIO, value: Any) -> None:
  """Writes what `torch.load(weights_only=True)` reads back.

  Args:
    file: open for binary writing.
    value: dicts (they become ordered dicts), strings, integers of 32 bits, and float32 arrays
      (they become tensors on the CPU). Equal values make equal bytes.

  Raises:
    TypeError: something else is in it.
    UnicodeEncodeError: a string that UTF-8 does not hold.
  """
  tensors: list[np.ndarray] = []
  records = {"data.pkl": b"\x80\x02" + _pickled(value, tensors) + b".", "byteorder": b"little"}
  for key, tensor in enumerate(tensors):
    records[f"data/{key}"] = tensor.astype("<f4", copy=False).tobytes()
  records["version"] = b"3\n"
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, data in records.items():
      archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # dated 1980, always


def _view(flat: np.ndarray, tensor: StoredTensor) -> np.ndarray:
  if _product(tensor.shape) == 0:
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


def _product(sizes: tuple[int, ...]) -> int:
  product = 1
  for size in sizes:
    product *= size
    if product > 2**63:
      return product if 0 not in sizes else 0
  return product


def _pickled(value: Any, tensors: list[np.ndarray]) -> bytes:
  """A value's opcodes, in the pickle language of protocol 2; arrays are added to `tensors`."""
  if isinstance(value, dict):
    items = b"".join(
      _pickled(key, tensors) + _pickled(item, tensors) for key, item in value.items()
    )
    return _global(ORDERED_DICT) + b")R(" + items + b"u"  # EMPTY_TUPLE REDUCE MARK .. SETITEMS
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
  """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
  strides = [_product(array.shape[axis + 1 :]) for axis in range(array.ndim)]
  storage = b"(" + b"".join(
    [
      _pickled("storage", []),
      _global("torch.FloatStorage"),
      _pickled(key, []),
      _pickled("cpu", []),
      _long(array.size),
    ]
  )
  arguments = [
    storage + b"tQ",  # TUPLE BINPERSID
    _long(0),
    b"(" + b"".join(map(_long, array.shape)) + b"t",
    b"(" + b"".join(map(_long, strides)) + b"t",
    b"\x89",  # NEWFALSE
    _global(ORDERED_DICT) + b")R",
  ]
  return _global(REBUILD_TENSOR) + b"(" + b"".join(arguments) + b"tR"


def _global(name: str) -> bytes:
  module, _, attribute = name.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def _long(value: int) -> bytes:
  data = value.to_bytes(9, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data  # LONG1
