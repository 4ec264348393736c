"""The harmonic mean of accuracies on base and on other classes."""

from jaxtyping import Float
import numpy as np


def harmonic_mean(parts: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
  """Returns the harmonic mean over the first axis; 0 where a part is 0.

  H = n / (1 / p_1 + .. + 1 / p_n), by which base and new classes are summed up since
  CoCoOp (Zhou et al., 2022).
  """
  with np.errstate(divide="ignore"):
    return np.asarray(len(parts) / np.sum(1 / parts, axis=0))
