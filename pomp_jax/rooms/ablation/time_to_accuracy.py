"""Time to accuracy: seconds of training until cells reach the accuracy of the exact
contrast.

Time is steps times the seconds of a step, and the first bank where there is one. The
accuracy is that of validation images of the training classes, mean over the seeds.
"""

from collections.abc import Mapping, Sequence
import itertools
import math
import os
from typing import Any, NamedTuple

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
  steps: tuple[int, ...]  # validated steps T
  top1: Mapping[str, np.ndarray]  # split -> fractions [seeds,T]
  step_seconds: float  # of a step of a cell alone
  start_seconds: float  # of the first bank

  @property
  def is_exact(self) -> bool:
    return self.group.values.get("k") == "all"

  @property
  def label(self) -> str:
    """The swept fields and their values."""
    parts = [
      str(value) if field == _SAMPLER else f"{field.rpartition('.')[2]}={value}"
      for field, value in self.group.values.items()
      if value is not None
    ]
    return "exact" if self.is_exact else ", ".join(parts)

  def seconds(self, step: int) -> float:
    return self.start_seconds + step * self.step_seconds


class Arrival(NamedTuple):
  """When a course reaches the accuracy of the exact contrast; None where it does
  not."""

  course: Course
  step: int | None  # first validated step
  seconds: float | None  # of training until then
  than_exact: float | None  # how many times faster than the exact contrast
  than_uniform: float | None  # how many times faster than the fastest uniform draw


def courses(
  cells: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]
) -> list[Course]:
  """Puts curves and times of cells together; kinds whose cells all failed are left out.

  A cell's `curve` is {"steps": [T], "top1": {split: [T]}}. Times have `values` without
  the seed, `step_seconds` and `first_bank_seconds`, one a kind.
  """
  found, done = [], [cell for cell in cells if not cell["error"]]
  for group, time in itertools.product(groups(cells), times):
    own = [cell for cell in done if kind_of(cell["values"]) == group.values]
    if own and time["values"] == group.values:
      curves = [cell["curve"] for cell in own]
      top1 = {
        name: np.array([one["top1"][name] for one in curves])
        for name in curves[0]["top1"]
      }
      seconds = time["step_seconds"], time["first_bank_seconds"]
      found.append(Course(group, tuple(curves[0]["steps"]), top1, *seconds))
  return found


def threshold_of(found: Sequence[Course]) -> float | None:
  """The exact contrast's last accuracy less its standard deviation over the seeds;
  None without."""
  exact = next((course for course in found if course.is_exact), None)
  if exact is None:
    return None
  last = exact.top1[CRITERION][:, -1]
  return float(last.mean() - (last.std(ddof=1) if len(last) > 1 else 0.0))


def arrivals(found: Sequence[Course]) -> list[Arrival]:
  """When each course reaches the threshold; nothing without the exact contrast."""
  threshold = threshold_of(found)
  if threshold is None:
    return []
  # seconds by kind of draw
  reached, fastest = [], {"exact": math.inf, "uniform": math.inf}
  for course in found:
    reaches_T = course.top1[CRITERION].mean(axis=0) >= threshold
    step = course.steps[np.argmax(reaches_T)] if reaches_T.any() else None
    seconds = None if step is None else course.seconds(step)
    reached.append((course, step, seconds))
    kind = "exact" if course.is_exact else course.group.values.get(_SAMPLER, "uniform")
    fastest[kind] = min(seconds or math.inf, fastest.get(kind, math.inf))
  ratio = lambda kind, own: (
    fastest[kind] / own if own and fastest[kind] < math.inf else None
  )
  return [
    Arrival(*one, ratio("exact", one[2]), ratio("uniform", one[2])) for one in reached
  ]


def plot(
  path: str | os.PathLike, found: Sequence[Course], images: Mapping[str, str]
) -> None:
  """Plots accuracy against seconds of training, a panel a split, a line a course.

  Error bars: standard deviation over the seeds after the last step. `images` are the
  numbers of images of each split.
  """
  splits = list(dict.fromkeys(split for course in found for split in course.top1))
  seeds = max(len(course.top1[CRITERION]) for course in found)
  title = (
    "Accuracy against seconds of training (steps x seconds of a step),"
    f" mean of {counted(seeds, 'seed')}"
  )
  figure, axes_of = drawing.panels(len(splits), 4.6, 3.8, title)
  threshold = threshold_of(found)
  legend: list[Any] = []
  for axes, split in zip(axes_of, splits, strict=True):
    drawn = []
    for number, course in enumerate(found):
      if split not in course.top1:
        continue  # a class-specific context knows no other classes
      line = _LINES[number // len(drawing.COLOURS) % len(_LINES)]
      style = {**drawing.style(number), "linestyle": line}
      style |= {"color": "black", "marker": "."} if course.is_exact else {}
      seconds, values_SxT = (
        list(map(course.seconds, course.steps)),
        100 * course.top1[split],
      )
      mean_T = values_SxT.mean(axis=0)
      drawn += axes.plot(seconds, mean_T, markersize=4, linewidth=1.4, **style)
      if len(values_SxT) > 1:
        bar: dict[str, Any] = {"color": style["color"], "capsize": 3, "linewidth": 1}
        axes.errorbar(
          seconds[-1], mean_T[-1], yerr=values_SxT[:, -1].std(ddof=1), **bar
        )
    if split == CRITERION and threshold is not None:
      reference_line(axes, 100 * threshold, "exact contrast, less its spread")
    drawing.log_axis(axes, "x")
    drawing.label_panel(
      axes, top1_heading(split, images), "seconds of training", grid="both"
    )
    legend = legend or drawn  # the first panel has all courses
  drawing.legend_below(figure, legend, [course.label for course in found])
  drawing.save(path, figure)
