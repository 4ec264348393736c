"""Tables of an evaluation in Markdown and LaTeX, with published figures beside ours."""

from collections.abc import Iterable, Mapping, Sequence
import functools
import json
import pathlib
from statistics import harmonic_mean
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.config.registry import GROUPS

_PUBLISHED = pathlib.Path(__file__).with_name("published.json")
_TITLES = {
  "top1": "Top-1 accuracy (%)",
  "base": "Top-1 accuracy on base classes (%)",
  "new": "Top-1 accuracy on new classes (%)",
  "novel": "Top-1 accuracy on novel classes (%)",
  "harmonic": "Harmonic mean of base and the other classes (%)",
}
# Parts of a set's classes that a prompt was not trained on: CoOp's half, or a user's list.
_OTHERS = ("new", "novel")
# Figures of one prompt on one set: heading, path in the results, factor.
_DETAILS = (
  ("images", ("images",), 1),
  ("top-1", ("top1",), 100.0),
  ("95% from", ("top1_interval", 0), 100.0),
  ("95% to", ("top1_interval", 1), 100.0),
  ("top-5", ("top5",), 100.0),
  ("macro top-1", ("macro_top1",), 100.0),
  ("ECE", ("ece",), 100.0),
  ("errors on a sibling", ("errors", "sibling"), 100.0),
  ("by chance", ("errors", "sibling_chance"), 100.0),
  ("edges of an error", ("errors", "mean_distance"), 1.0),
  ("hierarchical top-1", ("hierarchy", "top1"), 100.0),
  ("height of the common kind", ("hierarchy", "ancestor_height"), 1.0),
  ("difference", ("difference", "top1"), 100.0),
  ("difference from", ("difference", "interval", 0), 100.0),
  ("difference to", ("difference", "interval", 1), 100.0),
  ("p (%)", ("difference", "p_value"), 100.0),
)
_DIFFERENCE = (
  "difference: top-1 less that of the first prompt on the same images, with its 95% interval; p:"
  " McNemar's exact test."
)
# What is said of images that are no test images.
_REMARKS = {
  "train": "(train): training images of the set",
  "all": "(all): all images of a folder, none of which were held out",
}
_MARKDOWN_ESCAPES = {ord(letter): f"\\{letter}" for letter in "\\|*_`<["}
_LATEX_ESCAPES = {ord(letter): f"\\{letter}" for letter in "&%$#_{}"} | {
  ord("\\"): r"\textbackslash{}",
  ord("~"): r"\textasciitilde{}",
  ord("^"): r"\textasciicircum{}",
}


class SetFigures(NamedTuple):
  """Figures of one set."""

  group: str  # group of sets, a key of `config.registry.GROUPS`; a table each
  column: str  # heading of the set's column
  part: str  # part of its classes, "base", "new" or "novel"; "all"
  prompts: Mapping[str, Mapping[str, Any]]  # prompt -> figures of `metrics.Tally`
  split: str = "test"  # of its images


# Group -> kind -> prompt -> set, or the mean -> value.
AccuracyTables = dict[str, dict[str, dict[str, dict[str, Any]]]]


def accuracy_by_group(found: Sequence[SetFigures]) -> AccuracyTables:
  """Sorts top-1 by group and kind of accuracy, and adds means.

  Kinds: `top1`; for sets evaluated in parts `base`, `new` or `novel`, and their `harmonic` mean
  where a set has both. The harmonic mean of the means is that of the mean accuracies, as in CoCoOp.

  The mean over several sets is called "mean" if these are all sets of the group, else e.g. "mean of
  3".

  Returns:
    Fractions by group, kind, prompt and column.
  """
  tables = figure_by_group(found, "top1")
  for group, kinds in tables.items():
    others = next((kinds[part] for part in _OTHERS if part in kinds), None)
    if "base" in kinds and others is not None:
      harmonic = {
        label: _harmonic(group, row, others[label]) for label, row in kinds["base"].items()
      }
      if all(harmonic.values()):  # some set has both parts
        kinds["harmonic"] = harmonic
    for kind, rows in kinds.items():
      for label, row in rows.items():
        rows[label] = row if kind == "harmonic" else row | _mean(group, row)
  return tables


def figure_by_group(found: Sequence[SetFigures], figure: str) -> AccuracyTables:
  """Sorts one figure by group and kind; sets without it are skipped."""
  tables: AccuracyTables = {}
  for one in found:
    kind = "top1" if one.part == "all" else one.part
    rows = tables.setdefault(one.group, {}).setdefault(kind, {})
    for label, figures in one.prompts.items():
      if figure in figures:
        rows.setdefault(label, {})[one.column] = figures[figure]
  return tables


