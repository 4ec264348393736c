"""Reads pickles of trusted classes only; nothing that a pickle names is imported or called."""

from collections.abc import Callable
import io
import pickle
from typing import Any


class PickleError(ValueError):
  """Pickle that can't be read."""


class _Unpickler(pickle._Unpickler):
  """Python's own unpickler: its memo is a dict, where the C one allocates any claimed length."""

  # BYTEARRAY8 allocates its claimed length before reading.
  dispatch = {
    code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
  }


def load_restricted(
  data: bytes,
  find_class: Callable[[str, str], Any],
  persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
  """Loads a pickle; memory is bounded by a multiple of its length, which callers limit.

  Args:
    data: pickle of any protocol.
    find_class: allow-list: maps (module, name) to a class or function that is safe to call with any
      arguments, and raises PickleError for all others.
    persistent_load: reader of external objects by persistent id.

  Raises:
    PickleError: a name or persistent id that is not allowed, or a damaged pickle.
  """
  unpickler = _Unpickler(io.BytesIO(data))
  unpickler.find_class = find_class
  if persistent_load is not None:
    unpickler.persistent_load = persistent_load
  try:
    return unpickler.load()
  except (MemoryError, PickleError):
    raise
  # Damaged pickles raise errors of many classes.
  except Exception as error:
    raise PickleError(f"damaged pickle ({type(error).__name__})") from error
