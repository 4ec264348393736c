"""Computes the seconds of training until cells are as accurate as the exact contrast.

Time is the number of steps times the seconds of a step, plus the seconds of the first
bank if the sampler has one. Accuracy is measured on validation images of the training
classes, and averaged over the seeds. Shapes: S seeds, T validated steps.
"""

from collections.abc import Mapping, Sequence
import itertools
import math
import os
from typing import Any, NamedTuple

from matplotlib.axes import Axes
import numpy as np

from pomp_jax.report import drawing
from pomp_jax.report.labels import counted
from pomp_jax.rooms.ablation.plots import (
  Group,
  groups,
  kind_of,
  reference_line,
  top1_heading,
)

CRITERION = "validation"
_SAMPLER = "sampling.name"
_LINES = ("-", "--", ":", "-.")


class Course(NamedTuple):
  """Accuracy of cells that differ only in the seed, against time."""

  group: Group  # the cells, and their figures after the last step
  steps: tuple[int, ...]  # the T validated steps
  top1: Mapping[str, np.ndarray]  # fractions [S,T] by split
  step_seconds: float  # of one step of a cell that is trained alone
  start_seconds: float  # of the first bank; 0 without a bank

  @property
  def is_exact(self) -> bool:
    """Whether the contrast is over all classes."""
    return self.group.values.get("k") == "all"

  @property
  def label(self) -> str:
    """The swept fields and their values."""
    if self.is_exact:
      return "exact"
    parts = []
    for field, value in self.group.values.items():
      if field == _SAMPLER and value is not None:
        parts.append(str(value))
      elif value is not None:
        _, _, name = field.rpartition(".")
        parts.append(f"{name}={value}")
    return ", ".join(parts)

  def seconds(self, step: int) -> float:
    """Seconds of training until a step is done."""
    return self.start_seconds + step * self.step_seconds


class Arrival(NamedTuple):
  """When a course reaches the exact contrast's accuracy; None if it never does."""

  course: Course
  step: int | None  # first validated step with this accuracy
  seconds: float | None  # of training until this step
  than_exact: float | None  # how many times faster than the exact contrast
  than_uniform: float | None  # how many times faster than the fastest uniform draw


def courses(
  cells: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]
) -> list[Course]:
  """Joins the curves and times of each kind of cells; drops kinds that failed in whole.

  A cell's `curve` is {"steps": [T], "top1": {split: [T]}}. `times` has one mapping a
  kind, with `values` without the seed, `step_seconds` and `first_bank_seconds`.
  """
  finished = [cell for cell in cells if not cell["error"]]
  kinds = []
  for group, time in itertools.product(groups(cells), times):
    if time["values"] != group.values:
      continue
    curves = []
    for cell in finished:
      if kind_of(cell["values"]) == group.values:
        curves.append(cell["curve"])
    if not curves:
      continue
    top1 = {}
    for split in curves[0]["top1"]:
      top1[split] = np.array([curve["top1"][split] for curve in curves])
    course = Course(
      group=group,
      steps=tuple(curves[0]["steps"]),
      top1=top1,
      step_seconds=time["step_seconds"],
      start_seconds=time["first_bank_seconds"],
    )
    kinds.append(course)
  return kinds


def threshold_of(kinds: Sequence[Course]) -> float | None:
  """Returns the accuracy that other contrasts should reach.

  Args:
    kinds: course of each kind of cells.

  Returns:
    The mean accuracy of the first exact contrast after its last step, less the sample
    standard deviation over the seeds. None without an exact contrast.
  """
  for course in kinds:
    if not course.is_exact:
      continue
    last_top1 = course.top1[CRITERION][:, -1]
    if len(last_top1) == 1:
      # One seed has no standard deviation.
      return float(last_top1[0])
    return float(last_top1.mean() - last_top1.std(ddof=1))
  return None


