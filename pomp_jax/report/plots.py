"""Plots of training runs, evaluations and comparisons of methods."""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import prompt_labels, with_counts

_COLUMN = 22  # most characters of a data set's or split's name
_FEWEST = 20  # least number of images of a point in a calibration plot
_VALIDATION = "validation_top1"  # scalar that is written at each validation
_TEXT_IN_BAR: dict[str, Any] = {"fontsize": 6.5, "path_effects": drawing.outline()}
Series = tuple[Sequence[int], Sequence[float]]  # steps and values of a scalar


class _CurvePanel(NamedTuple):
  """A panel of `training_curves`."""

  scalar: str  # name of its series
  heading: str
  unit: str
  is_accuracy: bool = False  # a fraction, drawn in percent


def training_curves(
  path: str | os.PathLike,
  series: Mapping[str, Series],
  title: str = "",
  *,
  loss_unit: str = "cross-entropy (nats)",
  classes: str = "sampled classes",
) -> None:
  """Plots loss and accuracy against the step, thin under their moving average.

  Training and validation accuracy have separate panels, because they are over
  different numbers of classes.

  Args:
    path: PNG file to write.
    series: scalars by name, each optional: `loss`, `accuracy` (over `classes`) and
      `validation_top1` (over all classes); the accuracies are fractions.
    title: title of the figure.
    loss_unit: label of the loss axis.
    classes: classes that the training accuracy is over, for its heading.
  """
  panels = [
    _CurvePanel("loss", "Loss", loss_unit),
    _CurvePanel("accuracy", f"Training: {classes}", "top-1 (%)", is_accuracy=True),
  ]
  empty: Series = ((), ())
  validation_steps, _ = series.get(_VALIDATION, empty)
  if validation_steps:
    heading = "Validation: all classes"
    panels.append(_CurvePanel(_VALIDATION, heading, "top-1 (%)", is_accuracy=True))
  figure, axes_of = drawing.panels(len(panels), 3.4, 3.4, title)
  for axes, panel in zip(axes_of, panels, strict=True):
    steps, values = series.get(panel.scalar, empty)
    values_V = np.array(values, float)
    if panel.is_accuracy:
      values_V *= 100
    if panel.scalar == _VALIDATION:
      axes.plot(steps, values_V, "o-", color=drawing.RED, markersize=5)
    elif len(steps):
      _smoothed_curve(axes, steps, values_V)
    if panel.is_accuracy:
      drawing.end_at(axes, "y", 0.0, 100.0)
    axes.locator_params("x", integer=True)
    drawing.label_panel(axes, panel.heading, "step", panel.unit, grid="both")
  drawing.save(path, figure)


def _smoothed_curve(axes: Axes, steps: Sequence[int], values_V: np.ndarray) -> None:
  """Draws a curve; 50 or more values also get their moving average, with a legend."""
  radius = len(values_V) // 25
  if radius < 2:
    axes.plot(steps, values_V, color=drawing.BLUE, linewidth=1.8)
    return
  axes.plot(
    steps,
    values_V,
    color=drawing.BLUE,
    linewidth=0.8,
    alpha=0.45,
    label="as logged",
  )
  axes.plot(
    steps,
    _moving_average(values_V, radius),
    color=drawing.BLUE,
    linewidth=1.8,
    label=f"mean of {2 * radius + 1} values",
  )
  axes.legend(frameon=False, fontsize=drawing.TEXT)


