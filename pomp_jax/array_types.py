"""Array annotations. Without jaxtyping, on a bare machine, they are placeholders that
accept anything."""

try:
  from jaxtyping import Array, Bool, Float, Int, Int32
except ImportError:
  from typing import Any

  class _Anything:
    def __class_getitem__(cls, item: Any) -> Any:
      return Any

  # mypy complains of these names, because the import above binds them to types.
  Array = Any  # type: ignore[misc, assignment]
  Bool = Float = Int = Int32 = _Anything  # type: ignore[assignment]

__all__ = ["Array", "Bool", "Float", "Int", "Int32"]
