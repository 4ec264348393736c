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
_TEXT_IN_BAR: dict[str, Any] = {"fontsize": 6.5, "path_effects": drawing.outline()}
Series = tuple[Sequence[int], Sequence[float]]  # steps and values of a scalar


def training_curves(
  path: str | os.PathLike,
  series: Mapping[str, Series],
  title: str = "",
  *,
  loss_unit: str = "cross-entropy (nats)",
  classes: str = "sampled classes",
) -> None:
  """Plots loss and accuracy against the step, thin under their moving average.

  Training and validation accuracy have a panel each, because they are over different
  numbers of classes.

  Args:
    path: PNG file to write.
    series: scalars by name, each optional: `loss`, `accuracy` (over `classes`) and
      `validation_top1` (over all classes); the accuracies are fractions.
    title: title of the figure.
    loss_unit: label of the loss axis.
    classes: classes that the training accuracy is over, for its heading.
  """
  panels = [
    ("loss", "Loss", loss_unit, 1.0),
    ("accuracy", f"Training: {classes}", "top-1 (%)", 100.0),
  ]
  validation_steps, _ = series.get("validation_top1", ((), ()))
  if validation_steps:
    panels.append(("validation_top1", "Validation: all classes", "top-1 (%)", 100.0))
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
  """Draws values; 50 and more of them thin, under their moving average, with a legend."""
  n = len(values)
  window = n // 25
  if window < 2:
    axes.plot(steps, values, color=drawing.BLUE, linewidth=1.8)
    return
  thin: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.45}
  axes.plot(steps, values, color=drawing.BLUE, label="as logged", **thin)
  # The window shrinks evenly towards the start, so that the average starts where the
  # values do even if they fall. At the end it takes the values that there are.
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
  accuracy: Mapping[str, Mapping[str, float]],
  labels: Sequence[str],
  title: str,
  images: Mapping[str, int],
  classes: Mapping[str, int],
  intervals: Mapping[str, Mapping[str, Sequence[float]]],
  published: Mapping[str, Mapping[str, float]],
) -> None:
  """Plots accuracies as horizontal bars with 95% intervals, published ones in grey.

  A column is a data set, a split, or a mean over sets; each has a panel.

  Args:
    path: PNG file to write.
    accuracy: prompt -> column -> fraction.
    labels: labels of the prompts, in the order of `accuracy`.
    title: title of the figure.
    images: column -> number of images; a mean has none, here and in `classes`.
    classes: column -> number of classes.
    intervals: prompt -> column -> both ends, fractions.
    published: method -> column -> percent, where it has one.
  """
  columns = list(dict.fromkeys(column for row in accuracy.values() for column in row))
  prompt_names = drawing.names(labels)
  height = 0.9 + 0.26 * (len(accuracy) + 1)
  figure, axes_of = drawing.panels(len(columns), 3.0, height, title)
  for place, (axes, column) in enumerate(zip(axes_of, columns, strict=True)):
    published_values = {
      method: figures[column]
      for method, figures in published.items()
      if column in figures
    }
    values = [100 * row.get(column, np.nan) for row in accuracy.values()]
    values_V = np.array(values + list(published_values.values()))
    errors_2xV = np.zeros((2, len(values_V)))
    for i, prompt in enumerate(accuracy):
      ends = intervals.get(prompt, {}).get(column)
      if ends is not None:
        errors_2xV[:, i] = np.abs(100 * np.array(ends) - values_V[i])
    _draw_bars(axes, values_V, errors_2xV, n_coloured=len(accuracy))
    # Figures beside the longest bars may stand beyond 100%, where the axis ends.
    widest = min(max(1.22 * np.nanmax(values_V + errors_2xV[1]), 1.0), 100.0)
    axes.set(ylim=(len(values_V) - 0.4, -0.6), xlim=(0, widest))
    # Prompts are the same in every panel and named once a row. Published methods
    # differ from panel to panel, so each bar holds its own name.
    if place % drawing.COLUMNS == 0:
      axes.set_yticks(range(len(prompt_names)), prompt_names)
    else:
      axes.set_yticks([])
    for y, method in enumerate(drawing.names(list(published_values)), len(accuracy)):
      axes.text(0.02 * widest, y, method, va="center", **_TEXT_IN_BAR)
    heading = drawing.name(column, _COLUMN)
    heading = with_counts(heading, images.get(column), classes.get(column))
    drawing.label_panel(axes, heading)
  drawing.save(path, figure)