def _moving_average(values_V: np.ndarray, radius: int) -> np.ndarray:
  """Means over a value and up to `radius` values on each side of it.

  Towards the start the window shrinks on both sides, so that the average starts at the
  first value even if the values fall. Towards the end the window shrinks only on the
  side of the end.
  """
  n = len(values_V)
  index = np.arange(n)
  n_before = np.minimum(index, radius)
  n_behind = np.minimum(n_before, n - 1 - index)
  sums = np.append(0.0, np.cumsum(values_V))
  window_sums = sums[index + n_behind + 1] - sums[index - n_before]
  return window_sums / (n_before + n_behind + 1)


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
    published: method -> column -> percent; a method may lack columns.
  """
  columns = list(dict.fromkeys(column for row in accuracy.values() for column in row))
  prompt_names = drawing.names(labels)
  height = 0.9 + 0.26 * (len(accuracy) + 1)
  figure, axes_of = drawing.panels(len(columns), 3.0, height, title)
  for axes, column in zip(axes_of, columns, strict=True):
    bars = _bars(column, accuracy, intervals, published)
    _draw_bars(axes, bars)
    # Prompts are the same in every panel and named once a row. Published methods
    # differ from panel to panel, so each bar holds its own name.
    if drawing.starts_row(axes):
      axes.set_yticks(range(len(prompt_names)), prompt_names)
    else:
      axes.set_yticks([])
    heading = drawing.name(column, _COLUMN)
    heading = with_counts(heading, images.get(column), classes.get(column))
    drawing.label_panel(axes, heading)
  drawing.save(path, figure)


class _Bars(NamedTuple):
  """Bars of one panel, from top to bottom: the prompts, then the published methods."""

  values_V: np.ndarray  # percent; NaN for a prompt without a value
  errors_2xV: np.ndarray  # distances to both ends of the interval; 0 without interval
  methods: list[str]  # published methods


def _bars(
  column: str,
  accuracy: Mapping[str, Mapping[str, float]],
  intervals: Mapping[str, Mapping[str, Sequence[float]]],
  published: Mapping[str, Mapping[str, float]],
) -> _Bars:
  """Collects the bars of a column from the arguments of `accuracy_panels`."""
  methods = [method for method, figures in published.items() if column in figures]
  values = [100 * row.get(column, np.nan) for row in accuracy.values()]
  values += [published[method][column] for method in methods]
  values_V = np.array(values)
  errors_2xV = np.zeros((2, len(values_V)))
  for i, prompt in enumerate(accuracy):
    ends = intervals.get(prompt, {}).get(column)
    if ends is not None:
      errors_2xV[:, i] = np.abs(100 * np.array(ends) - values_V[i])
  return _Bars(values_V, errors_2xV, methods)


def _draw_bars(axes: Axes, bars: _Bars) -> None:
  """Draws bars with their figures: prompts in colour, published methods in grey."""
  n_bars = len(bars.values_V)
  n_prompts = n_bars - len(bars.methods)
  colours = [drawing.style(i)["color"] for i in range(n_prompts)]
  colours += ["0.85"] * len(bars.methods)
  errors_2xV = None
  if bars.errors_2xV.any():
    errors_2xV = bars.errors_2xV
  artists = axes.barh(
    range(n_bars),
    bars.values_V,
    height=0.8,
    color=colours,
    xerr=errors_2xV,
    error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"},
  )
  figures = ["" if np.isnan(value) else f"{value:.1f}" for value in bars.values_V]
  axes.bar_label(artists, figures, padding=2, fontsize=drawing.TEXT)

  # Leave room for the figure beside the longest bar, but end the axis at 100%: the
  # figure of a bar near 100% then stands outside the panel.
  longest = np.nanmax(bars.values_V + bars.errors_2xV[1])
  x_end = min(max(1.22 * longest, 1.0), 100.0)
  # The vertical axis is inverted, so that the first bar is at the top.
  axes.set(ylim=(n_bars - 0.4, -0.6), xlim=(0, x_end))
  for y, method in enumerate(drawing.names(bars.methods), n_prompts):
    axes.text(0.02 * x_end, y, method, va="center", **_TEXT_IN_BAR)


def calibration_panels(
  path: str | os.PathLike, sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Plots accuracy against confidence, above a histogram of the confidences.

  Below the diagonal a prompt is overconfident. A point has at least 20 images:
  neighbouring bins with fewer images are joined. The histogram shows every bin. `sets`
  holds the figures of `Tally.figures` by set and prompt.
  """
  prompt_names = list(next(iter(sets.values())))
  title = f"Calibration; in the corner: ECE (%)\na point: {_FEWEST} images or more"
  figure, stacks = drawing.stacked_panels(len(sets), 3.0, (3.2, 1.1), title)
  for number, (name, prompts) in enumerate(sets.items()):
    diagram, histogram = stacks[number]
    diagram.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for i, figures in enumerate(prompts.values()):
      _draw_calibration(diagram, histogram, figures, drawing.style(i))
    diagram.set(xlim=(0, 1), ylim=(0, 1))
    diagram.legend(loc="upper left", frameon=False, fontsize=drawing.TEXT)
    histogram.set(xlim=(0, 1), yscale="log")
    histogram.set_ylim(bottom=0.7)  # below 1, so that a single image is seen
    drawing.log_axis(histogram, "y")

    # All prompts have the same images and classes, so take those of the first prompt.
    of_set = next(iter(prompts.values()))
    heading = drawing.name(name, _COLUMN)
    heading = with_counts(heading, of_set.get("images"), of_set.get("classes"))
    drawing.label_panel(diagram, heading)
    drawing.label_panel(histogram, "", x="confidence")
    if drawing.starts_row(diagram):
      diagram.set_ylabel("accuracy", fontsize=drawing.TEXT)
      histogram.set_ylabel("images", fontsize=drawing.TEXT)
  first_diagram = stacks[0][0]
  lines = first_diagram.get_lines()[1:]  # without the diagonal
  drawing.legend_below(figure, lines, prompt_labels(prompt_names))
  drawing.save(path, figure)


def _draw_calibration(
  diagram: Axes, histogram: Axes, figures: Mapping[str, Any], style: Mapping[str, Any]
) -> None:
  """Draws a prompt's accuracy, and its number of images, at each confidence."""
  bins = figures["reliability"]
  confidence, accuracy, _ = merged_bins(bins)
  diagram.plot(
    confidence,
    accuracy,
    label=f"{100 * figures['ece']:.1f}",
    clip_on=False,  # points at 0 and 1 are drawn whole
    markersize=4,
    linewidth=1.2,
    **style,
  )
  images = np.asarray(bins["images"])
  edges = np.linspace(0, 1, len(images) + 1)
  histogram.stairs(images, edges, color=style["color"], linewidth=1.2)


def merged_bins(
  bins: Mapping[str, Sequence[float | int]], fewest: int = _FEWEST
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Confidence, accuracy and number of images of the points of a reliability diagram.

  Neighbouring bins of `Tally.figures`'s `reliability` are joined, from the lowest
  confidence on, until a point has `fewest` images. Last bins that together have fewer
  are joined to the point before them.
  """
  images = np.asarray(bins["images"], float)
  points: list[list[int]] = [[]]  # bins of each point
  for number in np.flatnonzero(images).tolist():
    if images[points[-1]].sum() >= fewest:
      points.append([])
    points[-1].append(number)
  if len(points) > 1 and images[points[-1]].sum() < fewest:
    rest = points.pop()
    points[-1] += rest

  confidences = np.asarray(bins["confidence"], float)
  accuracies = np.asarray(bins["accuracy"], float)
  confidence = []
  accuracy = []
  totals = []
  for point in points:
    weights = images[point]
    confidence.append(np.average(confidences[point], weights=weights))
    accuracy.append(np.average(accuracies[point], weights=weights))
    totals.append(weights.sum())
  return np.array(confidence), np.array(accuracy), np.array(totals)
