"""Reads NumPy archives that users bring, with one-line errors that name file and array."""

from collections.abc import Callable, Sequence
import contextlib
import io
import os
from typing import NoReturn
import zipfile

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.paths import local_copy

# Raises the reader's error for a file, a field, what was found, and what is accepted.
Refuse = Callable[[str | os.PathLike, str, str, str], NoReturn]


class NpzArchive(contextlib.AbstractContextManager):
  """Open archive of arrays; `refuse` raises for what is missing or damaged. Unpickles nothing."""

  def __init__(self, path: str | os.PathLike, refuse: Refuse):
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
    check_shape: Callable[[Sequence[int]], None] = lambda shape: None,
    header_only: bool = False,
  ) -> np.ndarray:
    """Reads one array, or with `header_only` zeros of its shape and type in one element of memory.

    `check_shape` gets the shape that the header claims, before any memory is taken.
    """
    path, refuse = self._path, self._refuse
    if field not in self.names:
      found = f"missing (the file has: {', '.join(self.names) or 'nothing'})"
      refuse(path, field, found, "an array of that name")
    try:
      with self._zip.open(f"{field}.npy") as member:
        read_header = {
          (1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(member)]
        shape, _, dtype = read_header(member)
        check_shape(shape)
        if header_only and not dtype.hasobject:
          return np.broadcast_to(np.zeros((), dtype), shape)
      # The whole member, whose CRC-32 is then compared: NumPy stops where its header says.
      content = io.BytesIO(self._zip.read(f"{field}.npy"))
      return np.lib.format.read_array(content, allow_pickle=False)
    except InputError:
      raise
    except Exception as error:  # zlib, zipfile and the header's parser, on a bad byte
      refuse(path, field, f"damaged, or not plain numbers ({error})", "an undamaged array")