def arrivals(kinds: Sequence[Course]) -> list[Arrival]:
  """Lists when each course reaches the threshold; [] without an exact contrast."""
  threshold = threshold_of(kinds)
  if threshold is None:
    return []
  # The first exact contrast always arrives: its last accuracy is not below the
  # threshold.
  steps = [_first_step(course, threshold) for course in kinds]
  # Seconds by draw: "exact", or the sampler, which is "uniform" if it is not swept.
  fastest: dict[str, float] = {}
  for course, step in zip(kinds, steps, strict=True):
    if step is not None:
      draw = course.group.values.get(_SAMPLER, "uniform")
      if course.is_exact:
        draw = "exact"
      fastest[draw] = min(course.seconds(step), fastest.get(draw, math.inf))
  arrivals_of_kinds = []
  for course, step in zip(kinds, steps, strict=True):
    if step is None:
      arrivals_of_kinds.append(Arrival(course, None, None, None, None))
      continue
    seconds = course.seconds(step)
    arrival = Arrival(
      course=course,
      step=step,
      seconds=seconds,
      than_exact=_ratio(fastest.get("exact"), seconds),
      than_uniform=_ratio(fastest.get("uniform"), seconds),
    )
    arrivals_of_kinds.append(arrival)
  return arrivals_of_kinds


def _first_step(course: Course, threshold: float) -> int | None:
  """First validated step at which the mean over the seeds reaches the threshold."""
  reaches_T = course.top1[CRITERION].mean(axis=0) >= threshold
  if not reaches_T.any():
    return None
  return course.steps[np.argmax(reaches_T)]


def _ratio(reference: float | None, seconds: float) -> float | None:
  """How many times faster than the reference; None without it, or for 0 seconds."""
  if reference is None or not seconds:
    return None
  return reference / seconds


def plot(
  path: str | os.PathLike, kinds: Sequence[Course], images: Mapping[str, str]
) -> None:
  """Plots accuracy against seconds of training: one panel a split, one line a course.

  Error bars are the standard deviation over the seeds after the last step.

  Args:
    path: file of the plot.
    kinds: courses to draw, at least one.
    images: numbers of images, by split.
  """
  splits = list(dict.fromkeys(split for course in kinds for split in course.top1))
  n_seeds = max(len(course.top1[CRITERION]) for course in kinds)
  title = (
    "Accuracy against seconds of training (steps x seconds of a step),"
    f" mean of {counted(n_seeds, 'seed')}"
  )
  figure, axes_of = drawing.panels(len(splits), 4.6, 3.8, title)
  threshold = threshold_of(kinds)
  legend: list[Any] = []
  for axes, split in zip(axes_of, splits, strict=True):
    lines = []
    for number, course in enumerate(kinds):
      # A class-specific context has no curve on splits with other classes.
      if split in course.top1:
        lines += _draw_course(axes, course, split, number)
    if split == CRITERION and threshold is not None:
      reference_line(axes, 100 * threshold, "exact contrast, less its spread")
    drawing.log_axis(axes, "x")
    heading = top1_heading(split, images)
    drawing.label_panel(axes, heading, "seconds of training", grid="both")
    legend = legend or lines  # the first panel has all courses
  drawing.legend_below(figure, legend, [course.label for course in kinds])
  drawing.save(path, figure)


def _draw_course(axes: Axes, course: Course, split: str, number: int) -> list[Any]:
  """Draws the mean over the seeds, with an error bar at its end; returns [line]."""
  style = drawing.style(number)
  # When all colours are used, repeat them with another line style.
  style["linestyle"] = _LINES[number // len(drawing.COLOURS) % len(_LINES)]
  if course.is_exact:
    style["color"] = "black"
    style["marker"] = "."
  seconds = [course.seconds(step) for step in course.steps]
  values_SxT = 100 * course.top1[split]
  mean_T = values_SxT.mean(axis=0)
  lines = axes.plot(seconds, mean_T, markersize=4, linewidth=1.4, **style)
  if len(values_SxT) > 1:
    axes.errorbar(
      seconds[-1],
      mean_T[-1],
      yerr=values_SxT[:, -1].std(ddof=1),
      color=style["color"],
      capsize=3,
      linewidth=1,
    )
  return lines
