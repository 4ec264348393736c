"""What an ablation leaves beside its cells: a table, a plot, and a page with everything."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from pomp_jax.ablation.grid import text_of
from pomp_jax.analysis import time_to_accuracy
from pomp_jax.analysis.ablation import COSTS, Group, csv_text, figures_of, groups, sweep
from pomp_jax.analysis.html_report import Grid, Report, Section, write_run_report
from pomp_jax.analysis.labels import counted, method_label
from pomp_jax.config import Settings
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder

# The split whose best line is marked, the first of these that there is.
_MARKED = ("novel_top1", "new_top1", "test_top1", "base_top1")


def write_outcome(config: Settings, folder: RunFolder, results: Mapping[str, Any]) -> None:
  """Writes `cells.csv`, `plots/sweep.png` and `report.html`, and the plot of time to accuracy.

  Args:
    config: of the ablation.
    folder: of the run.
    results: `cells`, one or more, and what `results.json` holds beside them, with its provenance.
  """
  cells = results["cells"]
  with replacing(folder.path / "cells.csv") as file:
    file.write(csv_text(cells).encode())
  plot = folder.plots / "sweep.png"
  of_cells = groups(cells)
  sweep(plot, of_cells, _references(cells), _images(cells))
  n_seeds = len({cell["values"].get("seed") for cell in cells})
  failed = [cell for cell in cells if cell["error"]]
  fields = list(dict.fromkeys(field for cell in cells for field in cell["values"]))
  sections = [
    Section(
      "Summary",
      f"Mean ± sample standard deviation over the seeds. {_images_text(cells)} {_REMARK}",
      _summary(of_cells),
    ),
    Section("Plot", picture=plot, caption="Figures against the swept field"),
    *_time_to_accuracy(folder, results),
    Section("Prompts written by hand", "Top-1 accuracy (%).", _by_hand(cells)),
    Section("Cells", table=_all(cells, fields)),
    Section("Failed cells", "" if failed else "None.", _failed(failed)),
    Section("Missing cells", ", ".join(results["missing"]) or "None."),
  ]
  title = f"Ablation over {', '.join(fields)}"
  text = f"{counted(len(cells), 'cell')}, {counted(n_seeds, 'seed')}."
  write_run_report(folder, config, results, Report(title, text, sections))


_REMARK = (
  "Training time is a cell's share of the steps of the program that trained it, memory its share"
  " of that program's temporaries; rendering, features of images and compilation are shared and"
  " not in them."
)


_TIMES = (
  "Seconds are steps times the median seconds of a step of a cell trained alone, without the image"
  " tower, and the first bank; kinds of cells are timed in turn. A kind arrives when its validation"
  " accuracy (images of the training classes, mean over the seeds) is at least the exact contrast's"
  " after the last step less its standard deviation."
)


def _time_to_accuracy(folder: RunFolder, results: Mapping[str, Any]) -> list[Section]:
  """Sections of the report; none without the times of steps."""
  found = time_to_accuracy.courses(results["cells"], results.get("step_times", ()))
  if not found:
    return []
  picture = folder.plots / "time_to_accuracy.png"
  time_to_accuracy.plot(picture, found, _images(results["cells"]))
  rows = []
  for one in time_to_accuracy.arrivals(found):
    course, figures = one.course, one.course.group.figures
    splits = [_spread(course.group, name) for name in figures if name not in COSTS]
    cost = [f"{1000 * course.step_seconds:.1f}", f"{course.start_seconds:.2f}"]
    if one.step is None:
      rows.append([course.label, *splits, *cost, "not reached", "", "", ""])
      continue
    ratios = ["-" if r is None else f"{r:.1f}x" for r in (one.than_exact, one.than_uniform)]
    rows.append([course.label, *splits, *cost, str(one.step), f"{one.seconds:.1f}", *ratios])
  names = [_heading(name) for name in found[0].group.figures if name not in COSTS]
  columns = ["cells", *names, "step (ms)", "first bank (s)", "steps", "seconds"]
  columns += ["faster than exact", "than the fastest uniform draw"]
  threshold = time_to_accuracy.threshold_of(found)
  text = _TIMES + (f" That is {100 * threshold:.1f}%." if threshold is not None else "")
  return [
    Section("Time to accuracy", text, Grid(columns, rows) if rows else None),
    Section("Accuracy against time", picture=picture, caption="Accuracy against seconds"),
  ]


def _images(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
  """How many images the accuracies are of, by split; several numbers where cells differ."""
  counts: dict[str, set[int]] = {}
  for cell in cells:
    of_curve = cell.get("curve", {}).get("images", {})
    for split, n in (of_curve | cell.get("images", {})).items():
      counts.setdefault(split, set()).add(n)
  return {split: sorted(own) for split, own in counts.items()}


def _images_text(cells: Sequence[Mapping[str, Any]]) -> str:
  parts = [f"{' or '.join(f'{n:,}' for n in own)} of {s}" for s, own in _images(cells).items()]
  return f"Images evaluated: {', '.join(parts)}." if parts else ""


def _references(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """The better hand-written prompt, for the plot; none where cells differ in theirs."""
  found = _distinct_by_hand(cells)
  if len(found) != 1:
    return {}
  ((_, by_hand),) = found
  best = {split: max(top1, key=top1.get) for split, top1 in by_hand.items()}
  return {
    f"{split}_top1": {method_label(name): by_hand[split][name]} for split, name in best.items()
  }


def _distinct_by_hand(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
  """What prompts written by hand reach, each outcome once with the first cell that has it.

  Cells with other CLIPs or classes have others.
  """
  found: dict[str, tuple[str, Mapping[str, Any]]] = {}
  for cell in cells:
    if not cell["error"]:
      found.setdefault(json.dumps(cell["by_hand"]), (cell["name"], cell["by_hand"]))
  return list(found.values())


def _heading(name: str) -> str:
  return COSTS.get(name) or f"{name.removesuffix('_top1')} top-1 (%)"


def _summary(of_cells: Sequence[Group]) -> Grid:
  fields = list(dict.fromkeys(field for group in of_cells for field in group.values))
  names = list(dict.fromkeys(name for group in of_cells for name in group.figures))
  rows, marked = [], next((name for name in _MARKED if name in names), None)
  for group in of_cells:
    figures = [_spread(group, name) for name in names]
    rows.append([*(text_of(group.values.get(field)) for field in fields), *figures])
  means = [g.figures[marked].mean if marked in g.figures else -1.0 for g in of_cells]
  classes = ["best" if m == max(means) and m >= 0 else "" for m in means]
  return Grid([*fields, *map(_heading, names)], rows, classes)


def _spread(group: Group, name: str) -> str:
  if name not in group.figures:
    return "-"
  found, scale = group.figures[name], 1.0 if name in COSTS else 100.0
  text = f"{scale * found.mean:.1f}"
  if len(found.values) > 1:
    text += f" ± {scale * found.std:.1f}"
  return text + (f" ({group.failed} failed)" if group.failed else "")


def _by_hand(cells: Sequence[Mapping[str, Any]]) -> Grid:
  found = _distinct_by_hand(cells)
  splits = list(dict.fromkeys(split for _, by_hand in found for split in by_hand))
  rows = []
  for cell, by_hand in found:
    where = f" ({cell} and similar)" if len(found) > 1 else ""
    for prompt in next(iter(by_hand.values()), {}):
      figures = [f"{100 * by_hand[s][prompt]:.1f}" if s in by_hand else "-" for s in splits]
      rows.append([method_label(prompt) + where, *figures])
  return Grid(("prompt", *splits), rows)


def _all(cells: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Grid:
  names = list(dict.fromkeys(name for cell in cells for name in figures_of(cell)))
  rows = []
  for cell in cells:
    own = figures_of(cell)
    figures = [
      f"{(1 if name in COSTS else 100) * own[name]:.1f}" if name in own else "-" for name in names
    ]
    rows.append([*(text_of(cell["values"].get(field)) for field in fields), *figures])
  classes = ["failed" if cell["error"] else "" for cell in cells]
  return Grid([*fields, *map(_heading, names)], rows, classes)


def _failed(cells: Sequence[Mapping[str, Any]]) -> Grid | None:
  rows = [(cell["name"], cell["error"]) for cell in cells]
  return Grid(("cell", "error"), rows, ["failed"] * len(rows)) if rows else None
