"""Plots of training runs, evaluations and comparisons of methods."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import prompt_labels, with_counts

_COLUMN = 22  # letters of a data set's or split's name
Series = tuple[Sequence[int], Sequence[float]]  # steps and values of a scalar


def training_curves(
  path: str | os.PathLike,
  series: Mapping[str, Series],
  title: str = "",
  *,
  loss_unit: str = "cross-entropy (nats)",
  classes: str = "sampled classes",
) -> None:
  """Plots loss and accuracy against the step: raw values faint under a moving average.

  `series` may hold `loss`, `accuracy` (over `classes`) and `validation_top1` (over all), fractions.
  """
  figure, (loss, accuracy) = drawing.panels(2, 4.2, 3.4, title)
  none: Series = (), ()
  _smoothed_curve(loss, *series.get("loss", none), "loss")
  _smoothed_curve(accuracy, *series.get("accuracy", none), f"training, {classes}")
  steps, values = series.get("validation_top1", none)
  if len(steps):
    options: dict[str, Any] = {"color": drawing.RED, "markersize": 5}
    accuracy.plot(steps, values, "o--", label="validation, all classes", **options)
  accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
  if accuracy.has_data():
    accuracy.legend(frameon=False, fontsize=drawing.TEXT)
  drawing.label_panel(loss, "Loss", "step", loss_unit, grid="both")
  drawing.label_panel(accuracy, "Accuracy", "step", "top-1", grid="both")
  for axes in (loss, accuracy):
    axes.locator_params("x", integer=True)
  drawing.save(path, figure)


def _smoothed_curve(
  axes: Axes, steps: Sequence[int], values: Sequence[float] | np.ndarray, label: str
) -> None:
  if not len(steps):
    return
  window = max(len(values) // 25, 1)
  if window > 1:
    axes.plot(steps, values, color=drawing.BLUE, linewidth=0.8, alpha=0.3)
    # The mean of `window` values on either side, of fewer at the ends.
    kernel, ones = np.ones(2 * window + 1), np.ones(len(values))
    values = np.convolve(values, kernel, "same") / np.convolve(ones, kernel, "same")
  axes.plot(steps, values, color=drawing.BLUE, linewidth=1.8, label=label)


def accuracy_panels(
  path: str | os.PathLike,
  accuracy: Mapping[str, Mapping[str, float]],  # prompt -> column (set, split, mean) -> fraction
  labels: Sequence[str],  # of the prompts
  title: str,
  images: Mapping[str, int],  # column -> number of images; absent for a mean, as the next two
  classes: Mapping[str, int],  # column -> number of classes
  intervals: Mapping[str, Mapping[str, Sequence[float]]],  # prompt -> column -> ends, fractions
  published: Mapping[str, Mapping[str, float]],  # method -> column -> percent, where it has one
) -> None:
  """Plots accuracies as horizontal bars with 95% intervals, and published ones below in grey."""
  columns = list(dict.fromkeys(column for row in accuracy.values() for column in row))
  own = drawing.names(labels)
  figure, axes_of = drawing.panels(len(columns), 3.0, 0.9 + 0.26 * (len(accuracy) + 1), title)
  for place, (axes, column) in enumerate(zip(axes_of, columns, strict=True)):
    others = {name: figures[column] for name, figures in published.items() if column in figures}
    ours = np.array([100 * row.get(column, np.nan) for row in accuracy.values()])
    values = np.append(ours, list(others.values()))
    ends = [
      intervals.get(prompt, {}).get(column, (row.get(column, np.nan),) * 2)
      for prompt, row in accuracy.items()
    ]
    errors_2xV = np.zeros((2, len(values)))
    errors_2xV[:, : len(ours)] = np.abs(100 * np.array(ends).T - ours)
    colours = [drawing.style(i)["color"] for i in range(len(ours))] + ["0.85"] * len(others)
    bars = axes.barh(
      *(range(len(values)), values, 0.8), color=colours,
      xerr=errors_2xV if errors_2xV.any() else None,
      error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"},
    )  # fmt: skip
    shown = ["" if np.isnan(value) else f"{value:.1f}" for value in values]
    axes.bar_label(bars, shown, padding=2, fontsize=drawing.TEXT)
    widest = max(1.22 * np.nanmax(values + errors_2xV[1]), 1.0)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, widest))
    # Prompts are the same in every panel and named once a row; published methods differ.
    names = own if place % drawing.COLUMNS == 0 else []
    axes.set_yticks(range(len(names)), names)
    for y, name in enumerate(drawing.names(list(others)), len(accuracy)):
      axes.text(0.02 * widest, y, name, va="center", fontsize=6.5)
    name = drawing.name(column, _COLUMN)
    drawing.label_panel(axes, with_counts(name, images.get(column), classes.get(column)))
  drawing.save(path, figure)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots accuracy against confidence; below the diagonal a prompt is overconfident."""
  names = list(next(iter(sets.values())))
  figure, axes_of = drawing.panels(len(sets), 3.0, 3.3, "Calibration (in each corner: ECE, %)")
  for place, (axes, (name, prompts)) in enumerate(zip(axes_of, sets.items(), strict=True)):
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      bins = {key: np.asarray(value) for key, value in figures["reliability"].items()}
      filled = bins["images"] > 0
      x, y = bins["confidence"][filled], bins["accuracy"][filled]
      options = {"markersize": 4, "linewidth": 1.2, **drawing.style(i)}
      axes.plot(x, y, label=f"{100 * figures['ece']:.1f}", **options)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    one = next(iter(prompts.values()))
    heading = with_counts(drawing.name(name, _COLUMN), one.get("images"), one.get("classes"))
    drawing.label_panel(axes, heading, "confidence", "" if place % drawing.COLUMNS else "accuracy")
    axes.legend(loc="upper left", frameon=False, fontsize=drawing.TEXT)
  drawing.legend_below(figure, axes_of[0].get_lines()[1:], prompt_labels(names))
  drawing.save(path, figure)
