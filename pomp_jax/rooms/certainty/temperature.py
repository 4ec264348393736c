"""Fits a temperature to validation images, and measures the calibration error.

Guo et al., "On Calibration of Modern Neural Networks" (2017). T is the temperature, and
b = scale / T the factor on the cosines. The mean log-likelihood of the right classes is
concave in b, so Newton's method within a bracket finds the only maximum.

Shapes: B images, N classes, E embedding.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from pomp_jax.errors import RunError
from pomp_jax.evaluate.metrics import Reliability, wilson_interval
from pomp_jax.rooms.certainty.outputs import Moments, moments

# Lowest and highest temperature that is searched.
_LEAST, _MOST = 1e-3, 1e3
_PRECISION = 1e-6  # relative precision of the temperature
_MOST_STEPS = 100


class TemperatureError(RunError, ValueError):
  """The validation images fix no temperature; the message is one line."""


def fit_temperature(
  features_BxE: Float[np.ndarray, "B E"],
  rows_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  logit_scale: float,
) -> float:
  """Finds T that maximises the likelihood of softmax(logit_scale / T * cosine).

  Args:
    features_BxE: unit features of the images.
    rows_NxE: unit features of the classes; N >= 2.
    labels_B: right class of each image.
    logit_scale: the CLIP's factor on cosines.

  Raises:
    TemperatureError: the likelihood has no maximum between 0.001 and 1000, for example
      because all answers are right by far, or none is better than chance.
  """
  factor = maximum(
    lambda scale: moments(features_BxE, rows_NxE, labels_B, scale),
    start=logit_scale,
    low=logit_scale / _MOST,
    high=logit_scale / _LEAST,
  )
  if factor is None:
    raise TemperatureError(
      f"{len(labels_B):,} validation images fix no temperature between {_LEAST} and"
      f" {_MOST:.0f}: all answers are right by far, or none better than by chance"
    )
  return logit_scale / factor


def maximum(
  at: Callable[[float], Moments], *, start: float, low: float, high: float
) -> float | None:
  """Finds the maximum of a concave function; None if it is not between the ends.

  Args:
    at: function that returns value and derivatives at a point.
    start: first point.
    low: lower end, above 0.
    high: upper end.
  """
  if at(low).first <= 0 or at(high).first >= 0:
    return None
  point = start
  for _ in range(_MOST_STEPS):
    here = at(point)
    if here.first > 0:
      low = point
    else:
      high = point
    step = point - here.first / here.second if here.second < 0 else np.nan
    # Take Newton's step if it is in the bracket, or else the bracket's geometric mean.
    following = step if low < step < high else float(np.sqrt(low * high))
    if abs(following - point) <= _PRECISION * point:
      return following
    point = following
  return point


def calibration_figures(
  confidence_B: Float[np.ndarray, " B"], right_B: Bool[np.ndarray, " B"]
) -> dict[str, Any]:
  """Returns accuracy and calibration of some answers, in `Tally.figures`'s form.

  Args:
    confidence_B: probability of each answer.
    right_B: whether each answer is right.
  """
  reliability = Reliability()
  reliability.add(confidence_B, right_B)
  n_images = len(right_B)
  top1 = float(np.mean(right_B))
  return {
    "images": n_images,
    "top1": top1,
    "top1_interval": wilson_interval(top1, n_images),
    **reliability.figures(),
  }
