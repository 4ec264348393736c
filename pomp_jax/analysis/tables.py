"""Tables of an evaluation, in Markdown and in LaTeX, with published figures beside ours."""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
from typing import Any, NamedTuple

from pomp_jax.data.suites import GROUPS

_PUBLISHED = pathlib.Path(__file__).with_name("published.json")

_TITLES = {
  "top1": "Top-1 accuracy (%)",
  "base": "Top-1 accuracy on base classes (%)",
  "new": "Top-1 accuracy on new classes (%)",
  "novel": "Top-1 accuracy on novel classes (%)",
  "harmonic": "Harmonic mean of base and the other classes (%)",
}
_IMAGES = "images"
# Figures of one prompt on one set: heading, where they are in the results, factor.
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
)


class Row(NamedTuple):
  """A line of a table.

  Attributes:
    label: what it is about.
    values: one a column; None where there is no figure; integers are printed whole.
    source: number of the note that says where a published figure is from; 0: ours.
  """

  label: str
  values: tuple[float | int | None, ...]
  source: int = 0


class Table(NamedTuple):
  """A table: ours first, then what was published.

  Attributes:
    title: what its figures are.
    corner: what its lines are.
    columns: the heading of each column.
    rows: the lines.
    notes: sources of the published figures, in the order of their numbers.
    best: whether to set the highest figure of ours in each column in bold.
    digits: behind the point.
    images: how many each column's figures are of; None where it is no count. Empty: not said.
  """

  title: str
  corner: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]
  notes: tuple[str, ...] = ()
  best: bool = True
  digits: int = 1
  images: tuple[int | None, ...] = ()


def evaluation_tables(results: Mapping[str, Any]) -> list[Table]:
  """Accuracy of every prompt on every set beside published figures, and then all other figures.

  Args:
    results: of the `evaluate` job: `accuracy`, `images`, `published`, `missing` and `sets`.
  """
  tables = []
  for group, kinds in results["accuracy"].items():
    for kind, rows in kinds.items():
      columns = tuple(next(iter(rows.values())))
      ours = [
        Row(label, tuple(_times(value, 100.0) for value in row.values()))
        for label, row in rows.items()
      ]
      others, notes = _published(results["published"].get(group, {}).get(kind, {}), columns)
      counts = results["images"][group][kind]
      images = tuple(counts.get(column) for column in columns)
      rows_of_table = (*ours, *others)
      tables.append(
        Table(title_of(group, kind), "prompt", columns, rows_of_table, notes, images=images)
      )
  return [*tables, _details(results["sets"])]


def title_of(group: str, kind: str) -> str:
  """What a table, or a plot, of a group of sets is about."""
  return f"{_TITLES[kind]}: {GROUPS[group].title}"