def _draw_bars(
  axes: Axes, values_V: np.ndarray, errors_2xV: np.ndarray, n_coloured: int
) -> None:
  """Draws bars and their figures, percentages; those after `n_coloured` are grey."""
  colours = [drawing.style(i)["color"] for i in range(n_coloured)]
  colours += ["0.85"] * (len(values_V) - n_coloured)
  bars = axes.barh(
    range(len(values_V)),
    values_V,
    height=0.8,
    color=colours,
    xerr=errors_2xV if errors_2xV.any() else None,
    error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"},
  )
  figures = ["" if np.isnan(value) else f"{value:.1f}" for value in values_V]
  axes.bar_label(bars, figures, padding=2, fontsize=drawing.TEXT)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots accuracy against confidence over the number of images at each confidence.

  Below the diagonal a prompt is overconfident. A point has 20 images at least:
  neighbouring bins with fewer are one point; below, every bin has its count. `sets`
  holds the figures of `Tally.figures` by set and prompt.
  """
  prompt_names = list(next(iter(sets.values())))
  title = f"Calibration; in the corner: ECE (%)\na point: {_FEWEST} images or more"
  figure, stacks = drawing.stacked_panels(len(sets), 3.0, (3.2, 1.1), title)
  for place, (name, prompts) in enumerate(sets.items()):
    axes, counts = stacks[place]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      reliability = figures["reliability"]
      confidence, accuracy, _ = merged_bins(reliability)
      options = {"markersize": 4, "linewidth": 1.2, **drawing.style(i)}
      ece = f"{100 * figures['ece']:.1f}"
      axes.plot(confidence, accuracy, label=ece, clip_on=False, **options)
      images = np.asarray(reliability["images"])
      edges = np.linspace(0, 1, len(images) + 1)
      counts.stairs(images, edges, color=options["color"], linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    counts.set(xlim=(0, 1), yscale="log")
    counts.set_ylim(bottom=0.7)  # one image is seen
    drawing.log_axis(counts, "y")
    # The images and classes are those of the set, whatever the prompt.
    set_figures = next(iter(prompts.values()))
    heading = with_counts(
      drawing.name(name, _COLUMN), set_figures.get("images"), set_figures.get("classes")
    )
    is_first_of_row = place % drawing.COLUMNS == 0
    drawing.label_panel(axes, heading, y="accuracy" if is_first_of_row else "")
    drawing.label_panel(counts, "", "confidence", "images" if is_first_of_row else "")
    axes.legend(loc="upper left", frameon=False, fontsize=drawing.TEXT)
  lines = stacks[0][0].get_lines()[1:]  # without the diagonal
  drawing.legend_below(figure, lines, prompt_labels(prompt_names))
  drawing.save(path, figure)


def merged_bins(
  bins: Mapping[str, Sequence[float | int]], fewest: int = _FEWEST
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Confidence, accuracy and number of images of the points of a reliability diagram.

  Neighbouring bins of `Tally.figures`'s `reliability` are joined, from the lowest
  confidence on, until they have the fewest images; a rest that has fewer joins the
  point before it.
  """
  images = np.asarray(bins["images"], float)
  groups: list[list[int]] = [[]]
  for number in np.flatnonzero(images):
    if images[groups[-1]].sum() >= fewest:
      groups.append([])
    groups[-1].append(int(number))
  if len(groups) > 1 and images[groups[-1]].sum() < fewest:
    rest = groups.pop()
    groups[-1] += rest

  def means(key: str) -> np.ndarray:
    values = np.asarray(bins[key], float)
    return np.array([np.average(values[g], weights=images[g]) for g in groups])

  totals = np.array([images[group].sum() for group in groups])
  return means("confidence"), means("accuracy"), totals
