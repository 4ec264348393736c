"""An evaluation in figures: accuracy by group of sets, and the report."""

from collections.abc import Iterable, Mapping, Sequence
import functools
import operator
from statistics import harmonic_mean
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.hooks import BY_CLASS, SUITES
from pomp_jax.registry import WORLD
from pomp_jax.report import report
from pomp_jax.report.intervals import bootstrap
from pomp_jax.report.labels import counted

_TITLES = {
  "top1": "Top-1 accuracy (%)",
  "base": "Top-1 accuracy on base classes (%)",
  "new": "Top-1 accuracy on new classes (%)",
  "novel": "Top-1 accuracy on novel classes (%)",
  "harmonic": "Harmonic mean of base and the other classes (%)",
}
# Parts of a set's classes that a prompt was not trained on: CoOp's half, or a user's
# list.
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
_BOLD = (
  "Bold: above the first prompt on the same images,"
  " by the 95% interval of the paired difference."
)
OWN = "own"  # group of a user's own sets, and of the data set in `config.data`
_REMARKS = {  # on images that are no test images
  "train": "(train): training images of the set",
  "all": "(all): all images of a folder, none of which were held out",
}


class Group(NamedTuple):
  """Data sets of one table."""

  title: str
  sets: tuple[str, ...] = ()  # all sets of the group; a "mean" is over all of them
  mean: bool = True  # whether to average over the sets
  # readers whose images are those of the published figures
  readers: tuple[str, ...] = ()


def group_of(name: str) -> Group:
  """The table of a group of sets: a user's own, the world's, or one of the room of
  named sets."""
  own = {OWN: Group("own sets"), WORLD: Group("embedded world", mean=False)}
  return own.get(name) or Group(*SUITES.open().GROUPS[name])


class SetFigures(NamedTuple):
  """Figures of one set under each prompt."""

  group: str  # group of sets, see `group_of`; a table each
  column: str  # heading of the set's column
  part: str  # part of its classes, "base", "new" or "novel"; "all"
  prompts: Mapping[str, Mapping[str, Any]]  # prompt -> figures of `metrics.Tally`
  split: str = "test"  # of its images

  @property
  def kind(self) -> str:
    """Kind of the accuracy, see `accuracy_by_group`."""
    return "top1" if self.part == "all" else self.part


# Group -> kind -> prompt -> set, or the mean -> value.
AccuracyTables = dict[str, dict[str, dict[str, dict[str, Any]]]]


def accuracy_by_group(found: Sequence[SetFigures]) -> AccuracyTables:
  """Sorts top-1 by group and kind of accuracy, and adds means; fractions.

  Kinds: `top1`; for sets evaluated in parts `base`, `new` or `novel`, and their
  `harmonic` mean where a set has both. The harmonic mean of the means is that of the
  mean accuracies, as in CoCoOp. The mean is called "mean" if it is over all sets of the
  group, else e.g. "mean of 3".
  """
  tables = figure_by_group(found, "top1")
  for group, kinds in tables.items():
    base, others = (
      kinds.get("base", {}),
      next((kinds[p] for p in _OTHERS if p in kinds), {}),
    )
    harmonic = {
      name: _harmonic(group, base[name], others[name]) for name in base if others
    }
    for rows in kinds.values():
      rows |= {label: row | _mean(group, row) for label, row in rows.items()}
    if harmonic and all(harmonic.values()):  # some set has both parts
      kinds["harmonic"] = harmonic
  return tables


def comparisons_by_group(
  found: Sequence[SetFigures], accuracy: AccuracyTables
) -> tuple[AccuracyTables, AccuracyTables]:
  """95% intervals of all values of `accuracy_by_group`, and differences to the first
  prompt.

  Those of single sets are of the sets' figures, Wilson's and Agresti and Min's; those
  of means by `bootstrap`. A difference has `top1` and `interval`; the first prompt has
  none.
  """
  intervals: AccuracyTables = {}
  differences: AccuracyTables = {}
  for group, kinds in accuracy.items():
    intervals[group], differences[group] = {}, {}
    others = next((part for part in _OTHERS if part in kinds), "")
    for kind, rows in kinds.items():
      parts = ("base", others) if kind == "harmonic" else (kind,)
      intervals[group][kind], differences[group][kind] = {}, {}
      for label, row in rows.items():
        compared = {
          column: _compared(
            [_figures_behind(found, group, part, label, column) for part in parts]
          )
          for column in row
        }
        intervals[group][kind][label] = {
          c: one["interval"] for c, one in compared.items()
        }
        differences[group][kind][label] = {
          c: one["difference"] for c, one in compared.items() if "difference" in one
        }
  return intervals, differences


