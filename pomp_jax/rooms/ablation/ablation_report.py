"""What an ablation leaves beside its cells: a table, plots, and a report."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from pomp_jax.files.run_folder import RunFolder
from pomp_jax.report.labels import counted, method_label
from pomp_jax.report.report import Report, Section, Table, failures, write_csv
from pomp_jax.rooms.ablation import plots, time_to_accuracy
from pomp_jax.rooms.ablation.seed_pairs import (
  Differences,
  differences_section,
  paired_differences,
)

# The split whose best line is marked, the first of these that there is.
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
_SWEEP, _COURSES = "sweep.png", "time_to_accuracy.png"


def write_cells(folder: RunFolder, results: Mapping[str, Any]) -> None:
  """Writes one or more cells as CSV and plots; accuracy against time where steps
  were timed."""
  cells, by_hand = results["cells"], _distinct_by_hand(results["cells"])
  fields = dict.fromkeys(field for cell in cells for field in cell["values"])
  figures = dict.fromkeys(name for cell in cells for name in plots.figures_of(cell))
  columns = (*fields, *figures, "error")
  rows = [
    cell["values"] | plots.figures_of(cell) | {"error": cell["error"]} for cell in cells
  ]
  write_csv(
    folder.path / "cells.csv", columns, ([row.get(x) for x in columns] for row in rows)
  )
  references = _references(by_hand[0][1]) if len(by_hand) == 1 else {}
  plots.sweep(folder.plots / _SWEEP, plots.groups(cells), references, _images(cells))
  found = time_to_accuracy.courses(cells, results.get("step_times", ()))
  if found:
    time_to_accuracy.plot(folder.plots / _COURSES, found, _images(cells))


def _references(
  by_hand: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
  """Figure -> label -> top-1 of one hand-written prompt: that of the highest mean
  over splits."""
  prompts = next(iter(by_hand.values()), {})
  mean_of = lambda prompt: sum(top1[prompt] for top1 in by_hand.values())
  best = max(prompts, key=mean_of, default=None)
  if best is None:
    return {}
  return {
    f"{split}_top1": {method_label(best): top1[best]} for split, top1 in by_hand.items()
  }


def ablation_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of an ablation: mean and spread of each kind of cell, every cell,
  failures."""
  cells = results["cells"]
  failed = [(cell["name"], cell["error"]) for cell in cells if cell["error"]]
  swept = list(dict.fromkeys(field for cell in cells for field in cell["values"]))
  images = ", ".join(f"{count} of {split}" for split, count in _images(cells).items())
  evaluated = f" Images evaluated: {images}." if images else ""
  figures = list(map(plots.figures_of, cells))
  names = list(dict.fromkeys(name for own in figures for name in own))
  rows = []
  for cell, own in zip(cells, figures, strict=True):
    shown = [
      f"{plots.scale_of(name) * own[name]:.1f}" if name in own else "-"
      for name in names
    ]
    rows.append(
      [*(plots.text_of(cell["values"].get(field)) for field in swept), *shown]
    )
  marks = ["failed" if cell["error"] else "" for cell in cells]
  differences = paired_differences(cells)
  text = f"Mean ± sample standard deviation over the seeds.{evaluated} {_COSTS}"
  sections = [
    Section("Summary", text, _summary(plots.groups(cells), differences), brief=True),
    *differences_section(differences),
    Section("Figures against the swept field", picture=_SWEEP),
    *_time_to_accuracy(results),
    Section(
      "Prompts written by hand", "Top-1 accuracy (%).", _by_hand(cells), brief=True
    ),
    Section("Cells", table=Table([*swept, *map(_heading, names)], rows, marks)),
    failures("Failed cells", "cell", failed),
    Section("Missing cells", ", ".join(results["missing"]) or "None."),
  ]
  n_seeds = len({cell["values"].get("seed") for cell in cells})
  text = f"{counted(len(cells), 'cell')}, {counted(n_seeds, 'seed')}."
  return Report(f"Ablation over {', '.join(swept)}", text, sections)


