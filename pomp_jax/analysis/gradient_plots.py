"""The plot of a gradient's bias, deviation and direction against K."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.files.atomic import replacing

# Okabe and Ito's, which colour-blind readers can tell apart; a marker goes with each.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = "os^DvPX"
_LINES = ("-", "--", ":", "-.", (0, (1, 3)))
_DPI = 150
# Below this no panel looks: single precision's rounding is near.
_FLOOR = 1e-3


def gradient_bias_panels(path: str | os.PathLike, cells: Sequence[Mapping[str, Any]]) -> None:
  """Bias, deviation and direction against K: corrections under the plain draw, then samplers.

  Args:
    path: the PNG file.
    cells: one a sampler, correction and K: those three, and what `gradient_bias.summarise` gives.
  """
  samplers = list(dict.fromkeys(cell["sampler"] for cell in cells))
  corrections = list(dict.fromkeys(cell["correction"] for cell in cells))
  first_row = [(samplers[0], correction) for correction in corrections]
  second_row = [(sampler, corrections[0]) for sampler in samplers]
  rows = [(f"{samplers[0]} draw, by correction", first_row, 1)]
  if len(second_row) > 1:
    rows.append((f"correction {corrections[0]}, by sampler", second_row, 0))
  figure = Figure(figsize=(13, 0.6 + 3.7 * len(rows)), layout="constrained")
  panels = figure.subplots(len(rows), 3, squeeze=False)
  for (title, series, named), (bias, deviation, cosine) in zip(rows, panels, strict=True):
    for i, key in enumerate(series):
      mine = [cell for cell in cells if (cell["sampler"], cell["correction"]) == key]
      # Side by side, so that bars at the same K don't hide one another.
      k = np.array([cell["k"] for cell in mine]) * 1.05 ** (i - (len(series) - 1) / 2)
      style = {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i % len(_LINES)],
        "markersize": 5,
        "linewidth": 1.4,
        "label": key[named],
      }
      values, low, high = (
        np.maximum([cell[field] for cell in mine], _FLOOR)
        for field in ("relative_bias", "bias_low", "bias_high")
      )
      bars = np.maximum([values - low, high - values], 0)
      bias.errorbar(k, values, bars, capsize=2, elinewidth=0.9, **style)
      deviation.plot(k, [cell["relative_deviation"] for cell in mine], **style)
      errors = [2 * cell["draw_cosine_error"] for cell in mine]
      cosine.errorbar(
        k, [cell["draw_cosine"] for cell in mine], errors, capsize=2, elinewidth=0.9, **style
      )
    bias.set(title=f"Bias: {title}", ylabel=r"$\|E\,g_K - g\| \;/\; \|g\|$", yscale="log")
    shown = [cell["bias_low"] for cell in cells if cell["bias_low"] > _FLOOR]
    bias.set_ylim(bottom=0.8 * min(shown, default=_FLOOR))
    deviation.set(
      title="Deviation of one draw", ylabel=r"$(E\,\|g_K - E\,g_K\|^2)^{1/2} \;/\; \|g\|$"
    )
    deviation.set_yscale("log")
    cosine.set(title="Direction of one draw", ylabel=r"mean cosine of $g_K$ and $g$")
    bias.legend(frameon=False, fontsize=8)
    ticks = sorted({cell["k"] for cell in cells})
    for axes in (bias, deviation, cosine):
      axes.set_xscale("log", base=2)
      axes.set_xticks(ticks, [str(tick) for tick in ticks])
      axes.set_xlabel("K, classes of a step")
      axes.spines[["top", "right"]].set_visible(False)
      axes.grid(color="0.92")
  figure.suptitle(
    "The sampled gradient against the exact contrast; bars: two standard errors over the draws",
    fontsize=11,
  )
  FigureCanvasAgg(figure)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=_DPI)