def counts_by_group(
  found: Sequence[SetFigures], figure: str
) -> dict[str, dict[str, dict[str, int]]]:
  """Counts what is behind each figure of `accuracy_by_group`: group -> kind -> set -> count.

  A harmonic mean counts those of both parts.

  Args:
    found: figures of the sets.
    figure: "images" or "classes".
  """
  tables = {
    group: {kind: next(iter(rows.values())) for kind, rows in kinds.items()}
    for group, kinds in figure_by_group(found, figure).items()
  }
  for kinds in tables.values():
    others = next((kinds[part] for part in _OTHERS if part in kinds), {})
    both = {c: n + others[c] for c, n in kinds.get("base", {}).items() if c in others}
    if both:
      kinds["harmonic"] = both
  return tables


def _harmonic(
  group: str, base: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
  # float: the mean of 0 and another number is the int 0.
  row = {c: float(harmonic_mean((value, other[c]))) for c, value in base.items() if c in other}
  if base.keys() == other.keys():  # else the means are over different sets
    new = _mean(group, other)
    means = _mean(group, base).items()
    row |= {name: float(harmonic_mean((value, new[name]))) for name, value in means}
  return row


def _mean(group: str, row: Mapping[str, float]) -> dict[str, float]:
  """Returns the mean over a row's sets by its name; nothing for one set or a group without mean."""
  if not GROUPS[group].mean or len(row) < 2:
    return {}
  name = "mean" if row.keys() == set(GROUPS[group].sets) else f"mean of {len(row)}"
  return {name: float(np.mean(list(row.values())))}


class Row(NamedTuple):
  """A line of a table."""

  label: str
  values: tuple[float | int | None, ...]  # one a column; integers are printed without decimals
  source: int = 0  # number of the note with the source of a published figure; 0 for our own
  ends: tuple[Sequence[float] | None, ...] = ()  # of the interval of each value; () for none


class Table(NamedTuple):
  """A table with our own lines first, then published ones."""

  title: str
  corner: str  # heading of the labels
  columns: tuple[str, ...]
  rows: tuple[Row, ...]
  notes: tuple[str, ...] = ()  # sources of the published figures, by number
  best: bool = True  # whether our highest figure of each column is bold
  digits: int = 1  # decimals
  images: tuple[int | None, ...] = ()  # number of images behind each column; () for no such line
  remarks: tuple[str, ...] = ()  # sentences below the table


def evaluation_tables(results: Mapping[str, Any]) -> list[Table]:
  """Builds a table of accuracies for each group and kind, and one with all other figures.

  Args:
    results: results of the `evaluate` job: `accuracy`, `intervals`, `images`, `splits`,
      `published`, `sets`.
  """
  tables = []
  for group, kinds in results["accuracy"].items():
    for kind, accuracy in kinds.items():
      columns = tuple(next(iter(accuracy.values())))
      methods = results["published"].get(group, {}).get(kind, {})
      notes = tuple(dict.fromkeys(method["source"] for method in methods.values()))
      counts = results["images"][group][kind]
      intervals = results["intervals"].get(group, {}).get(kind, {})
      splits = results["splits"].get(group, {})
      rows = [
        *(
          Row(
            label,
            tuple(100 * v for v in row.values()),
            ends=percents([intervals.get(label, {}).get(column) for column in columns]),
          )
          for label, row in accuracy.items()
        ),
        *(
          Row(name, tuple(map(method["figures"].get, columns)), 1 + notes.index(method["source"]))
          for name, method in methods.items()
        ),
      ]
      images = tuple(map(counts.get, columns))
      title = title_of(group, kind)
      shown = tuple(marked(column, splits.get(column, "test")) for column in columns)
      remarks = remark(splits[column] for column in columns if column in splits)
      tables.append(
        Table(title, "prompt", shown, tuple(rows), notes, images=images, remarks=remarks)
      )
  return [*tables, _details(results["sets"])]


def marked(name: str, split: str) -> str:
  """A set's name; with the split in brackets if its images are no test images."""
  return name if split == "test" else f"{name} ({split})"


def remark(splits: Iterable[str]) -> tuple[str, ...]:
  """Says what the marks of images mean that a prompt may have been trained on."""
  found = [_REMARKS[name] for name in dict.fromkeys(splits) if name in _REMARKS]
  return tuple(f"{text}. A prompt that was trained on them has seen them." for text in found)


def percents(ends: Sequence[Sequence[float] | None]) -> tuple[Sequence[float] | None, ...]:
  """Intervals of fractions as `Row.ends`."""
  return tuple(None if pair is None else [100 * end for end in pair] for pair in ends)


def title_of(group: str, kind: str) -> str:
  """Returns the title of a table or plot of a group of sets."""
  return f"{_TITLES[kind]}: {GROUPS[group].title}"


def published(
  group: str, kind: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Returns published figures for a table: method -> `source` and `figures` (column -> percent).

  Methods without a figure in one of the columns of `rows` are skipped.
  """
  content, columns = _content(), {column for row in rows.values() for column in row}
  return {
    method["name"]: {
      "source": content["sources"][method["source"]],
      "figures": method["figures"][group][kind],
    }
    for method in content["methods"]
    if columns & set(method["figures"].get(group, {}).get(kind, {}))
  }


@functools.cache
def _content() -> dict[str, Any]:
  return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def _details(sets: Mapping[str, Any]) -> Table:
  rows = []
  for name, of_set in sets.items():
    shown = marked(name, of_set["split"])
    for label, figures in of_set["prompts"].items():
      rows.append((f"{shown}: {label}", [_at_path(figures, *detail[1:]) for detail in _DETAILS]))
  used = [c for c in range(len(_DETAILS)) if any(values[c] is not None for _, values in rows)]
  on_tree = any(_DETAILS[c][1][0] in ("errors", "hierarchy") for c in used)
  units = "%; edges and heights in edges of WordNet's tree" if on_tree else "%"
  return Table(
    f"Every figure ({units})",
    "set: prompt",
    tuple(_DETAILS[c][0] for c in used),
    tuple(Row(label, tuple(values[c] for c in used)) for label, values in rows),
    best=False,
    remarks=(
      *([_DIFFERENCE] if "difference" in (_DETAILS[c][0] for c in used) else []),
      *remark(of_set["split"] for of_set in sets.values()),
    ),
  )


def _at_path(
  figures: Mapping[str, Any], path: Sequence[str | int], factor: float | int
) -> float | int | None:
  value: Any = figures
  try:
    for name in path:
      value = value[name]
  except (KeyError, IndexError):
    return None
  return factor * value


def markdown(tables: Sequence[Table]) -> str:
  """Formats tables as a Markdown document."""
  parts = []
  for table in tables:
    head = [table.corner, *table.columns]
    lines = [head, ["---"] * len(head)]
    for row, cells in zip(table.rows, _cells(table, "**{}**"), strict=True):
      source = f" [{row.source}]" if row.source else ""
      lines.append([row.label.translate(_MARKDOWN_ESCAPES) + source, *cells])
    if table.images:
      lines.append(["images", *map(cell, table.images)])
    notes = "".join(f"\n[{i}] {note}  " for i, note in enumerate(table.notes, 1))
    published_notes = f"\n\nPublished figures, with ViT-B/16:  {notes}" if notes else ""
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    remarks = "".join(f"\n\n{text}" for text in table.remarks)
    parts.append(f"## {table.title}\n\n{body}{remarks}{published_notes}")
  return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
  r"""Formats tables for a LaTeX document with `\usepackage{booktabs}`."""
  parts = []
  for table in tables:
    lines = []
    for r, (row, cells) in enumerate(zip(table.rows, _cells(table, r"\textbf{{{}}}"), strict=True)):
      if row.source and not table.rows[r - 1].source:
        lines.append(r"\midrule")
      mark = f"$^{{{row.source}}}$" if row.source else ""
      lines.append(_latex_line([row.label.translate(_LATEX_ESCAPES) + mark, *cells]))
    if table.images:
      lines += [r"\midrule", _latex_line(["images", *map(cell, table.images)])]
    end = "; published figures with ViT-B/16." if table.notes else "."
    end += "".join(f" {text.translate(_LATEX_ESCAPES)}" for text in table.remarks)
    notes = "".join(
      rf"\par\footnotesize $^{{{i}}}$ {note.translate(_LATEX_ESCAPES)}" + "\n"
      for i, note in enumerate(table.notes, 1)
    )
    head = [text.translate(_LATEX_ESCAPES) for text in (table.corner, *table.columns)]
    body = "\n".join([_latex_line(head), r"\midrule", *lines])
    parts.append(
      rf"""\begin{{table}}
\centering
\caption{{{table.title.translate(_LATEX_ESCAPES)}{end}}}
\begin{{tabular}}{{l{"r" * len(table.columns)}}}
\toprule
{body}
\bottomrule
\end{{tabular}}
{notes}\end{{table}}"""
    )
  return "\n\n".join(parts) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
  return f"{' & '.join(cells)} \\\\"


def row_cells(row: Row, digits: int, shown: Sequence[str] | None = None) -> list[str]:
  """Formats the values of a row, or takes those `shown`, and appends their intervals."""
  shown = shown or [cell(value, digits) for value in row.values]
  ends = row.ends or [None] * len(shown)
  return [
    text if pair is None else f"{text} ({pair[0]:.{digits}f} to {pair[1]:.{digits}f})"
    for text, pair in zip(shown, ends, strict=True)
  ]


def _cells(table: Table, bold: str) -> list[list[str]]:
  """Formats all values; our highest of each column, among several, with the format `bold`."""
  cells = [[cell(value, table.digits) for value in row.values] for row in table.rows]
  ours = [r for r, row in enumerate(table.rows) if not row.source]
  if table.best and len(ours) > 1:
    for c in range(len(table.columns)):
      shown = {r: float(cells[r][c]) for r in ours}
      for r, value in shown.items():
        if value == max(shown.values()):
          cells[r][c] = bold.format(cells[r][c])
  return [row_cells(row, table.digits, own) for row, own in zip(table.rows, cells, strict=True)]


def cell(value: float | int | None, digits: int = 1) -> str:
  """Formats a value: integers without decimals, None as a dash."""
  if value is None:
    return "-"
  return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
