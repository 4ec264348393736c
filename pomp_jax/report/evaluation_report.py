"""An evaluation in figures: accuracy by group of sets, and the report."""

from collections.abc import Iterable, Mapping, Sequence
import functools
import operator
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.hooks import BY_CLASS, SUITES
from pomp_jax.registry import WORLD
from pomp_jax.report import report
from pomp_jax.report.bootstrap import bootstrap
from pomp_jax.report.harmonic_mean import harmonic_mean
from pomp_jax.report.labels import counted

_TITLES = {
  "top1": "Top-1 accuracy (%)",
  "base": "Top-1 accuracy on base classes (%)",
  "new": "Top-1 accuracy on new classes (%)",
  "novel": "Top-1 accuracy on novel classes (%)",
  "harmonic": "Harmonic mean of base and the other classes (%)",
}
# Parts of a set's classes that a prompt was not trained on: CoOp's half, or a user's
# list. A set has at most one of them.
_UNSEEN = ("new", "novel")
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
_REMARKS = {  # split -> remark on images that are no test images
  "train": "(train): training images of the set",
  "all": "(all): all images of a folder, none of which were held out",
}


class Group(NamedTuple):
  """Data sets of one table."""

  title: str
  sets: tuple[str, ...] = ()  # all sets of the group; a "mean" is over all of them
  mean: bool = True  # whether to average over the sets
  # Readers whose images are those of the published figures.
  readers: tuple[str, ...] = ()


def group_of(name: str) -> Group:
  """Returns the group of a name: a user's own sets, the world, or a named suite."""
  if name == OWN:
    return Group("own sets")
  if name == WORLD:
    return Group("embedded world", mean=False)
  return Group(*SUITES.open().GROUPS[name])


class SetFigures(NamedTuple):
  """Figures of one set under each prompt."""

  group: str  # group of sets, see `group_of`; each group has tables of its own
  column: str  # heading of the set's column
  part: str  # part of the set's classes: "base", "new" or "novel"; or "all"
  prompts: Mapping[str, Mapping[str, Any]]  # prompt -> figures of `metrics.Tally`
  split: str = "test"  # split of the set's images

  @property
  def kind(self) -> str:
    """Kind of the accuracy, see `accuracy_by_group`."""
    if self.part == "all":
      return "top1"
    return self.part


# Group -> kind -> prompt -> set, or the mean -> value.
AccuracyTables = dict[str, dict[str, dict[str, dict[str, Any]]]]


def accuracy_by_group(sets: Sequence[SetFigures]) -> AccuracyTables:
  """Sorts top-1 accuracies (fractions) by group and kind, and adds means over sets.

  Kinds: `top1` for sets with all classes; `base`, and `new` or `novel`, for parts of
  the classes; `harmonic`, the harmonic mean of base and the other part, if a set has
  both. In a column of means the harmonic mean is that of the two mean accuracies, as in
  CoCoOp. The column is "mean" if all sets of the group are in it, otherwise such as
  "mean of 3".
  """
  tables = figure_by_group(sets, "top1")
  for group, kinds in tables.items():
    base = kinds.get("base", {})
    unseen = kinds.get(_unseen_part(kinds), {})
    harmonic = {}
    if unseen:
      for label in base:
        harmonic[label] = _harmonic(group, base[label], unseen[label])
    for rows in kinds.values():
      for label, row in rows.items():
        rows[label] = row | _mean(group, row)
    if harmonic and all(harmonic.values()):  # some set has both parts
      kinds["harmonic"] = harmonic
  return tables


def _unseen_part(kinds: Iterable[str]) -> str:
  """The part of the classes that prompts were not trained on; "" without one."""
  return next((part for part in _UNSEEN if part in kinds), "")


class Comparisons(NamedTuple):
  """Intervals and differences of accuracies, with the keys of `accuracy_by_group`."""

  intervals: AccuracyTables  # both ends of the 95% interval
  differences: AccuracyTables  # `top1` and `interval`, to the first prompt


