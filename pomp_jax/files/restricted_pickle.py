"""Reads pickles without importing or calling anything that they name."""

import io
import pickle
import re
from typing import Any, ClassVar


class PickleError(ValueError):
  """A pickle that is not read; the message says what it contains."""


class PickledObject:
  """Object of a class that is not imported, or result of a function that is not
  called."""

  def __init__(self, name: str):
    self.name = name
    self.attributes: dict[Any, Any] = {}

  def __setstate__(self, state: Any) -> None:
    if isinstance(state, dict):
      self.attributes.update(state)

  def __setitem__(self, key: Any, value: Any) -> None:
    """Drops the items of a container, such as a Counter."""


class RestrictedUnpickler(pickle._Unpickler):
  """Unpickler that imports nothing and calls nothing; objects become `PickledObject`.

  Python's own unpickler reaches a callable by `find_class` alone, which returns a
  substitute here. (The one in C allocates what a memo index claims.)
  """

  # Accepted names of classes and functions.
  names: ClassVar[re.Pattern[str]]

  @classmethod
  def read(cls, data: bytes) -> Any:
    """Reads a pickle; PickleError if it is damaged, or has a name that is not
    accepted."""
    try:
      return cls(io.BytesIO(data)).load()
    except PickleError:
      raise
    except Exception as error:  # damaged bytes can raise anything
      raise PickleError(f"damaged bytes ({type(error).__name__}: {error})") from error

  def find_class(self, module: str, attribute: str) -> type:
    """Returns a class in place of the named one or the named function; a call is
    `construct`."""
    name = f"{module}.{attribute}"
    if not self.names.fullmatch(name):
      raise PickleError(f"the name {name}")
    return type(
      name, (), {"__new__": lambda _, *arguments: self.construct(name, arguments)}
    )

  def construct(self, name: str, arguments: tuple) -> Any:
    """Returns the substitute for a call of `name`."""
    return PickledObject(name)
