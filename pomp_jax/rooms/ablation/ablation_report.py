"""Writes an ablation's table, plots and report beside its cells."""

from collections.abc import Mapping, Sequence
import json
from typing import Any, NamedTuple

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.report.labels import counted, method_label
from pomp_jax.report.report import Report, Section, Table, failures, write_csv
from pomp_jax.rooms.ablation import plots, time_to_accuracy
from pomp_jax.rooms.ablation.seed_pairs import (
  Differences,
  differences_section,
  paired_differences,
)

# The report marks the row that is best by the first of these figures that cells have.
_MARKED = ("novel_top1", "new_top1", "test_top1", "base_top1")
_COSTS = (
  "Training time is a cell's share of the steps of the program that trained it, memory its share"
  " of that program's temporaries; rendering, features of images and compilation are shared and"
  " not in them. Lanes of one program are measured together, once: they have no spread."
  " Bold: above the first row by the interval of the paired difference."
)
_TIMES = (
  "Seconds are steps times the median seconds of a step of a cell trained alone, without the image"
  " tower, and the first bank; kinds of cells are timed in turn. A kind arrives when its validation"
  " accuracy (images of the training classes, mean over the seeds) is at least the exact contrast's"
  " after the last step less its standard deviation."
)
# Files of the plots.
_SWEEP = "sweep.png"
_COURSES = "time_to_accuracy.png"


def write_cells(folder: RunFolder, results: Mapping[str, Any]) -> None:
  """Writes one or more cells as CSV and plots.

  Accuracy is plotted against time only if steps were timed.
  """
  cells = results["cells"]
  rows = []
  for cell in cells:
    rows.append(cell["values"] | plots.figures_of(cell) | {"error": cell["error"]})
  fields = dict.fromkeys(field for cell in cells for field in cell["values"])
  figures = dict.fromkeys(name for cell in cells for name in plots.figures_of(cell))
  columns = (*fields, *figures, "error")
  lines = ([row.get(column) for column in columns] for row in rows)
  write_csv(folder.path / "cells.csv", columns, lines)
  by_hand = _distinct_by_hand(cells)
  references = {}
  if len(by_hand) == 1:  # otherwise no reference line is right for all cells
    references = _references(by_hand[0].top1)
  images = _images(cells)
  plots.sweep(folder.plots / _SWEEP, plots.groups(cells), references, images)
  courses = time_to_accuracy.courses(cells, results.get("step_times", ()))
  if courses:
    time_to_accuracy.plot(folder.plots / _COURSES, courses, images)


