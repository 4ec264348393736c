"""Reads NumPy archives of unknown origin. A header is checked before it takes memory."""

from collections.abc import Callable, Sequence
import contextlib
import math
import os
from typing import NoReturn
import zipfile

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.paths import file_size, local_copy

# Raises the reader's error for a file, a field, what was found, and what is accepted.
Refuse = Callable[[str | os.PathLike, str, str, str], NoReturn]


class NpzArchive(contextlib.AbstractContextManager):
  """Open archive of arrays; nothing is unpickled.

  Attributes:
    names: names of its arrays.
  """

  def __init__(self, path: str | os.PathLike, refuse: Refuse):
    """Opens a file.

    Raises:
      InputError: missing or damaged, by `refuse`.
    """
    self._path, self._refuse = path, refuse
    try:
      self._zip = zipfile.ZipFile(local_copy(path))
    except FileNotFoundError:
      refuse(path, "the file", "missing", "an npz")
    except Exception as error:  # a damaged archive fails in more ways than zipfile documents
      refuse(path, "the file", f"not a whole npz ({error})", "an undamaged npz")
    self.names = tuple(sorted(name.removesuffix(".npy") for name in self._zip.namelist()))

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def read(
    self,
    field: str,
    max_bytes: int,
    check_shape: Callable[[str | os.PathLike, str, Sequence[int]], None] | None = None,
    max_growth: int | None = None,
    header_only: bool = False,
  ) -> np.ndarray:
    """Reads one array.

    Args:
      field: name of the array.
      max_bytes: largest accepted size.
      check_shape: called with the file, the field and the shape that the header claims; raises.
      max_growth: largest accepted growth when decompressed, above 1 MiB; None: any.
      header_only: whether to return zeros in one element of memory, of the claimed shape and type.

    Raises:
      InputError: missing, damaged, pickled objects, or too large.
    """
    path, refuse = self._path, self._refuse
    try:
      info = self._zip.getinfo(f"{field}.npy")
    except KeyError:
      found = f"missing (the file has: {', '.join(self.names) or 'nothing'})"
      refuse(path, field, found, "an array of that name")
    if max_growth is not None:
      stored = min(info.compress_size, file_size(path))
      if info.file_size > (most := max(2**20, max_growth * stored)):
        refuse(path, field, f"{stored} bytes that stand for {info.file_size}", f"at most {most}")
    try:
      with self._zip.open(info) as member:
        shape, fortran_order, dtype = _npy_header(member)
        if dtype.hasobject:
          refuse(path, field, "pickled Python objects", "plain arrays (pickles can run any code)")
        if check_shape is not None:
          check_shape(path, field, shape)
        claimed = math.prod(map(int, shape)) * dtype.itemsize
        if not 0 <= claimed <= max_bytes:
          refuse(path, field, f"{claimed} bytes large", f"at most {max_bytes} bytes")
        if header_only and info.file_size - member.tell() == claimed:
          return np.broadcast_to(np.zeros((), dtype), shape)
        values = bytearray(member.read(claimed + 1))
      if claimed != len(values):
        refuse(path, field, f"not the {claimed} bytes of its header", "an undamaged array")
      return np.ndarray(shape, dtype, values, order="F" if fortran_order else "C")
    except InputError:
      raise
    except Exception as error:  # zlib, zipfile and the header's parser, on a bad byte
      refuse(path, field, f"damaged ({error})", "an undamaged array")


def _npy_header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
  version = np.lib.format.read_magic(member)
  if version == (1, 0):
    return np.lib.format.read_array_header_1_0(member)
  if version == (2, 0):
    return np.lib.format.read_array_header_2_0(member)
  # 3.0 differs in the encoding of field names alone, and plain arrays have none.
  raise ValueError(f"npy version {version} is not one of 1.0, 2.0")
