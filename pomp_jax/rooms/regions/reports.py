"""Reports of `segment` and `detect`: data and regions, tables of figures, classes.

Shapes: P prompts, C classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pomp_jax.report import report
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regions.region_scorer import short_labels

# Classes at either end of a table of differences.
_ENDS = 8
_GROUPS = ("base", "novel")
_SEGMENTATION = (
  "hIoU",
  "base mIoU",
  "novel mIoU",
  "mIoU",
  "hIoU_plain",
  "base mIoU_plain",
  "novel mIoU_plain",
  "mIoU_plain",
  "fwIoU",
  "mACC",
  "pACC",
)
_DETECTION = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_DETECTIONS = {
  "top1": "Top-1 of annotated boxes (%)",
  "box": "Box AP (%)",
  "mask": "Mask AP (%)",
}


class _Kind(NamedTuple):
  """Words and figures in which the reports of the two jobs differ."""

  title: str
  figure: str  # name of the figure of a single class
  # keys that lead from a prompt's figures to this figure of each class
  place: tuple[str, str]
  plot: str  # file of the pictures
  content: str  # what has a class in the pictures


_KINDS = {
  "segment": _Kind(
    title="Segmentation",
    figure="IoU",
    place=("per_class", "iou"),
    plot="segmentation.png",
    content="pixels",
  ),
  "detect": _Kind(
    title="Detection",
    figure="box AP",
    place=("box", "per_class"),
    plot="detections.png",
    content="boxes",
  ),
}


def regions_report(
  results: Mapping[str, Any], fields: Mapping[str, Any]
) -> report.Report:
  """Reports `segment` or `detect`: figures of each prompt, pictures, extreme classes."""
  kind = _KINDS[results["job"]]
  figures = results["figures"]
  names = list(figures)
  labels = dict(zip(names, short_labels(names), strict=True))
  n_images = counted(results["images"], "image")
  n_classes = counted(len(results["classes"]), "class")
  # Compare the first prompt with the last. With `regions.alone` a prompt has three
  # entries: fused, the network alone, CLIP alone. Take the fused entry.
  last = names[-3 if fields["regions.alone"] else -1]
  pair = list(dict.fromkeys([names[0], last]))
  by_label = {labels[name]: figures[name] for name in names}
  if results["job"] == "segment":
    tables = _segmentation(by_label)
  else:
    tables = _detection(by_label)
  sections = [
    report.Section("Data and regions", table=report.facts(_facts(results, fields))),
    report.prompts_section(results["prompts"], labels),
    *tables,
    report.Section(
      f"Images, and the classes of their {kind.content}", picture=kind.plot
    ),
    *_classes(kind, results, pair, labels),
  ]
  title = f"{kind.title}: {n_images}, {n_classes}"
  text = (
    f"{counted(len(names), 'prompt')} on {n_images}, {n_classes},"
    f" CLIP {results['clip_model']}."
  )
  return report.Report(title, text, sections)


def _segmentation(figures: Mapping[str, Mapping[str, Any]]) -> list[report.Section]:
  """A table of the figures that all prompts have."""
  rows = {}
  for label, figures_of_prompt in figures.items():
    row = dict(figures_of_prompt)
    for group in _GROUPS:
      for name, value in figures_of_prompt.get(group, {}).items():
        row[f"{group} {name}"] = value
    rows[label] = row
  columns = []
  for column in _SEGMENTATION:
    if all(row.get(column) is not None for row in rows.values()):
      columns.append(column)
  text = (
    "mIoU: over classes in the truth or the prediction, as detectron2 and ZSSeg report it; _plain:"
    " over classes in the truth. hIoU: harmonic mean of base and novel mIoU."
  )
  return _table("Segmentation (%)", text, columns, rows)


def _detection(figures: Mapping[str, Mapping[str, Any]]) -> list[report.Section]:
  """A table for top-1, boxes and masks each, without columns that are empty."""
  sections = []
  for kind, title in _DETECTIONS.items():
    rows: dict[str, dict[str, float | None]] = {}
    for label, figures_of_prompt in figures.items():
      if kind not in figures_of_prompt:
        continue
      if kind == "top1":
        rows[label] = _top1_row(figures_of_prompt[kind])
      else:
        rows[label] = _precision_row(figures_of_prompt[kind])
    columns = []
    # All prompts have the columns of the first.
    for column in next(iter(rows.values()), {}):
      if any(row[column] is not None for row in rows.values()):
        columns.append(column)
    sections += _table(title, "", columns, rows)
  return sections


def _top1_row(figures: Mapping[str, Any]) -> dict[str, float | None]:
  """Top-1 of all classes and of the groups that there are."""
  groups = [group for group in _GROUPS if group in figures]
  return {group: figures[group]["top1"] for group in ("all", *groups)}


def _precision_row(figures: Mapping[str, Any]) -> dict[str, float | None]:
  """The APs, and AP and AP50 of the groups that there are."""
  row = {name: figures.get(name) for name in _DETECTION}
  for group in _GROUPS:
    if group in figures:
      row[f"{group} AP"] = figures[group]["AP"]
      row[f"{group} AP50"] = figures[group]["AP50"]
  return row


def _table(
  title: str, text: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]
) -> list[report.Section]:
  """A section with fractions as percentages; none without columns."""
  if not columns:
    return []
  cells = []
  for label, row in rows.items():
    cells.append([label, *(report.percent(row[column]) for column in columns)])
  table = report.Table(("prompt", *columns), cells)
  return [report.Section(title, text, table, brief=True)]


def _facts(results: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, str]:
  """Facts on data, classes and CLIP, and on the regions and their scores."""
  sizes = Counter(results["groups"])
  halves = [f"{sizes[name]:,} {name}" for name in _GROUPS if sizes[name]]
  classes = f"{len(results['classes']):,}"
  if halves:
    classes = f"{classes}: {', '.join(halves)}"
  objects = ""
  if "objects" in results:
    objects = f"{results['objects']:,}"
  pixels = ""
  if "pixels" in results:
    pixels = f"{sum(results['pixels']):,}"
  return {
    "images": f"{results['images']:,}",
    "objects": objects,
    "pixels with a class": pixels,
    "classes": classes,
    "CLIP": results["clip_model"],
    **_regions_of(fields),
  }


def _regions_of(fields: Mapping[str, Any]) -> dict[str, str]:
  """Fields that say where regions come from and how they are scored."""
  source = fields["regions.source"]
  if source == "none":
    facts = {"regions.source": "none: patches"}
    names = ["segment.recipe", "segment.size", "segment.window"]
    names += ["segment.stride", "segment.pamr"]
  else:
    facts = {"regions.source": source}
    names = ["regions.crop"]
    if fields["regions.crop"] == "context":
      names.append("regions.expand")
  origin = {"file": "regions.path", "network": "propose.network"}.get(source)
  if origin is not None:
    facts["regions.source"] = f"{source}: {fields[origin]}"
    # These fields fuse CLIP's scores with those of embeddings, which a file may lack.
    names += [f"regions.{name}" for name in ("e_base", "e_novel", "null", "objectness")]
  for name in names:
    facts[name] = str(fields[name])
  return facts


def _classes(
  kind: _Kind,
  results: Mapping[str, Any],
  pair: Sequence[str],
  labels: Mapping[str, str],
) -> list[report.Section]:
  """A table of the classes that differ most between two prompts.

  For a single prompt the table has the classes with the highest and lowest figures.
  """
  compares = len(pair) > 1
  pixels_C = results.get("pixels")
  outer, inner = kind.place
  values_PxC = [results["figures"][name][outer][inner] for name in pair]
  # Rank classes by the difference of two prompts, or by the figure of a single prompt.
  rank_of: dict[int, float] = {}
  for label, values in enumerate(zip(*values_PxC, strict=True)):
    # Skip a class without a figure: the data lacks it.
    if None not in values:
      rank_of[label] = values[-1] - values[0] if compares else values[0]
  if not rank_of:
    return []

  def size(label: int) -> int:
    """Pixels of a class: among equal figures the class with more comes first."""
    return pixels_C[label] if pixels_C else 0

  best = sorted(rank_of, key=lambda label: (-rank_of[label], -size(label)))[:_ENDS]
  worst = sorted(rank_of, key=lambda label: (rank_of[label], -size(label)))[:_ENDS]
  rows = []
  for label in dict.fromkeys([*best, *reversed(worst)]):
    cells = [results["classes"][label], results["groups"][label]]
    if pixels_C:
      cells.append(f"{pixels_C[label]:,}")
    cells += [report.percent(values_C[label]) for values_C in values_PxC]
    if compares:
      cells.append(f"{100 * rank_of[label]:+.1f}")
    rows.append(cells)
  columns = ["class", "group"]
  if pixels_C:
    columns.append("pixels")
  columns += [labels[name] for name in pair]
  heading = "Highest and lowest classes"
  if compares:
    columns.append("difference")
    heading = "Classes that differ most"
  text = (
    f"The two ends of {counted(len(rank_of), 'class')} in the data. The figure of a class with few"
    " objects varies by chance; results.json has all classes."
  )
  table = report.Table(columns, rows)
  return [report.Section(f"{heading}: {kind.figure} (%)", text, table)]