def comparisons_by_group(
  sets: Sequence[SetFigures], accuracy: AccuracyTables
) -> Comparisons:
  """Computes 95% intervals of all values of `accuracy_by_group`, and their differences
  to the first prompt.

  For a single set the set's figures hold both: Wilson's interval, and the difference
  with Agresti and Min's interval. For a mean `bootstrap` computes both. The first
  prompt has no differences.
  """
  intervals: AccuracyTables = {}
  differences: AccuracyTables = {}
  for group, kinds in accuracy.items():
    intervals[group] = {kind: {} for kind in kinds}
    differences[group] = {kind: {} for kind in kinds}
    for kind, rows in kinds.items():
      parts: tuple[str, ...] = (kind,)
      if kind == "harmonic":
        parts = ("base", _unseen_part(kinds))
      for label, row in rows.items():
        interval_of = {}
        difference_of = {}
        for column in row:
          figures_of_parts = [
            _figures_behind(sets, group, kind=part, label=label, column=column)
            for part in parts
          ]
          compared = _compared(figures_of_parts)
          interval_of[column] = compared["interval"]
          if "difference" in compared:
            difference_of[column] = compared["difference"]
        intervals[group][kind][label] = interval_of
        differences[group][kind][label] = difference_of
  return Comparisons(intervals, differences)


def _figures_behind(
  sets: Sequence[SetFigures], group: str, *, kind: str, label: str, column: str
) -> list[Mapping[str, Any]]:
  """Figures of a prompt on the set of a column; for a mean, on all of the sets."""
  by_column = {
    one_set.column: one_set.prompts[label]
    for one_set in sets
    if (one_set.group, one_set.kind) == (group, kind) and label in one_set.prompts
  }
  if column in by_column:
    return [by_column[column]]
  return list(by_column.values())


