"""Reads pickles without importing or calling anything that they name."""

import io
import pickle
import re
from typing import Any, ClassVar


class PickleError(ValueError):
  """A pickle is rejected; the message says what the pickle contains."""


class PickledObject:
  """Stands for an object of a class that is not imported, or for the result of a call."""

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

  Python's `pickle._Unpickler` gets a callable from `find_class` alone, which returns a
  substitute here. (The unpickler in C would allocate as much memory as an index of the
  pickle's memo claims.)
  """

  # Accepted names of classes and functions.
  names: ClassVar[re.Pattern[str]]

  @classmethod
  def read(cls, data: bytes) -> Any:
    """Reads a pickle; PickleError if it is damaged or has an unaccepted name."""
    try:
      return cls(io.BytesIO(data)).load()
    except PickleError:
      raise
    except Exception as error:  # damaged bytes can raise anything
      raise PickleError(f"damaged bytes ({type(error).__name__}: {error})") from error

  def find_class(self, module: str, attribute: str) -> type:
    """Returns a substitute for a class or function; its call is a call of `construct`."""
    name = f"{module}.{attribute}"
    if not self.names.fullmatch(name):
      raise PickleError(f"the name {name}")
    members = {"__new__": lambda _, *arguments: self.construct(name, arguments)}
    return type(name, (), members)

  def construct(self, name: str, arguments: tuple) -> Any:
    """Returns the substitute for a call of `name`."""
    return PickledObject(name)
