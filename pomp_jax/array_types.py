"""Array annotations; on a bare machine, where jaxtyping is missing, they say nothing."""

try:
  from jaxtyping import Array, Bool, Float, Int, Int32
except ImportError:
  from typing import Any

  class _Anything:
    def __class_getitem__(cls, item: Any) -> Any:
      return Any

  Array = Any
  Bool = Float = Int = Int32 = _Anything

__all__ = ["Array", "Bool", "Float", "Int", "Int32"]
