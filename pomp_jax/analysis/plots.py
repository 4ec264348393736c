"""The plots of a run, as PNG files.

Figures are built without pyplot: no state is shared, no display is needed. Colours are Okabe and
Ito's, which colour-blind readers can tell apart; nothing is told by colour alone.
"""

from collections.abc import Mapping, Sequence
import os
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.files.atomic import replacing

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
_DPI = 150

# Steps and values of a scalar.
Series = tuple[Sequence[int], Sequence[float]]

# The prompts that are compared, in the order of their bars: colour and label.
_PROMPTS = {
  "prompt": (_BLUE, "learned prompt"),
  "hand_written": (_ORANGE, "hand-written prompt"),
  "class_name": (_GREY, "class name alone"),
}


def training_curves(path: str | os.PathLike, series: Mapping[str, Series]) -> None:
  """Loss and accuracy over the steps, raw values faint and a moving average over them.

  Args:
    path: the PNG file.
    series: steps and values by name. `loss`, `accuracy` (a fraction, over the sampled classes) and
      `validation_top1` (a fraction, over all classes) are drawn; others, and missing ones, are not.
  """
  figure = Figure(figsize=(10, 4), layout="constrained")
  loss_axes, accuracy_axes = figure.subplots(1, 2)
  _curve(loss_axes, series.get("loss"), _BLUE, "loss")
  loss_axes.set(title="Loss", xlabel="step", ylabel="cross-entropy (nats)")
  _curve(accuracy_axes, series.get("accuracy"), _BLUE, "training, sampled classes")
  steps, values = series.get("validation_top1", ((), ()))
  if len(steps):
    accuracy_axes.plot(
      steps, values, "o--", color=_RED, markersize=5, linewidth=1.2, label="validation, all classes"
    )
  accuracy_axes.set(title="Accuracy", xlabel="step", ylabel="top-1")
  accuracy_axes.yaxis.set_major_formatter(_percent)
  if accuracy_axes.has_data():
    accuracy_axes.legend(frameon=False)
  for axes in (loss_axes, accuracy_axes):
    _plain_frame(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.92")
  _save(path, figure)


def accuracy_bars(
  path: str | os.PathLike,
  scores: Mapping[str, Mapping[str, Mapping[str, Any]]],
  spread: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> None:
  """Top-1 of the learned prompt beside the others, a group of bars for each split.

  Args:
    path: the PNG file.
    scores: `scores[split][prompt]` has `top1`, `top1_interval`, fractions, and `images`; at least
      one split. The prompts `prompt`, `hand_written` and `class_name` come first, any others after
      them.
    spread: standard deviations over seeds, `spread[split][prompt]["top1"]`: the half-length of each
      bar's error bar. That is the interval over the images when it is None.
  """
  names = list(dict.fromkeys(name for split in scores.values() for name in split))
  names.sort(key=lambda name: list(_PROMPTS).index(name) if name in _PROMPTS else len(_PROMPTS))
  others = iter([_GREEN, _RED, "#56B4E9", "#CC79A7"] * len(names))
  styles = {name: _PROMPTS.get(name) or (next(others), name.replace("_", " ")) for name in names}
  width = 0.84 / len(names)
  inches = max(5.5, 1.5 + 0.75 * len(scores) * len(names))
  figure = Figure(figsize=(inches, 4), layout="constrained")
  axes = figure.subplots()
  highest = 0.0
  for index, name in enumerate(names):
    splits = [i for i, split in enumerate(scores.values()) if name in split]
    top1 = [split[name]["top1"] for split in scores.values() if name in split]
    own = [split for split in scores if name in scores[split]]
    if spread is None:
      ends = np.array([scores[split][name]["top1_interval"] for split in own])
      errors = np.abs(ends - np.array(top1)[:, None]).T
    else:
      errors = np.tile([spread[split][name]["top1"] for split in own], (2, 1))
    x = np.array(splits) + (index - (len(names) - 1) / 2) * width
    colour, label = styles[name]
    style = {"capsize": 3, "ecolor": "0.2"}
    bars = axes.bar(x, top1, 0.92 * width, yerr=errors, color=colour, label=label, error_kw=style)
    axes.bar_label(bars, [f"{100 * value:.1f}" for value in top1], padding=3, fontsize=9)
    highest = max(highest, *np.add(top1, errors[1]))
  counts = [next(iter(prompts.values()))["images"] for prompts in scores.values()]
  names_and_counts = zip(scores, counts, strict=True)
  axes.set_xticks(range(len(scores)), [f"{split}\n{n:,} images" for split, n in names_and_counts])
  means = "standard deviation over the seeds" if spread else "95% interval over the images"
  axes.set_xlabel(f"error bars: {means}", fontsize=8)
  axes.set(ylabel="top-1 accuracy over all classes", ylim=(0, max(1.12 * highest, 1e-3)))
  axes.yaxis.set_major_formatter(_percent)
  figure.legend(loc="outside upper center", ncols=3, frameon=False)
  _plain_frame(axes)
  axes.grid(axis="y", color="0.92")
  axes.set_axisbelow(True)
  _save(path, figure)


def prediction_sheet(
  path: str | os.PathLike,
  images: np.ndarray,
  true_names: Sequence[str],
  top3_names: Sequence[Sequence[str]],
  top3_probabilities: Sequence[Sequence[float]] | np.ndarray,
) -> None:
  """A sheet of test images, each with its name and the most probable names.

  The right name, where it is among them, has a tick and bold letters.

  Args:
    path: the PNG file.
    images: uint8 [n, H, W, 3], n >= 1; small ones are enlarged without smoothing.
    true_names: n names.
    top3_names: for each image its names, the most probable first; three, or fewer.
    top3_probabilities: their probabilities, same structure.
  """
  n_images = len(images)
  columns = min(n_images, 4 if n_images <= 16 else 6)
  rows = -(-n_images // columns)
  width, height = 2.9 * columns, 3.7 * rows
  figure = Figure(figsize=(width, height))
  for index, image in enumerate(images):
    # Inches from the lower left; the places are fixed, since a layout engine takes seconds here.
    x, y = 2.9 * (index % columns), 3.7 * (rows - 1 - index // columns)
    picture = figure.add_axes(((x + 0.35) / width, (y + 1.1) / height, 2.2 / width, 2.15 / height))
    answers = figure.add_axes(((x + 0.1) / width, (y + 0.15) / height, 2.7 / width, 0.85 / height))
    picture.axis("off")
    answers.axis("off")
    # Few pixels must stay pixels; many are reduced, where smoothing is right.
    enlarged = max(image.shape[:2]) < 2.15 * _DPI
    picture.imshow(image, interpolation="nearest" if enlarged else "antialiased")
    picture.set_title(textwrap.fill(_short(true_names[index]), 32), fontsize=10)
    _answers(answers, true_names[index], top3_names[index], top3_probabilities[index])
  _save(path, figure)


def _answers(
  axes: Axes, true_name: str, names: Sequence[str], probabilities: Sequence[float] | np.ndarray
) -> None:
  """One line a name: a tick when it is right, the name over a bar of its probability."""
  axes.set(xlim=(0, 1), ylim=(3, 0))
  for line, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
    right = name == true_name
    colour = _GREEN if right else _GREY
    axes.barh(line + 0.5, float(probability), height=0.84, color=colour, alpha=0.35, linewidth=0)
    style = {"va": "center", "fontsize": 8.5, "weight": "bold" if right else "normal"}
    axes.text(0.015, line + 0.52, "\u2713" if right else "", color="#00664B", **style)
    axes.text(0.085, line + 0.52, _short(name, 26 if right else 29), **style)
    axes.text(0.99, line + 0.52, f"{100 * float(probability):.0f}%", ha="right", **style)


def _curve(axes: Axes, series: Series | None, colour: str, label: str) -> None:
  if series is None or not len(series[0]):
    return
  steps, values = np.asarray(series[0]), np.asarray(series[1], np.float64)
  window = max(len(values) // 25, 1)
  if window == 1:
    axes.plot(steps, values, color=colour, linewidth=1.8, label=label)
    return
  axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
  axes.plot(steps, _moving_mean(values, window), color=colour, linewidth=1.8, label=label)


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Mean over `window` values on either side, fewer at the ends."""
  total = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  first, last = np.maximum(index - window, 0), np.minimum(index + window + 1, len(values))
  return (total[last] - total[first]) / (last - first)


def _short(name: str, length: int = 60) -> str:
  # A "$" would start a formula.
  name = name if len(name) <= length else f"{name[: length - 1].rstrip()}\u2026"
  return name.replace("$", r"\$")


def _percent(value: float, _: object = None) -> str:
  return f"{100 * value:g}%"


def _plain_frame(axes: Axes) -> None:
  axes.spines[["top", "right"]].set_visible(False)


def _save(path: str | os.PathLike, figure: Figure) -> None:
  FigureCanvasAgg(figure)
  with replacing(path) as file:
    figure.savefig(file, format="png", dpi=_DPI)