def _compared(parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """`interval` and perhaps `difference`: a single set's own, or from `bootstrap`."""
  if len(parts) > 1 or len(parts[0]) > 1:
    return bootstrap(parts)
  [figures] = parts[0]
  compared = {"interval": figures["top1_interval"]}
  if "difference" in figures:
    compared["difference"] = figures["difference"]
  return compared


def figure_by_group(sets: Sequence[SetFigures], figure: str) -> AccuracyTables:
  """Sorts one figure by group and kind; sets without it are skipped."""
  tables: AccuracyTables = {}
  for one_set in sets:
    rows = tables.setdefault(one_set.group, {}).setdefault(one_set.kind, {})
    for label, figures in one_set.prompts.items():
      if figure in figures:
        rows.setdefault(label, {})[one_set.column] = figures[figure]
  return tables


def counts_by_group(
  sets: Sequence[SetFigures], figure: str
) -> dict[str, dict[str, Any]]:
  """Counts the images or classes behind each accuracy.

  `figure` is "images" or "classes". A harmonic mean counts both parts of the classes.
  """
  tables = {}
  for group, kinds in figure_by_group(sets, figure).items():
    # Every prompt has the same images and classes.
    counts = {kind: next(iter(rows.values())) for kind, rows in kinds.items()}
    base = counts.get("base", {})
    unseen = counts.get(_unseen_part(counts), {})
    both = {
      column: base[column] + unseen[column] for column in base if column in unseen
    }
    if both:
      counts["harmonic"] = both
    tables[group] = counts
  return tables


def _harmonic(
  group: str, base: Mapping[str, float], unseen: Mapping[str, float]
) -> dict[str, float]:
  """Harmonic means of a prompt's accuracies on both parts of a set, and of the means."""
  row = {}
  for column in base:
    if column in unseen:
      row[column] = float(harmonic_mean(np.array([base[column], unseen[column]])))
  if base.keys() == unseen.keys():  # else the means are over different sets
    base_means = _mean(group, base)
    unseen_means = _mean(group, unseen)
    for name, base_mean in base_means.items():
      row[name] = float(harmonic_mean(np.array([base_mean, unseen_means[name]])))
  return row


def _mean(group: str, row: Mapping[str, float]) -> dict[str, float]:
  """Mean over the sets of a row, by the name of the mean.

  Empty for a single set, and for a group without a mean.
  """
  if not group_of(group).mean or len(row) < 2:
    return {}
  name = "mean"
  if row.keys() != set(group_of(group).sets):
    name = f"mean of {len(row)}"
  return {name: float(np.mean(list(row.values())))}


def title_of(group: str, kind: str) -> str:
  """Returns the title of a table or plot of a group of sets."""
  return f"{_TITLES[kind]}: {group_of(group).title}"


def evaluation_report(
  results: Mapping[str, Any], _: Mapping[str, Any]
) -> report.Report:
  """Reports an evaluation: tables and plots of each group of sets, and every figure."""
  labels = report.short_labels(results["prompts"])
  sets = results["sets"]
  sections = [
    report.prompts_section(results["prompts"], labels),
    *_missing(results),
  ]
  for group, kinds in results["accuracy"].items():
    sections += [_accuracy(results, group, kind, labels) for kind in kinds]
  sections.append(report.Section("Calibration", picture="calibration.png"))
  if BY_CLASS:
    summaries = {
      name: of_set["by_class"]
      for name, of_set in sets.items()
      if of_set.get("by_class")
    }
    sections += BY_CLASS.open().sections(summaries, labels)
  sections.append(_details(sets, labels))
  title = f"Evaluation on {counted(len(sets), 'data set')}"
  return report.Report(title, _summary(results), sections)


def _summary(results: Mapping[str, Any]) -> str:
  """Sentences on the prompts and the images, and on images skipped or turned."""
  sets = results["sets"]
  prompts = counted(len(results["prompts"]), "prompt")
  data = counted(len(sets), "data set")
  # Every prompt has seen the same images.
  n_images = sum(next(iter(s["prompts"].values()))["images"] for s in sets.values())
  images = counted(n_images, "image")
  sentences = [f"{prompts} on {data}, {images} in all, CLIP {results['clip_model']}."]
  n_unreadable = sum(of_set["unreadable"] for of_set in sets.values())
  if n_unreadable:
    unreadable = counted(n_unreadable, "image")
    sentences.append(f"{unreadable} could not be read and were skipped.")
  if turned := results.get("turned_otherwise"):
    sentences.append(_turned_otherwise(turned["prompts"], turned["upright"]))
  return " ".join(sentences)


def _turned_otherwise(prompts: Sequence[str], upright: bool) -> str:
  """Says that the prompts were trained on images turned in another way than here."""
  trainings = f"the training of {', '.join(prompts)}"
  if upright:
    here = "were turned"
    there = "did not turn its pictures"
  else:
    here = "were not turned"
    there = "turned its pictures"
  return (
    f"Images {here} as their EXIF orientation says, but {trainings} {there}:"
    f" data.upright={not upright} does as it."
  )


def _missing(results: Mapping[str, Any]) -> list[report.Section]:
  """Names the missing sets, and counts the classes without an image in a set.

  No section if nothing is missing.
  """
  missing = results["missing"]
  table = None
  notes = []
  if missing:
    table = report.Table(("set", "reason"), list(missing.items()))
    notes.append(f"{len(missing)} sets are missing: {', '.join(missing)}")
  for name, of_set in results["sets"].items():
    n_missing = of_set.get("missing_classes")
    if n_missing:
      classes = f"{n_missing} of the {of_set['listed_classes']} classes"
      notes.append(f"{name}: {classes} in its list have no image")
  if not notes:
    return []
  title = "Missing sets and classes"
  return [report.Section(title, table=table, notes=notes, brief=True)]


def _accuracy(
  results: Mapping[str, Any], group: str, kind: str, labels: Mapping[str, str]
) -> report.Section:
  """Section of a group of sets: our accuracies, published ones, and image counts."""
  accuracy = results["accuracy"][group][kind]
  published = results["published"].get(group, {}).get(kind, {})
  splits = results["splits"].get(group, {})
  columns = list(next(iter(accuracy.values())))
  sentences = []
  # A column that is no set is a mean over sets.
  if kind == "harmonic" or not set(columns) <= set(splits):
    sentences.append(report.INTERVAL_OF_MEANS)
  else:
    sentences.append(report.INTERVAL)
  if len(accuracy) > 1:
    sentences.append(_BOLD)
  sentences += remarks(splits[column] for column in columns if column in splits)
  if published:
    sentences.append("Published figures are with ViT-B/16.")
  return report.Section(
    title_of(group, kind),
    text=" ".join(sentences),
    table=_accuracy_table(results, group, kind, labels),
    picture=f"accuracy_{group}_{kind}.png",
    notes=[f"[{i}] {source}" for i, source in enumerate(_sources(published), 1)],
    brief=True,
  )


def _accuracy_table(
  results: Mapping[str, Any], group: str, kind: str, labels: Mapping[str, str]
) -> report.Table:
  """Builds the table of one kind of accuracy over the sets of a group.

  Args:
    results: results of the evaluation.
    group: name of the group, such as the domain-shift sets.
    kind: kind of accuracy, such as top1.
    labels: label of each prompt.

  Returns:
    A row for each prompt, for each published method, and for the numbers of images.
  """
  accuracy = results["accuracy"][group][kind]
  published = results["published"].get(group, {}).get(kind, {})
  counts = results["images"][group][kind]
  splits = results["splits"].get(group, {})
  # Results of earlier versions have neither intervals nor differences.
  intervals = results.get("intervals", {}).get(group, {}).get(kind, {})
  differences = results.get("differences", {}).get(group, {}).get(kind, {})
  first_row = next(iter(accuracy.values()))
  columns = list(first_row)

  rows = []
  marks = []
  for prompt, figures in accuracy.items():
    row = [labels[prompt]]
    ends = intervals.get(prompt, {})
    for column in columns:
      row.append(report.percent(figures[column], ends.get(column)))
    rows.append(row)
    marks.append("")

  sources = _sources(published)
  for name, method in published.items():
    source_number = 1 + sources.index(method["source"])
    row = [f"{name} [{source_number}]"]
    for column in columns:
      row.append(report.cell(method["figures"].get(column)))
    rows.append(row)
    marks.append("published")

  image_counts = [report.cell(counts.get(column)) for column in columns]
  rows.append(["images", *image_counts])
  marks.append("images")

  heads = ["prompt"]
  for column in columns:
    heads.append(_marked(column, splits.get(column, "test")))
  bold = _cells_above_first(list(accuracy), columns, differences)
  return report.Table(tuple(heads), rows, marks=marks, bold=bold)


def _sources(published: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Distinct sources of published methods, in the order of their numbers."""
  return list(dict.fromkeys(method["source"] for method in published.values()))


def _cells_above_first(
  prompts: Sequence[str],
  columns: Sequence[str],
  differences: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[tuple[int, int]]:
  """Cells (row, column) of a table whose accuracy is above the first prompt's.

  The whole interval of the difference is above 0. Column 0 of the table holds the
  prompts, so the first set is in column 1.
  """
  cells = []
  for i, prompt in enumerate(prompts):
    for j, column in enumerate(columns, 1):
      difference = differences.get(prompt, {}).get(column)
      if difference and difference["interval"][0] > 0:
        cells.append((i, j))
  return cells


def _marked(name: str, split: str) -> str:
  """A set's name, followed by the split in brackets if the split is not test."""
  if split == "test":
    return name
  return f"{name} ({split})"


def remarks(splits: Iterable[str]) -> list[str]:
  """Sentences on images that a prompt may have been trained on, by their splits."""
  texts = [_REMARKS[name] for name in dict.fromkeys(splits) if name in _REMARKS]
  return [f"{text}. A prompt that was trained on them has seen them." for text in texts]


def _details(sets: Mapping[str, Any], labels: Mapping[str, str]) -> report.Section:
  """Section with every figure of each prompt on each set, without empty columns."""
  names = []
  figures_of_prompts = []
  for name, of_set in sets.items():
    for label, figures in of_set["prompts"].items():
      names.append(f"{_marked(name, of_set['split'])}: {labels[label]}")
      figures_of_prompts.append(figures)
  columns = {"set: prompt": names}
  units = "%"
  for head, path, factor in _DETAILS:
    column = [report.cell(_at(f, path, factor)) for f in figures_of_prompts]
    if set(column) == {"-"}:
      continue
    columns[head] = column
    if path[0] in ("errors", "hierarchy"):
      units = "%; edges and heights in edges of WordNet's tree"
  sentences = remarks(of_set["split"] for of_set in sets.values())
  if "difference" in columns:
    sentences.insert(0, _DIFFERENCE)
  rows = list(zip(*columns.values(), strict=True))
  return report.Section(
    f"Every figure ({units})",
    text=" ".join(sentences),
    table=report.Table(list(columns), rows),
    folded=True,
    brief=True,
  )


def _at(
  figures: Any, path: Sequence[str | int], factor: float | int
) -> float | int | None:
  """A figure at a path, times a factor; None if it is missing."""
  try:
    return factor * functools.reduce(operator.getitem, path, figures)
  except (KeyError, IndexError):
    return None
