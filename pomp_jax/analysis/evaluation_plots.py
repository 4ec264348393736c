"""Plots of an evaluation: a panel a data set, each prompt by its colour and its name."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from pomp_jax.analysis.drawing import (
  COLOURS,
  COLUMNS,
  legend_below,
  panels,
  plain,
  save,
  short,
  style,
)


def accuracy_panels(
  path: str | os.PathLike,
  accuracy: Mapping[str, Mapping[str, float]],
  published: Mapping[str, Mapping[str, float]],
  title: str,
  images: Mapping[str, int],
  intervals: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
  """Horizontal bars of accuracies with 95% intervals; what was published follows ours, in grey.

  Args:
    path: the PNG file.
    accuracy: prompt -> column (a data set, or the mean) -> fraction.
    published: method -> column -> percent; columns without a figure are absent.
    title: of the whole.
    images: column -> how many its figures are of; a mean has none.
    intervals: prompt -> column -> the ends of its interval, fractions; absent where there is none.
  """
  columns = list(next(iter(accuracy.values())))
  figure, axes_of = panels(len(columns), 3.0, 0.9 + 0.26 * (len(accuracy) + 1), title)
  for place, (axes, column) in enumerate(zip(axes_of, columns, strict=True)):
    others = {name: figures[column] for name, figures in published.items() if column in figures}
    values = [100 * row[column] for row in accuracy.values()] + list(others.values())
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(accuracy))] + ["0.85"] * len(others)
    # Below and above each figure; a mean, and what was published, has no interval.
    reach_2xV = np.zeros((2, len(values)))
    for place_of, (label, row) in enumerate(accuracy.items()):
      if interval := intervals.get(label, {}).get(column):
        low, high = interval
        reach_2xV[:, place_of] = 100 * (row[column] - low), 100 * (high - row[column])
    bars = axes.barh(
      range(len(values)),
      values,
      0.8,
      color=colours,
      xerr=np.maximum(reach_2xV, 0) if reach_2xV.any() else None,
      error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"},
    )
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=8)
    widest = max(1.22 * (np.array(values) + reach_2xV[1]).max(), 1.0)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, widest))
    # The same prompts stand in every panel, their names once a row; what was published differs.
    names = [short(name) for name in accuracy] if place % COLUMNS == 0 else []
    axes.set_yticks(range(len(names)), names)
    for y, name in enumerate(others, len(accuracy)):
      axes.text(0.02 * widest, y, short(name), va="center", fontsize=6.5)
    plain(axes, f"{short(column, 22)}, n = {images[column]:,}" if column in images else column)
  save(path, figure)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Reliability diagrams: accuracy against confidence, in bins; below the diagonal is too sure.

  Args:
    path: the PNG file.
    sets: data set -> prompt -> `metrics.Tally.figures`.
  """
  names = list(next(iter(sets.values())))
  figure, axes_of = panels(len(sets), 3.0, 3.3, "Calibration (ECE in %)")
  for place, (axes, (name, prompts)) in enumerate(zip(axes_of, sets.items(), strict=True)):
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      bins = {key: np.asarray(value) for key, value in figures["reliability"].items()}
      filled = bins["images"] > 0
      axes.plot(
        *(bins["confidence"][filled], bins["accuracy"][filled]),
        **(style(i) | {"markersize": 4, "linewidth": 1.2}),
        label=f"{100 * figures['ece']:.1f}",
      )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("confidence", fontsize=8)
    if place % COLUMNS == 0:
      axes.set_ylabel("accuracy", fontsize=8)
    plain(axes, name)
    axes.legend(frameon=False, fontsize=7, loc="upper left")
  legend_below(figure, axes_of[0].get_lines()[1:], names)
  save(path, figure)