def published(
  group: str, kind: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """What was published beside a table: method -> `source` and `figures` (column -> percent).

  Args:
    group: of the sets.
    kind: of the accuracy.
    rows: of the table; methods without a figure in one of their columns are left out.
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


def markdown(tables: Sequence[Table]) -> str:
  """The tables as a Markdown document."""
  parts = []
  for table in tables:
    bold = _bold(table)
    lines = [_line([table.corner, *table.columns]), _line(["---"] * (1 + len(table.columns)))]
    for r, row in enumerate(table.rows):
      label = _markdown_text(row.label) + (f" [{row.source}]" if row.source else "")
      cells = [
        f"**{text}**" if (r, c) in bold else text for c, text in enumerate(_cells(table, row))
      ]
      lines.append(_line([label, *cells]))
    if table.images:
      lines.append(_line([_IMAGES, *map(_cell, table.images)]))
    notes = "".join(f"\n[{i}] {note}  " for i, note in enumerate(table.notes, 1))
    published_notes = f"\n\nPublished figures, with ViT-B/16:  {notes}" if notes else ""
    parts.append(f"## {table.title}\n\n" + "\n".join(lines) + published_notes)
  return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
  r"""The tables for a LaTeX document that has `\usepackage{booktabs}`."""
  parts = []
  for table in tables:
    bold = _bold(table)
    head = " & ".join(map(_latex_text, [table.corner, *table.columns]))
    lines = []
    for r, row in enumerate(table.rows):
      if row.source and not table.rows[r - 1].source:
        lines.append(r"\midrule")
      mark = f"$^{{{row.source}}}$" if row.source else ""
      cells = [
        rf"\textbf{{{text}}}" if (r, c) in bold else text
        for c, text in enumerate(_cells(table, row))
      ]
      lines.append(" & ".join([_latex_text(row.label) + mark, *cells]) + r" \\")
    if table.images:
      lines += [r"\midrule", " & ".join([_IMAGES, *map(_cell, table.images)]) + r" \\"]
    caption = _latex_text(table.title) + (
      "; published figures with ViT-B/16." if table.notes else "."
    )
    notes = [
      rf"\par\footnotesize $^{{{i}}}$ {_latex_text(note)}" for i, note in enumerate(table.notes, 1)
    ]
    parts.append(
      "\n".join(
        [
          r"\begin{table}",
          r"\centering",
          rf"\caption{{{caption}}}",
          rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
          r"\toprule",
          rf"{head} \\",
          r"\midrule",
          *lines,
          r"\bottomrule",
          r"\end{tabular}",
          *notes,
          r"\end{table}",
        ]
      )
    )
  return "\n\n".join(parts) + "\n"


def _details(sets: Mapping[str, Any]) -> Table:
  rows = []
  for name, of_set in sets.items():
    for label, figures in of_set["prompts"].items():
      values = [_times(_find(figures, path), factor) for _, path, factor in _DETAILS]
      # Whatever is not the test images says so.
      shown = name if of_set["split"] == "test" else f"{name} ({of_set['split']})"
      rows.append((f"{shown}: {label}", values))
  kept = [c for c in range(len(_DETAILS)) if any(values[c] is not None for _, values in rows)]
  return Table(
    "Every figure (%; edges and heights in edges of WordNet's tree)"
    if any(path[0] in ("errors", "hierarchy") for path in (_DETAILS[c][1] for c in kept))
    else "Every figure (%)",
    "set: prompt",
    tuple(_DETAILS[c][0] for c in kept),
    tuple(Row(label, tuple(values[c] for c in kept)) for label, values in rows),
    best=False,
  )


def _published(
  methods: Mapping[str, Any], columns: Sequence[str]
) -> tuple[list[Row], tuple[str, ...]]:
  """Lines of the methods, and their sources."""
  rows, notes = [], []
  for name, method in methods.items():
    values = tuple(method["figures"].get(column) for column in columns)
    if method["source"] not in notes:
      notes.append(method["source"])
    rows.append(Row(name, values, 1 + notes.index(method["source"])))
  return rows, tuple(notes)


@functools.cache
def _content() -> dict[str, Any]:
  return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def _bold(table: Table) -> set[tuple[int, int]]:
  """Places of the highest figures of ours, where there are several to choose from."""
  ours = [r for r, row in enumerate(table.rows) if not row.source]
  places: set[tuple[int, int]] = set()
  if not table.best or len(ours) < 2:
    return places
  for c in range(len(table.columns)):
    shown = {r: float(_cells(table, table.rows[r])[c]) for r in ours}
    places |= {(r, c) for r, value in shown.items() if value == max(shown.values())}
  return places


def _find(figures: Mapping[str, Any], path: Sequence[str | int]) -> float | int | None:
  value: Any = figures
  for name in path:
    try:
      value = value[name]
    except KeyError:
      return None
  return value


def _times(value: float | int | None, factor: float | int) -> float | int | None:
  return None if value is None else factor * value


def _cells(table: Table, row: Row) -> list[str]:
  return [_cell(value, table.digits) for value in row.values]


def _cell(value: float | int | None, digits: int = 1) -> str:
  if value is None:
    return "-"
  return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _markdown_text(text: str) -> str:
  for letter in ("\\", "|", "*", "_", "`", "<", "["):
    text = text.replace(letter, f"\\{letter}")
  return text


def _latex_text(text: str) -> str:
  special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
  special |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
  return "".join(special.get(letter, letter) for letter in text)
