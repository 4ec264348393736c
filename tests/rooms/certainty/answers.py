"""Features of synthetic images and classes for the tests of this room."""

import numpy as np


def unit_rows(rows: np.ndarray) -> np.ndarray:
  """Rows of norm 1, float32."""
  return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
