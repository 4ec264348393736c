"""Plots of an evaluation: a panel a data set, each prompt by its colour and its name."""

from collections.abc import Mapping
import os
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.files.atomic import replacing

# Okabe and Ito's, which colour-blind readers can tell apart; the lightest is left out.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
_MARKERS = "os^vDPX"
_COLUMNS = 4
_DPI = 150


def accuracy_panels(
  path: str | os.PathLike,
  accuracy: Mapping[str, Mapping[str, float]],
  published: Mapping[str, Mapping[str, float]],
  title: str,
) -> None:
  """Horizontal bars of accuracies; what was published follows ours, in grey.

  Args:
    path: the PNG file.
    accuracy: prompt -> column (a data set, or the mean) -> fraction.
    published: method -> column -> percent; columns without a figure are absent.
    title: of the whole.
  """
  columns = list(next(iter(accuracy.values())))
  figure, panels = _panels(len(columns), 3.0, 0.9 + 0.26 * (len(accuracy) + 1), title)
  for place, (axes, column) in enumerate(zip(panels, columns, strict=True)):
    others = {name: figures[column] for name, figures in published.items() if column in figures}
    values = [100 * row[column] for row in accuracy.values()] + list(others.values())
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(accuracy))] + ["0.85"] * len(others)
    bars = axes.barh(range(len(values)), values, 0.8, color=colours)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
    widest = max(1.22 * max(values), 1.0)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, widest))
    # The same prompts stand in every panel, their names once a row; what was published differs.
    names = [_short(name) for name in accuracy] if place % _COLUMNS == 0 else []
    axes.set_yticks(range(len(names)), names)
    for y, name in enumerate(others, len(accuracy)):
      axes.text(0.02 * widest, y, _short(name), va="center", fontsize=6.5)
    axes.tick_params(labelsize=8)
    axes.set_title(_short(column), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
  _save(path, figure)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Reliability diagrams: accuracy against confidence, in bins; below the diagonal is too sure.

  Args:
    path: the PNG file.
    sets: data set -> prompt -> `metrics.Tally.figures`.
  """
  names = list(next(iter(sets.values())))
  figure, panels = _panels(len(sets), 3.0, 3.3, "Calibration (ECE in %)")
  for place, (axes, (name, prompts)) in enumerate(zip(panels, sets.items(), strict=True)):
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      bins = {key: np.asarray(value) for key, value in figures["reliability"].items()}
      filled = bins["images"] > 0
      style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
      axes.plot(
        *(bins["confidence"][filled], bins["accuracy"][filled]),
        **(style | {"markersize": 4, "linewidth": 1.2}),
        label=f"{100 * figures['ece']:.1f}",
      )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(_short(name), fontsize=10)
    axes.set_xlabel("confidence", fontsize=8)
    if place % _COLUMNS == 0:
      axes.set_ylabel("accuracy", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
  shown = [_short(name) for name in names]
  place = {"loc": "outside lower center", "ncols": min(len(shown), 3), "fontsize": 8}
  figure.legend(panels[0].get_lines()[1:], shown, frameon=False, **place)
  _save(path, figure)


def _panels(n: int, width: float, height: float, title: str) -> tuple[Figure, list]:
  """Axes in rows of at most _COLUMNS; sizes in inches."""
  columns = min(n, _COLUMNS)
  rows = -(-n // columns)
  figure = Figure(figsize=(1.6 + width * columns, 0.6 + height * rows), layout="constrained")
  figure.suptitle(title, fontsize=11)
  axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
  for unused in axes[n:]:
    unused.remove()
  return figure, axes[:n]


def _short(name: str, length: int = 34) -> str:
  # Of a path the end tells more. A "$" would start a formula.
  name = name if len(name) <= length else f"\u2026{name[len(name) - length + 1 :]}"
  return name.replace("$", r"\$")


def _save(path: str | os.PathLike, figure: Figure) -> None:
  FigureCanvasAgg(figure)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=_DPI)
