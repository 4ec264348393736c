"""Report of the job `evaluate`: accuracy of each group of sets, classes, and every figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pomp_jax.report.class_tables import class_sections
from pomp_jax.report.labels import counted
from pomp_jax.report.report import (
  INTERVAL,
  Report,
  Section,
  Table,
  cell,
  highest_cells,
  percent,
  pictures,
  prompts_section,
  short_labels,
)
from pomp_jax.report.set_accuracy import title_of

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


def evaluation_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of an evaluation: a table and a plot for each group of sets, and every figure."""
  labels, sets = short_labels(results["prompts"]), results["sets"]
  summaries = {name: of["by_class"] for name, of in sets.items() if of.get("by_class")}
  sections = [
    prompts_section(results["prompts"], labels),
    *_missing(results),
    *(
      _accuracy(results, group, kind, labels)
      for group, kinds in results["accuracy"].items()
      for kind in kinds
    ),
    *pictures({"calibration.png": "Calibration"}),
    *class_sections(summaries, labels),
    _details(sets, labels),
  ]
  images = sum(next(iter(of["prompts"].values()))["images"] for of in sets.values())
  unreadable = sum(of["unreadable"] for of in sets.values())
  data = counted(len(sets), "data set")
  text = f"{counted(len(labels), 'prompt')} on {data}, {counted(images, 'image')} in all, CLIP"
  text += f" {results['clip_model']}."
  if unreadable:
    text += f" {counted(unreadable, 'image')} could not be read and were skipped."
  return Report(f"Evaluation on {data}", text, sections)


def _missing(results: Mapping[str, Any]) -> list[Section]:
  """Names the sets that are missing, and counts the classes that have no image in a set."""
  missing = results["missing"]
  lines = [f"{len(missing)} sets are missing: {', '.join(missing)}"] if missing else []
  lines += [
    f"{name}: {of['missing_classes']} of the {of['listed_classes']} classes in its list have no"
    " image"
    for name, of in results["sets"].items()
    if of.get("missing_classes")
  ]
  table = Table(("set", "reason"), list(missing.items())) if missing else None
  return [Section("Missing sets and classes", table=table, notes=lines, brief=True)] * bool(lines)


def _accuracy(
  results: Mapping[str, Any], group: str, kind: str, labels: Mapping[str, str]
) -> Section:
  """Accuracies of a group of sets, ours first, then published ones, and the numbers of images."""
  accuracy = results["accuracy"][group][kind]
  columns = list(next(iter(accuracy.values())))
  methods = results["published"].get(group, {}).get(kind, {})
  sources = list(dict.fromkeys(method["source"] for method in methods.values()))
  intervals = results["intervals"].get(group, {}).get(kind, {})
  splits = results["splits"].get(group, {})
  ours = [
    [labels[label], *(percent(row[c], intervals.get(label, {}).get(c)) for c in columns)]
    for label, row in accuracy.items()
  ]
  theirs = []
  for name, one in methods.items():
    figures = [cell(one["figures"].get(column)) for column in columns]
    theirs.append([f"{name} [{1 + sources.index(one['source'])}]", *figures])
  counts = results["images"][group][kind]
  text = [INTERVAL, *remarks(splits[column] for column in columns if column in splits)]
  text += ["Published figures are with ViT-B/16."] if theirs else []
  table = Table(
    ("prompt", *(_marked(column, splits.get(column, "test")) for column in columns)),
    [*ours, *theirs, ["images", *(cell(counts.get(c)) for c in columns)]],
    [*[""] * len(ours), *["published"] * len(theirs), "images"],
    highest_cells(ours),
  )
  notes = [f"[{i}] {source}" for i, source in enumerate(sources, 1)]
  picture = f"accuracy_{group}_{kind}.png"
  return Section(title_of(group, kind), " ".join(text), table, picture, notes, brief=True)


def _marked(name: str, split: str) -> str:
  """A set's name; with the split in brackets if its images are no test images."""
  return name if split == "test" else f"{name} ({split})"


def remarks(splits: Iterable[str]) -> list[str]:
  """Sentences on images that a prompt may have been trained on, by their splits."""
  found = [_REMARKS[name] for name in dict.fromkeys(splits) if name in _REMARKS]
  return [f"{text}. A prompt that was trained on them has seen them." for text in found]


def _details(sets: Mapping[str, Any], labels: Mapping[str, str]) -> Section:
  """Every figure of each prompt on each set, without the columns that are empty."""
  shown, found = [], []
  for name, of_set in sets.items():
    for label, figures in of_set["prompts"].items():
      shown.append(f"{_marked(name, of_set['split'])}: {labels[label]}")
      found.append([cell(_at(figures, path, factor)) for _, path, factor in _DETAILS])
  columns = zip(_DETAILS, zip(*found, strict=True), strict=True)
  used = {detail: column for detail, column in columns if set(column) != {"-"}}
  on_tree = any(path[0] in ("errors", "hierarchy") for _, path, _ in used)
  units = "%; edges and heights in edges of WordNet's tree" if on_tree else "%"
  heads = ["set: prompt", *(head for head, _, _ in used)]
  text = [_DIFFERENCE] if "difference" in heads else []
  text += remarks(of_set["split"] for of_set in sets.values())
  table = Table(heads, list(zip(shown, *used.values(), strict=True)))
  return Section(f"Every figure ({units})", " ".join(text), table, folded=True, brief=True)


def _at(figures: Any, path: Sequence[str | int], factor: float | int) -> float | int | None:
  """A figure at a path, times a factor; None if it is missing."""
  try:
    for name in path:
      figures = figures[name]
  except (KeyError, IndexError):
    return None
  return factor * figures
