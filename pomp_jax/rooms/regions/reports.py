"""Reports of `segment` and `detect`: data and regions, tables of figures, classes.

Shapes: C classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pomp_jax.report.labels import counted
from pomp_jax.report.report import (
  Report,
  Section,
  Table,
  facts,
  highest_cells,
  percent,
  prompts_section,
)
from pomp_jax.rooms.regions.region_scorer import short_labels

# Classes at either end of a table of differences.
_ENDS = 8
_GROUPS = ("base", "novel")
_SEGMENTATION = (
  *("hIoU", "base mIoU", "novel mIoU", "mIoU", "hIoU_plain", "base mIoU_plain"),
  *("novel mIoU_plain", "mIoU_plain", "fwIoU", "mACC", "pACC"),
)
_DETECTION = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_DETECTIONS = {"top1": "Top-1 of annotated boxes (%)", "box": "Box AP (%)", "mask": "Mask AP (%)"}


class _Kind(NamedTuple):
  """How the report shows one of the two jobs."""

  title: str
  figure: str  # name of the figure of a single class
  place: tuple[str, str]  # keys under which a prompt's figures have it, a list over the classes
  plot: str  # file of the pictures
  shown: str  # what has a class in the pictures


_KINDS = {
  "segment": _Kind("Segmentation", "IoU", ("per_class", "iou"), "segmentation.png", "pixels"),
  "detect": _Kind("Detection", "box AP", ("box", "per_class"), "detections.png", "boxes"),
}


def regions_report(results: Mapping[str, Any], fields: Mapping[str, Any]) -> Report:
  """Report of `segment` or `detect`: figures of each prompt, pictures, classes that differ most."""
  kind, figures = _KINDS[results["job"]], results["figures"]
  names = list(figures)
  labels = dict(zip(names, short_labels(names), strict=True))
  counts = f"{counted(results['images'], 'image')}, {counted(len(results['classes']), 'class')}"
  # `regions.alone` adds the scores of the network and of CLIP alone after each prompt's fused ones.
  pair = list(dict.fromkeys([names[0], names[-3 if fields["regions.alone"] else -1]]))
  shown = {labels[name]: own for name, own in figures.items()}
  tables = _segmentation(shown) if results["job"] == "segment" else _detection(shown)
  sections = [
    Section("Data and regions", table=facts(_facts(results, fields))),
    prompts_section(results["prompts"], labels),
    *tables,
    Section(f"Images, and the classes of their {kind.shown}", picture=kind.plot),
    *_classes(kind, results, pair, labels),
  ]
  text = f"{counted(len(names), 'prompt')} on {counts}, CLIP {results['clip_model']}."
  return Report(f"{kind.title}: {counts}", text, sections)


def _segmentation(figures: Mapping[str, Mapping[str, Any]]) -> list[Section]:
  """The figures that all prompts have."""
  rows = {
    label: {**own} | {f"{g} {name}": v for g in _GROUPS for name, v in own.get(g, {}).items()}
    for label, own in figures.items()
  }
  columns = [c for c in _SEGMENTATION if all(row.get(c) is not None for row in rows.values())]
  text = (
    "mIoU: over classes in the truth or the prediction, as detectron2 and ZSSeg report it; _plain:"
    " over classes in the truth. hIoU: harmonic mean of base and novel mIoU."
  )
  return _table("Segmentation (%)", text, columns, rows)


def _detection(figures: Mapping[str, Mapping[str, Any]]) -> list[Section]:
  """A table for top-1, boxes and masks, without columns that are empty."""
  sections = []
  for kind, title in _DETECTIONS.items():
    rows: dict[str, dict[str, float | None]] = {}
    for label, own in ((label, found[kind]) for label, found in figures.items() if kind in found):
      groups = [group for group in _GROUPS if group in own]
      if kind == "top1":
        rows[label] = {group: own[group]["top1"] for group in ("all", *groups)}
      else:
        of_groups = {f"{g} {name}": own[g][name] for g in groups for name in ("AP", "AP50")}
        rows[label] = {name: own.get(name) for name in _DETECTION} | of_groups
    columns = list(next(iter(rows.values()), {}))
    columns = [c for c in columns if any(row[c] is not None for row in rows.values())]
    sections += _table(title, "", columns, rows)
  return sections


def _table(
  title: str, text: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]
) -> list[Section]:
  """A section with fractions as percentages; none without columns."""
  shown = [[label, *(percent(row[c]) for c in columns)] for label, row in rows.items()]
  table = Table(("prompt", *columns), shown, highest=highest_cells(shown) if shown else ())
  return [Section(title, text, table, brief=True)] if columns else []


def _facts(results: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, str]:
  """Data, origin of the regions, CLIP's view of them and fusion, which the figures belong to."""
  groups, n_classes = Counter(results["groups"]), len(results["classes"])
  halves = ", ".join(f"{groups[name]:,} {name}" for name in _GROUPS if groups[name])
  return {
    "images": f"{results['images']:,}",
    "objects": f"{results['objects']:,}" if "objects" in results else "",
    "pixels with a class": f"{sum(results['pixels']):,}" if "pixels" in results else "",
    "classes": ": ".join(filter(None, (f"{n_classes:,}", halves))),
    "CLIP": results["clip_model"],
    **_regions_of(fields),
  }