def _time_to_accuracy(results: Mapping[str, Any]) -> list[Section]:
  """When each kind of cell arrives; nothing without the times of steps."""
  found = time_to_accuracy.courses(results["cells"], results.get("step_times", ()))
  if not found:
    return []
  rows, figures = (
    [],
    dict.fromkeys(name for course in found for name in course.group.figures),
  )
  names = [name for name in figures if name not in plots.COSTS]
  for one in time_to_accuracy.arrivals(found):
    course = one.course
    splits = [_spread(course.group, name) for name in names]
    cost = [f"{1000 * course.step_seconds:.1f}", f"{course.start_seconds:.2f}"]
    when = ["not reached", "", "", ""]
    if one.step is not None:
      ratios = [
        "-" if r is None else f"{r:.1f}x" for r in (one.than_exact, one.than_uniform)
      ]
      when = [str(one.step), f"{one.seconds:.1f}", *ratios]
    rows.append([course.label, *splits, *cost, *when])
  columns = [
    "cells",
    *map(_heading, names),
    "step (ms)",
    "first bank (s)",
    "steps",
    "seconds",
  ]
  columns += ["faster than exact", "than the fastest uniform draw"]
  threshold = time_to_accuracy.threshold_of(found)
  text = _TIMES + (f" That is {100 * threshold:.1f}%." if threshold is not None else "")
  table = Table(columns, rows) if rows else None
  return [
    Section("Time to accuracy", text, table, brief=True),
    Section("Accuracy against seconds of training", picture=_COURSES),
  ]


def _images(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """How many images the accuracies are of, by split; several numbers where cells
  differ."""
  counts: dict[str, set[int]] = {}
  for cell in cells:
    of_curve = cell.get("curve", {}).get("images", {})
    for split, n in (of_curve | cell.get("images", {})).items():
      counts.setdefault(split, set()).add(n)
  return {
    split: " or ".join(f"{n:,}" for n in sorted(own)) for split, own in counts.items()
  }


def _distinct_by_hand(
  cells: Sequence[Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any]]]:
  """Top-1 of hand-written prompts, which depends on CLIP and classes; each with its
  first cell."""
  found: dict[str, tuple[str, Mapping[str, Any]]] = {}
  for cell in cells:
    if not cell["error"]:
      found.setdefault(json.dumps(cell["by_hand"]), (cell["name"], cell["by_hand"]))
  return list(found.values())


def _heading(name: str) -> str:
  return plots.COSTS.get(name) or f"{name.removesuffix('_top1')} top-1 (%)"


def _summary(of_cells: Sequence[plots.Group], differences: Differences) -> Table:
  """A row for each kind; bold where the paired difference to the first is above 0."""
  fields = list(dict.fromkeys(field for group in of_cells for field in group.values))
  names = list(dict.fromkeys(name for group in of_cells for name in group.figures))
  rows, marked = [], next((name for name in _MARKED if name in names), None)
  for group in of_cells:
    figures = [_spread(group, name) for name in names]
    rows.append(
      [*(plots.text_of(group.values.get(field)) for field in fields), *figures]
    )
  bold = [
    (row, len(fields) + names.index(name))
    for row, (_, own) in enumerate(differences, 1)
    for name, difference in own.items()
    if difference.interval and difference.interval[0] > 0
  ]
  means = [g.figures[marked].mean if marked in g.figures else -1.0 for g in of_cells]
  marks = ["best" if m == max(means) and m >= 0 else "" for m in means]
  return Table([*fields, *map(_heading, names)], rows, marks, bold)


def _spread(group: plots.Group, name: str) -> str:
  if name not in group.figures:
    return "-"
  found, scale = group.figures[name], plots.scale_of(name)
  text = f"{scale * found.mean:.1f}"
  if len(found.values) > 1:
    text += f" ± {scale * found.std:.1f}"
  return text + (f" ({group.failed} failed)" if group.failed else "")


def _by_hand(cells: Sequence[Mapping[str, Any]]) -> Table:
  found = _distinct_by_hand(cells)
  splits = list(dict.fromkeys(split for _, by_hand in found for split in by_hand))
  rows = []
  for cell, by_hand in found:
    where = f" ({cell} and similar)" if len(found) > 1 else ""
    for prompt in next(iter(by_hand.values()), {}):
      figures = [
        f"{100 * by_hand[s][prompt]:.1f}" if s in by_hand else "-" for s in splits
      ]
      rows.append([method_label(prompt) + where, *figures])
  return Table(("prompt", *splits), rows)