def _figures_behind(
  found: Sequence[SetFigures], group: str, kind: str, label: str, column: str
) -> list[Mapping[str, Any]]:
  """Figures of a prompt on the set of a column; on all sets of its table where it is
  a mean."""
  sets = {
    one.column: one.prompts[label]
    for one in found
    if (one.group, one.kind) == (group, kind) and label in one.prompts
  }
  return [sets[column]] if column in sets else list(sets.values())


def _compared(parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """Interval and difference of a single set's figures; else as `bootstrap`."""
  if len(parts) > 1 or len(parts[0]) > 1:
    return bootstrap(parts)
  figures = parts[0][0]
  difference = {"difference": figures["difference"]} if "difference" in figures else {}
  return {"interval": figures["top1_interval"], **difference}


def figure_by_group(found: Sequence[SetFigures], figure: str) -> AccuracyTables:
  """Sorts one figure by group and kind; sets without it are skipped."""
  tables: AccuracyTables = {}
  for one in found:
    rows = tables.setdefault(one.group, {}).setdefault(one.kind, {})
    for label, figures in one.prompts.items():
      if figure in figures:
        rows.setdefault(label, {})[one.column] = figures[figure]
  return tables


def counts_by_group(
  found: Sequence[SetFigures], figure: str
) -> dict[str, dict[str, Any]]:
  """Counts the "images" or "classes" behind each accuracy; those of both parts of a
  harmonic."""
  tables = {}
  for group, kinds in figure_by_group(found, figure).items():
    counts = {kind: next(iter(rows.values())) for kind, rows in kinds.items()}
    others = next((counts[part] for part in _OTHERS if part in counts), {})
    both = {c: n + others[c] for c, n in counts.get("base", {}).items() if c in others}
    tables[group] = counts | ({"harmonic": both} if both else {})
  return tables


def _harmonic(
  group: str, base: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
  # float: the mean of 0 and another number is the int 0.
  row = {
    c: float(harmonic_mean((value, other[c])))
    for c, value in base.items()
    if c in other
  }
  if base.keys() == other.keys():  # else the means are over different sets
    new = _mean(group, other)
    means = _mean(group, base).items()
    row |= {name: float(harmonic_mean((value, new[name]))) for name, value in means}
  return row


def _mean(group: str, row: Mapping[str, float]) -> dict[str, float]:
  """Returns the mean over a row's sets by its name; nothing for one set or a group
  without mean."""
  if not group_of(group).mean or len(row) < 2:
    return {}
  name = "mean" if row.keys() == set(group_of(group).sets) else f"mean of {len(row)}"
  return {name: float(np.mean(list(row.values())))}


def title_of(group: str, kind: str) -> str:
  """Returns the title of a table or plot of a group of sets."""
  return f"{_TITLES[kind]}: {group_of(group).title}"


def evaluation_report(
  results: Mapping[str, Any], _: Mapping[str, Any]
) -> report.Report:
  """Report of an evaluation: a table and a plot for each group of sets, and every
  figure."""
  labels, sets = report.short_labels(results["prompts"]), results["sets"]
  summaries = {name: of["by_class"] for name, of in sets.items() if of.get("by_class")}
  sections = [
    report.prompts_section(results["prompts"], labels),
    *_missing(results),
    *(
      _accuracy(results, group, kind, labels)
      for group, kinds in results["accuracy"].items()
      for kind in kinds
    ),
    report.Section("Calibration", picture="calibration.png"),
    *(BY_CLASS.open().sections(summaries, labels) if BY_CLASS else ()),
    _details(sets, labels),
  ]
  images = sum(next(iter(of["prompts"].values()))["images"] for of in sets.values())
  unreadable = sum(of["unreadable"] for of in sets.values())
  data = counted(len(sets), "data set")
  text = f"{counted(len(labels), 'prompt')} on {data}, {counted(images, 'image')} in all, CLIP"
  text += f" {results['clip_model']}."
  if unreadable:
    text += f" {counted(unreadable, 'image')} could not be read and were skipped."
  if turned := results.get("turned_otherwise"):
    did = "were turned" if turned["upright"] else "were not turned"
    other = "did not turn its pictures" if turned["upright"] else "turned its pictures"
    text += (
      f" Images {did} as their EXIF orientation says, but the training of"
      f" {', '.join(turned['prompts'])} {other}: data.upright={not turned['upright']} does as it."
    )
  return report.Report(f"Evaluation on {data}", text, sections)


def _missing(results: Mapping[str, Any]) -> list[report.Section]:
  """Names the sets that are missing, and counts the classes that have no image in a
  set."""
  missing = results["missing"]
  lines = [f"{len(missing)} sets are missing: {', '.join(missing)}"] if missing else []
  lines += [
    f"{name}: {of['missing_classes']} of the {of['listed_classes']} classes in its list have no"
    " image"
    for name, of in results["sets"].items()
    if of.get("missing_classes")
  ]
  table = report.Table(("set", "reason"), list(missing.items())) if missing else None
  title = "Missing sets and classes"
  return [report.Section(title, table=table, notes=lines, brief=True)] * bool(lines)


def _accuracy(
  results: Mapping[str, Any], group: str, kind: str, labels: Mapping[str, str]
) -> report.Section:
  """Accuracies of a group of sets, ours first, then published ones, and the numbers
  of images."""
  accuracy = results["accuracy"][group][kind]
  columns = list(next(iter(accuracy.values())))
  methods = results["published"].get(group, {}).get(kind, {})
  sources = list(dict.fromkeys(method["source"] for method in methods.values()))
  intervals, differences = (
    results.get(name, {}).get(group, {}).get(kind, {})
    for name in ("intervals", "differences")
  )
  splits = results["splits"].get(group, {})
  ours = [
    [
      labels[label],
      *(report.percent(row[c], intervals.get(label, {}).get(c)) for c in columns),
    ]
    for label, row in accuracy.items()
  ]
  bold = [
    (row, 1 + columns.index(column))
    for row, label in enumerate(accuracy)
    for column, one in differences.get(label, {}).items()
    if one["interval"][0] > 0
  ]
  theirs = []
  for name, one in methods.items():
    figures = [report.cell(one["figures"].get(column)) for column in columns]
    theirs.append([f"{name} [{1 + sources.index(one['source'])}]", *figures])
  counts = results["images"][group][kind]
  has_means = kind == "harmonic" or not set(columns) <= set(splits)
  text = [report.INTERVAL_OF_MEANS if has_means else report.INTERVAL]
  text += [_BOLD] if len(ours) > 1 else []
  text += remarks(splits[column] for column in columns if column in splits)
  text += ["Published figures are with ViT-B/16."] if theirs else []
  table = report.Table(
    ("prompt", *(_marked(column, splits.get(column, "test")) for column in columns)),
    [*ours, *theirs, ["images", *(report.cell(counts.get(c)) for c in columns)]],
    [*[""] * len(ours), *["published"] * len(theirs), "images"],
    bold,
  )
  notes = [f"[{i}] {source}" for i, source in enumerate(sources, 1)]
  picture = f"accuracy_{group}_{kind}.png"
  return report.Section(
    title_of(group, kind), " ".join(text), table, picture, notes, brief=True
  )


def _marked(name: str, split: str) -> str:
  """A set's name; with the split in brackets if its images are no test images."""
  return name if split == "test" else f"{name} ({split})"


def remarks(splits: Iterable[str]) -> list[str]:
  """Sentences on images that a prompt may have been trained on, by their splits."""
  found = [_REMARKS[name] for name in dict.fromkeys(splits) if name in _REMARKS]
  return [f"{text}. A prompt that was trained on them has seen them." for text in found]


def _details(sets: Mapping[str, Any], labels: Mapping[str, str]) -> report.Section:
  """Every figure of each prompt on each set, without the columns that are empty."""
  shown, found = [], []
  for name, of_set in sets.items():
    for label, figures in of_set["prompts"].items():
      shown.append(f"{_marked(name, of_set['split'])}: {labels[label]}")
      found.append(
        [report.cell(_at(figures, path, factor)) for _, path, factor in _DETAILS]
      )
  columns = zip(_DETAILS, zip(*found, strict=True), strict=True)
  used = {detail: column for detail, column in columns if set(column) != {"-"}}
  on_tree = any(path[0] in ("errors", "hierarchy") for _, path, _ in used)
  units = "%; edges and heights in edges of WordNet's tree" if on_tree else "%"
  heads = ["set: prompt", *(head for head, _, _ in used)]
  text = [_DIFFERENCE] if "difference" in heads else []
  text += remarks(of_set["split"] for of_set in sets.values())
  table = report.Table(heads, list(zip(shown, *used.values(), strict=True)))
  return report.Section(
    f"Every figure ({units})", " ".join(text), table, folded=True, brief=True
  )


def _at(
  figures: Any, path: Sequence[str | int], factor: float | int
) -> float | int | None:
  """A figure at a path, times a factor; None if it is missing."""
  try:
    return factor * functools.reduce(operator.getitem, path, figures)
  except (KeyError, IndexError):
    return None
