"""Array annotations; on a bare machine, where jaxtyping is missing, they say
nothing."""

try:
  from jaxtyping import Array, Bool, Float, Int, Int32
except ImportError:
  from typing import Any

  class _Anything:
    def __class_getitem__(cls, item: Any) -> Any:
      return Any

  # Names that the import above binds to types for mypy.
  Array = Any  # type: ignore[misc, assignment]
  Bool = Float = Int = Int32 = _Anything  # type: ignore[assignment]

__all__ = ["Array", "Bool", "Float", "Int", "Int32"]
