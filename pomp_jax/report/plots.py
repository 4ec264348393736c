"""Plots of training runs, evaluations and comparisons of methods."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import prompt_labels, with_counts

_COLUMN = 22  # letters of a data set's or split's name
_FEWEST = 20  # images of a point in a plot of calibration
Series = tuple[Sequence[int], Sequence[float]]  # steps and values of a scalar


def training_curves(
  path: str | os.PathLike,
  series: Mapping[str, Series],
  title: str = "",
  *,
  loss_unit: str = "cross-entropy (nats)",
  classes: str = "sampled classes",
) -> None:
  """Plots loss and accuracy against the step: logged values thin under their moving
  average.

  `series` may hold `loss`, `accuracy` (over `classes`) and `validation_top1` (over
  all), fractions. Both accuracies have a panel of their own: they are over different
  numbers of classes.
  """
  panels = [
    ("loss", "Loss", loss_unit, 1.0),
    ("accuracy", f"Training: {classes}", "top-1 (%)", 100.0),
    ("validation_top1", "Validation: all classes", "top-1 (%)", 100.0),
  ]
  if not series.get("validation_top1", ((), ()))[0]:
    panels.pop()
  figure, axes_of = drawing.panels(len(panels), 3.4, 3.4, title)
  for axes, (name, heading, unit, factor) in zip(axes_of, panels, strict=True):
    steps, values = series.get(name, ((), ()))
    scaled = factor * np.array(values, float)
    if name == "validation_top1":
      axes.plot(steps, scaled, "o-", color=drawing.RED, markersize=5)
    elif len(steps):
      _smoothed_curve(axes, steps, scaled)
    if factor == 100.0:
      drawing.end_at(axes, "y", 0.0, 100.0)
    axes.locator_params("x", integer=True)
    drawing.label_panel(axes, heading, "step", unit, grid="both")
  drawing.save(path, figure)


def _smoothed_curve(axes: Axes, steps: Sequence[int], values: np.ndarray) -> None:
  """Draws values; from 50 on thin, under their moving average, with a legend of the
  two."""
  n = len(values)
  window = n // 25
  if window < 2:
    axes.plot(steps, values, color=drawing.BLUE, linewidth=1.8)
    return
  axes.plot(
    steps, values, color=drawing.BLUE, linewidth=0.8, alpha=0.45, label="as logged"
  )
  # As many values behind as before, so that the average starts where the values do,
  # also where they fall; at the end those that there are.
  place = np.arange(n)
  before = np.minimum(place, window)
  behind = np.minimum(before, n - 1 - place)
  sums = np.append(0.0, np.cumsum(values))
  means = (sums[place + behind + 1] - sums[place - before]) / (before + behind + 1)
  label = f"mean of {2 * window + 1} values"
  axes.plot(steps, means, color=drawing.BLUE, linewidth=1.8, label=label)
  axes.legend(frameon=False, fontsize=drawing.TEXT)


def accuracy_panels(
  path: str | os.PathLike,
  # prompt -> column (set, split, mean) -> fraction
  accuracy: Mapping[str, Mapping[str, float]],
  labels: Sequence[str],  # of the prompts
  title: str,
  # column -> number of images; absent for a mean, as the next two
  images: Mapping[str, int],
  classes: Mapping[str, int],  # column -> number of classes
  # prompt -> column -> ends, fractions
  intervals: Mapping[str, Mapping[str, Sequence[float]]],
  # method -> column -> percent, where it has one
  published: Mapping[str, Mapping[str, float]],
) -> None:
  """Plots accuracies as horizontal bars with 95% intervals, and published ones below
  in grey."""
  columns = list(dict.fromkeys(column for row in accuracy.values() for column in row))
  own = drawing.names(labels)
  figure, axes_of = drawing.panels(
    len(columns), 3.0, 0.9 + 0.26 * (len(accuracy) + 1), title
  )
  for place, (axes, column) in enumerate(zip(axes_of, columns, strict=True)):
    others = {
      name: figures[column] for name, figures in published.items() if column in figures
    }
    ours = np.array([100 * row.get(column, np.nan) for row in accuracy.values()])
    values = np.append(ours, list(others.values()))
    ends = [
      intervals.get(prompt, {}).get(column, (row.get(column, np.nan),) * 2)
      for prompt, row in accuracy.items()
    ]
    errors_2xV = np.zeros((2, len(values)))
    errors_2xV[:, : len(ours)] = np.abs(100 * np.array(ends).T - ours)
    colours = [drawing.style(i)["color"] for i in range(len(ours))] + ["0.85"] * len(
      others
    )
    bars = axes.barh(
      *(range(len(values)), values, 0.8), color=colours,
      xerr=errors_2xV if errors_2xV.any() else None,
      error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"},
    )  # fmt: skip
    shown = ["" if np.isnan(value) else f"{value:.1f}" for value in values]
    axes.bar_label(bars, shown, padding=2, fontsize=drawing.TEXT)
    # Figures beside the longest bars may stand beyond 100%, where the axis ends.
    widest = min(max(1.22 * np.nanmax(values + errors_2xV[1]), 1.0), 100.0)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, widest))
    # Prompts are the same in every panel and named once a row; published methods
    # differ.
    names = own if place % drawing.COLUMNS == 0 else []
    axes.set_yticks(range(len(names)), names)
    for y, name in enumerate(drawing.names(list(others)), len(accuracy)):
      font: dict[str, Any] = {"fontsize": 6.5, "path_effects": drawing.outline()}
      axes.text(0.02 * widest, y, name, va="center", **font)
    name = drawing.name(column, _COLUMN)
    drawing.label_panel(
      axes, with_counts(name, images.get(column), classes.get(column))
    )
  drawing.save(path, figure)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots accuracy against confidence over the number of images at each confidence.

  Below the diagonal a prompt is overconfident. A point has 20 images at least:
  neighbouring bins with fewer are one point; below, every bin has its count.
  """
  names = list(next(iter(sets.values())))
  title = f"Calibration; in the corner: ECE (%)\na point: {_FEWEST} images or more"
  figure, stacks = drawing.stacked_panels(len(sets), 3.0, (3.2, 1.1), title)
  for place, ((axes, counts), (name, prompts)) in enumerate(
    zip(stacks, sets.items(), strict=True)
  ):
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      x, y, _ = merged_bins(figures["reliability"])
      options = {"markersize": 4, "linewidth": 1.2, **drawing.style(i)}
      axes.plot(x, y, label=f"{100 * figures['ece']:.1f}", clip_on=False, **options)
      images = np.asarray(figures["reliability"]["images"])
      edges = np.linspace(0, 1, len(images) + 1)
      counts.stairs(images, edges, color=options["color"], linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    counts.set(xlim=(0, 1), yscale="log")
    counts.set_ylim(bottom=0.7)  # one image is seen
    drawing.log_axis(counts, "y")
    one = next(iter(prompts.values()))
    heading = with_counts(
      drawing.name(name, _COLUMN), one.get("images"), one.get("classes")
    )
    y_labels = ("", "") if place % drawing.COLUMNS else ("accuracy", "images")
    drawing.label_panel(axes, heading, "", y_labels[0])
    drawing.label_panel(counts, "", "confidence", y_labels[1])
    axes.legend(loc="upper left", frameon=False, fontsize=drawing.TEXT)
  drawing.legend_below(figure, stacks[0][0].get_lines()[1:], prompt_labels(names))
  drawing.save(path, figure)


def merged_bins(
  bins: Mapping[str, Sequence[float | int]], fewest: int = _FEWEST
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Confidence, accuracy and number of images of the points of a reliability diagram.

  Neighbouring bins of `Tally.figures`'s `reliability` are joined, from the lowest
  confidence on, until they have the fewest images; a rest that has fewer joins the
  point before it.
  """
  images, confidence, accuracy = (
    np.asarray(bins[key], float) for key in ("images", "confidence", "accuracy")
  )
  groups: list[list[int]] = [[]]
  for number in np.flatnonzero(images):
    if images[groups[-1]].sum() >= fewest:
      groups.append([])
    groups[-1].append(int(number))
  if len(groups) > 1 and images[groups[-1]].sum() < fewest:
    rest = groups.pop()
    groups[-1] += rest
  totals = np.array([images[group].sum() for group in groups])
  means = [
    np.array([np.average(values[group], weights=images[group]) for group in groups])
    for values in (confidence, accuracy)
  ]
  return means[0], means[1], totals
