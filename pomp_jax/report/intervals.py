"""95% intervals of means and harmonic means of accuracies, by a bootstrap over the
images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_DRAWS, _SEED = 4000, 0


def bootstrap(parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """Interval of the harmonic mean over parts of the mean top-1 over sets, by drawing
  images anew.

  A set's answers are drawn from the counts of the four cases, right and wrong under the
  prompt and under the reference. Half an image is added to each, as
  `metrics.paired_difference` does, so that an accuracy of 0 or 1 has an interval too.
  The sets are fixed, and the seed.

  Args:
    parts: of each part, such as base and new classes, the figures of one prompt on each
    set:
      `images`, `top1` and perhaps `difference`, see `metrics.Tally.figures`.

  Returns:
    `interval`, two fractions; where every set has a difference to the reference also
    `difference`, with the same statistic's `top1` less the reference's, and its
    `interval`.
  """
  generator = np.random.default_rng(_SEED)
  values_2, draws_Dx2 = [], []  # of each part, under the prompt and under the reference
  for sets in parts:
    values, draws = np.zeros(2), np.zeros((_DRAWS, 2))
    for figures in sets:
      difference = figures.get("difference", {"gained": 0, "lost": 0})
      images, gained, lost = figures["images"], difference["gained"], difference["lost"]
      right = round(figures["top1"] * images)
      counts = np.array([right - gained, gained, lost, images - right - lost])
      drawn_Dx4 = (
        generator.multinomial(images, (counts + 0.5) / (images + 2), _DRAWS) / images
      )
      values += np.array([right, right - gained + lost]) / images
      draws += np.stack(
        [drawn_Dx4[:, 0] + drawn_Dx4[:, 1], drawn_Dx4[:, 0] + drawn_Dx4[:, 2]], 1
      )
    values_2.append(values / len(sets))
    draws_Dx2.append(draws / len(sets))
  value_2, drawn_Dx2 = _harmonic(np.array(values_2)), _harmonic(np.array(draws_Dx2))
  found: dict[str, Any] = {"interval": _ends(drawn_Dx2[:, 0], value_2[0])}
  if all("difference" in figures for sets in parts for figures in sets):
    top1 = float(value_2[0] - value_2[1])
    found["difference"] = {"top1": top1, "interval": _ends(drawn_Dx2 @ [1, -1], top1)}
  return found


def _harmonic(parts: np.ndarray) -> np.ndarray:
  """Harmonic mean over the first axis; 0 where a part is 0."""
  with np.errstate(divide="ignore"):
    return len(parts) / np.sum(1 / parts, axis=0)


def _ends(drawn_D: np.ndarray, value: float) -> list[float]:
  """Quantiles of the draws, which hold the value."""
  low, high = np.quantile(drawn_D, [0.025, 0.975])
  return [float(min(low, value)), float(max(high, value))]