def _regions_of(fields: Mapping[str, Any]) -> dict[str, str]:
  """Fields that say where regions come from and how they are scored."""
  source = fields["regions.source"]
  if source == "none":
    sides = (fields[f"segment.{name}"] for name in ("size", "window", "stride"))
    return {
      "regions.source": "none: patches",
      "segment.recipe": fields["segment.recipe"],
      "segment.size, window, stride (pixels)": ", ".join(map(str, sides)),
      "segment.pamr (steps)": str(fields["segment.pamr"]),
    }
  origin = {"file": "regions.path", "network": "propose.network"}.get(source)
  crop = fields["regions.crop"]
  if crop == "context":
    crop += f", {fields['regions.expand']:g} times the box's longer side"
  named = f"{source}: {fields[origin]}" if origin else source
  found = {"regions.source": named, "regions.crop": crop}
  if source == "truth":
    return found
  # They fuse CLIP's scores with those of embeddings, which a file may lack.
  return found | {
    "regions.e_base, CLIP's exponent for trained classes": f"{fields['regions.e_base']:g}",
    "regions.e_novel, for other classes": f"{fields['regions.e_novel']:g}",
    "regions.null": fields["regions.null"],
    "regions.objectness": str(fields["regions.objectness"]),
  }


def _classes(
  kind: _Kind, results: Mapping[str, Any], pair: Sequence[str], labels: Mapping[str, str]
) -> list[Section]:
  """A table of the classes that differ most between two prompts; of one, the highest and lowest."""
  two, pixels_C = len(pair) > 1, results.get("pixels")
  of_prompts = [results["figures"][name][kind.place[0]][kind.place[1]] for name in pair]
  ranked = {
    row: values[-1] - values[0] if two else values[0]
    for row, values in enumerate(zip(*of_prompts, strict=True))
    if None not in values  # null: a class that the data lacks
  }
  if not ranked:
    return []
  # Of equal classes those with more pixels come first.
  size = lambda row: pixels_C[row] if pixels_C else 0
  best = sorted(ranked, key=lambda row: (-ranked[row], -size(row)))[:_ENDS]
  worst = sorted(ranked, key=lambda row: (ranked[row], -size(row)))[:_ENDS]
  rows = []
  for row in (*best, *(row for row in reversed(worst) if row not in best)):
    cells = [results["classes"][row], results["groups"][row]]
    cells += [f"{pixels_C[row]:,}"] if pixels_C else []
    cells += [percent(values[row]) for values in of_prompts]
    rows.append([*cells, f"{100 * ranked[row]:+.1f}"] if two else cells)
  columns = ["class", "group", *(["pixels"] if pixels_C else []), *(labels[name] for name in pair)]
  heading = "Classes that differ most" if two else "Highest and lowest classes"
  text = (
    f"The two ends of {counted(len(ranked), 'class')} in the data. The figure of a class with few"
    " objects varies by chance; results.json has all classes."
  )
  table = Table([*columns, "difference"] if two else columns, rows)
  return [Section(f"{heading}: {kind.figure} (%)", text, table)]