def _references(
  by_hand: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
  """Makes the plots' reference lines: the top-1 of the best hand-written prompt.

  Args:
    by_hand: top-1 by split and prompt; all splits have the same prompts.

  Returns:
    {label: top-1} by the name of the figure to draw it in, such as "test_top1". The
    prompt is the one with the highest sum of top-1 over the splits. {} without prompts.
  """
  totals: dict[str, float] = {}
  for top1_of_prompts in by_hand.values():
    for prompt, top1 in top1_of_prompts.items():
      totals[prompt] = totals.get(prompt, 0.0) + top1
  if not totals:
    return {}
  best = max(totals, key=lambda prompt: totals[prompt])
  lines = {}
  for split, top1_of_prompts in by_hand.items():
    lines[f"{split}_top1"] = {method_label(best): top1_of_prompts[best]}
  return lines


def ablation_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Reports an ablation: each kind of cell with its spread, every cell, failures."""
  cells = results["cells"]
  differences = paired_differences(cells)
  text = "Mean ± sample standard deviation over the seeds."
  if images := _images(cells):
    counts = ", ".join(f"{count} of {split}" for split, count in images.items())
    text += f" Images evaluated: {counts}."
  summary = _summary(plots.groups(cells), differences)
  by_hand = "Prompts written by hand"
  failed = [(cell["name"], cell["error"]) for cell in cells if cell["error"]]
  sections = [
    Section("Summary", f"{text} {_COSTS}", summary, brief=True),
    *differences_section(differences),
    Section("Figures against the swept field", picture=_SWEEP),
    *_time_to_accuracy(results),
    Section(by_hand, "Top-1 accuracy (%).", _by_hand(cells), brief=True),
    Section("Cells", table=_cells_table(cells)),
    failures("Failed cells", "cell", failed),
    Section("Missing cells", ", ".join(results["missing"]) or "None."),
  ]
  swept = dict.fromkeys(field for cell in cells for field in cell["values"])
  n_seeds = len({cell["values"].get("seed") for cell in cells})
  text = f"{counted(len(cells), 'cell')}, {counted(n_seeds, 'seed')}."
  return Report(f"Ablation over {', '.join(swept)}", text, sections)


def _cells_table(cells: Sequence[Mapping[str, Any]]) -> Table:
  """A row for each cell, with its values and its figures."""
  swept = dict.fromkeys(field for cell in cells for field in cell["values"])
  names = dict.fromkeys(name for cell in cells for name in plots.figures_of(cell))
  rows = []
  for cell in cells:
    figures = plots.figures_of(cell)
    row = [plots.text_of(cell["values"].get(field)) for field in swept]
    for name in names:
      text = "-"
      if name in figures:
        text = f"{plots.scale_of(name) * figures[name]:.1f}"
      row.append(text)
    rows.append(row)
  marks = ["failed" if cell["error"] else "" for cell in cells]
  return Table([*swept, *map(_heading, names)], rows, marks)


def _time_to_accuracy(results: Mapping[str, Any]) -> list[Section]:
  """Reports when each kind of cells reaches the threshold; [] if no step was timed."""
  courses = time_to_accuracy.courses(results["cells"], results.get("step_times", ()))
  if not courses:
    return []
  figures = dict.fromkeys(name for course in courses for name in course.group.figures)
  names = [name for name in figures if name not in plots.COSTS]
  rows = []
  for arrival in time_to_accuracy.arrivals(courses):
    course = arrival.course
    row = [course.label]
    row += [_spread(course.group, name) for name in names]
    row.append(f"{1000 * course.step_seconds:.1f}")
    row.append(f"{course.start_seconds:.2f}")
    if arrival.step is None:
      row += ["not reached", "", "", ""]
    else:
      row += [str(arrival.step), f"{arrival.seconds:.1f}"]
      for ratio in (arrival.than_exact, arrival.than_uniform):
        row.append("-" if ratio is None else f"{ratio:.1f}x")
    rows.append(row)
  columns = [
    "cells",
    *map(_heading, names),
    "step (ms)",
    "first bank (s)",
    "steps",
    "seconds",
    "faster than exact",
    "than the fastest uniform draw",
  ]
  text = _TIMES
  threshold = time_to_accuracy.threshold_of(courses)
  if threshold is not None:
    text += f" That is {100 * threshold:.1f}%."
  table = Table(columns, rows) if rows else None
  return [
    Section("Time to accuracy", text, table, brief=True),
    Section("Accuracy against seconds of training", picture=_COURSES),
  ]


def _images(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Number of images evaluated, by split; several numbers if cells differ."""
  counts: dict[str, set[int]] = {}
  for cell in cells:
    images = cell.get("curve", {}).get("images", {}) | cell.get("images", {})
    for split, n_images in images.items():
      counts.setdefault(split, set()).add(n_images)
  texts = {}
  for split, numbers in counts.items():
    texts[split] = " or ".join(f"{n_images:,}" for n_images in sorted(numbers))
  return texts


class _ByHand(NamedTuple):
  """Top-1 of the prompts written by hand."""

  cell: str  # name of the first cell with these figures
  top1: Mapping[str, Mapping[str, float]]  # by split and prompt


def _distinct_by_hand(cells: Sequence[Mapping[str, Any]]) -> list[_ByHand]:
  """Distinct figures of hand-written prompts, which depend on CLIP and classes."""
  distinct: dict[str, _ByHand] = {}
  for cell in cells:
    if not cell["error"]:
      by_hand = cell["by_hand"]
      distinct.setdefault(json.dumps(by_hand), _ByHand(cell["name"], by_hand))
  return list(distinct.values())


def _heading(name: str) -> str:
  return plots.COSTS.get(name) or f"{name.removesuffix('_top1')} top-1 (%)"


def _summary(groups: Sequence[plots.Group], differences: Differences) -> Table:
  """A row for each kind of cells.

  A figure is bold if the interval of its difference to the first kind is above 0.
  """
  fields: list[str] = []
  names: list[str] = []
  for group in groups:
    fields += group.values.keys()
    names += group.figures.keys()
  # List each field and each figure once, in the order of the groups.
  fields = list(dict.fromkeys(fields))
  names = list(dict.fromkeys(names))
  rows = []
  for group in groups:
    row = [plots.text_of(group.values.get(field)) for field in fields]
    row += [_spread(group, name) for name in names]
    rows.append(row)
  bold = []
  # The differences begin with the second kind of cells, in row 1.
  for row_index, (_, differences_of_kind) in enumerate(differences, 1):
    for name, difference in differences_of_kind.items():
      if difference.interval and difference.interval[0] > 0:
        bold.append((row_index, len(fields) + names.index(name)))
  columns = [*fields, *map(_heading, names)]
  return Table(columns, rows, marks=_best_marks(groups, names), bold=bold)


def _best_marks(groups: Sequence[plots.Group], names: Sequence[str]) -> list[str]:
  """Marks the groups with the highest mean of the first figure of `_MARKED`."""
  decisive = [name for name in _MARKED if name in names]
  if not decisive:
    return [""] * len(groups)
  name = decisive[0]
  # A group whose cells all failed has no figure: -1 is below every accuracy.
  means = [
    group.figures[name].mean if name in group.figures else -1 for group in groups
  ]
  return ["best" if mean == max(means) else "" for mean in means]


def _spread(group: plots.Group, name: str) -> str:
  """A figure of a group as "mean ± deviation"."""
  if name not in group.figures:
    return "-"
  spread = group.figures[name]
  scale = plots.scale_of(name)
  text = f"{scale * spread.mean:.1f}"
  if len(spread.values) > 1:
    text += f" ± {scale * spread.std:.1f}"
  if group.failed:
    text += f" ({group.failed} failed)"
  return text


def _by_hand(cells: Sequence[Mapping[str, Any]]) -> Table:
  """A row for each hand-written prompt, under each combination of CLIP and classes."""
  distinct = _distinct_by_hand(cells)
  splits = list(dict.fromkeys(split for by_hand in distinct for split in by_hand.top1))
  rows = []
  for by_hand in distinct:
    cells_text = f" ({by_hand.cell} and similar)" if len(distinct) > 1 else ""
    for prompt in next(iter(by_hand.top1.values()), {}):
      row = [method_label(prompt) + cells_text]
      for split in splits:
        text = "-"
        if split in by_hand.top1:
          text = f"{100 * by_hand.top1[split][prompt]:.1f}"
        row.append(text)
      rows.append(row)
  return Table(("prompt", *splits), rows)
