"""95% intervals of means of accuracies, by a bootstrap over the images.

Shapes: D draws. An axis of 2 holds the prompt and the reference, an axis of 4 the cases
of `_count_cases`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pomp_jax.report.harmonic_mean import harmonic_mean

_DRAWS = 4000
_SEED = 0


def bootstrap(parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """Intervals of a mean accuracy: of each part the mean top-1 over its sets, then the
  harmonic mean over the parts.

  The images are drawn anew with a fixed seed; the sets are fixed. A set's answers are
  drawn from the counts of four cases: right or wrong under the prompt, and right or
  wrong under the reference. Half an image is added to each count, as
  `metrics.paired_difference` does, so that an accuracy of 0 or 1 has an interval too.

  Args:
    parts: figures of one prompt on each set of each part, such as base and new classes:
      `images`, `top1` and perhaps `difference`, see `metrics.Tally.figures`.

  Returns:
    `interval`: both ends, fractions.
    `difference`, if every set has a difference to the reference: `top1`, the prompt's
      mean minus the reference's, and its `interval`.
  """
  generator = np.random.default_rng(_SEED)
  part_values = []
  part_draws = []
  for sets in parts:
    set_values = []
    set_draws = []
    for figures in sets:
      cases = _count_cases(figures)
      set_values.append(_accuracies(cases) / figures["images"])
      drawn_cases_Dx4 = _draw_cases(cases, generator)
      set_draws.append(_accuracies(drawn_cases_Dx4 / figures["images"]))
    part_values.append(sum(set_values) / len(sets))
    part_draws.append(sum(set_draws) / len(sets))
  value_2 = harmonic_mean(np.array(part_values))
  drawn_Dx2 = harmonic_mean(np.array(part_draws))

  statistic: dict[str, Any] = {"interval": _ends(drawn_Dx2[:, 0], value_2[0])}
  if all("difference" in figures for sets in parts for figures in sets):
    top1 = float(value_2[0] - value_2[1])
    drawn_top1_D = drawn_Dx2 @ [1, -1]
    statistic["difference"] = {"top1": top1, "interval": _ends(drawn_top1_D, top1)}
  return statistic


def _count_cases(figures: Mapping[str, Any]) -> np.ndarray:
  """Images of a set that both, the prompt alone, the reference alone, and neither get
  right: int [4].

  Without a difference to a reference, the prompt serves as the reference.
  """
  difference = figures.get("difference", {"gained": 0, "lost": 0})
  gained = difference["gained"]
  lost = difference["lost"]
  right = round(figures["top1"] * figures["images"])
  neither = figures["images"] - right - lost
  return np.array([right - gained, gained, lost, neither])


def _draw_cases(cases_4: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Draws the images of a set anew: their counts in each case, int [D, 4]."""
  images = int(cases_4.sum())
  chances_4 = (cases_4 + 0.5) / (images + 2)
  return generator.multinomial(images, chances_4, _DRAWS)


def _accuracies(cases: np.ndarray) -> np.ndarray:
  """Adds the cases that are right under prompt and reference: [.., 4] -> [.., 2]."""
  both = cases[..., 0]
  prompt_alone = cases[..., 1]
  reference_alone = cases[..., 2]
  return np.stack([both + prompt_alone, both + reference_alone], axis=-1)


def _ends(drawn_D: np.ndarray, value: float) -> list[float]:
  """The 2.5% and 97.5% quantiles of the draws, widened if they exclude the value."""
  low, high = np.quantile(drawn_D, [0.025, 0.975])
  return [float(min(low, value)), float(max(high, value))]
