"""Reports of `segment` and `detect`: data and regions, tables of figures, C classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pomp_jax.report import report
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regions.region_scorer import short_labels

# Classes at either end of a table of differences.
_ENDS = 8
_GROUPS = ("base", "novel")
_SEGMENTATION = (
  *("hIoU", "base mIoU", "novel mIoU", "mIoU", "hIoU_plain", "base mIoU_plain"),
  *("novel mIoU_plain", "mIoU_plain", "fwIoU", "mACC", "pACC"),
)
_DETECTION = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_DETECTIONS = {
  "top1": "Top-1 of annotated boxes (%)",
  "box": "Box AP (%)",
  "mask": "Mask AP (%)",
}


# Of each job: its title, the figure of a single class, and the keys under which a
# prompt's figures have it for all classes; the file of the pictures, and what has a
# class in them.
_KINDS = {
  "segment": (
    "Segmentation",
    "IoU",
    ("per_class", "iou"),
    "segmentation.png",
    "pixels",
  ),
  "detect": ("Detection", "box AP", ("box", "per_class"), "detections.png", "boxes"),
}


def regions_report(
  results: Mapping[str, Any], fields: Mapping[str, Any]
) -> report.Report:
  """Report of `segment` or `detect`: figures of each prompt, pictures, classes that
  differ most."""
  title, figure, place, plot, shown = _KINDS[results["job"]]
  figures = results["figures"]
  names = list(figures)
  labels = dict(zip(names, short_labels(names), strict=True))
  counts = f"{counted(results['images'], 'image')}, {counted(len(results['classes']), 'class')}"
  # `regions.alone` adds the scores of the network and of CLIP alone after each prompt's
  # fused ones.
  pair = list(dict.fromkeys([names[0], names[-3 if fields["regions.alone"] else -1]]))
  by_label = {labels[name]: own for name, own in figures.items()}
  tables = (
    _segmentation(by_label) if results["job"] == "segment" else _detection(by_label)
  )
  sections = [
    report.Section("Data and regions", table=report.facts(_facts(results, fields))),
    report.prompts_section(results["prompts"], labels),
    *tables,
    report.Section(f"Images, and the classes of their {shown}", picture=plot),
    *_classes(figure, place, results, pair, labels),
  ]
  text = f"{counted(len(names), 'prompt')} on {counts}, CLIP {results['clip_model']}."
  return report.Report(f"{title}: {counts}", text, sections)


def _segmentation(figures: Mapping[str, Mapping[str, Any]]) -> list[report.Section]:
  """The figures that all prompts have."""
  rows = {
    label: {**own}
    | {f"{g} {name}": v for g in _GROUPS for name, v in own.get(g, {}).items()}
    for label, own in figures.items()
  }
  columns = [
    c for c in _SEGMENTATION if all(row.get(c) is not None for row in rows.values())
  ]
  text = (
    "mIoU: over classes in the truth or the prediction, as detectron2 and ZSSeg report it; _plain:"
    " over classes in the truth. hIoU: harmonic mean of base and novel mIoU."
  )
  return _table("Segmentation (%)", text, columns, rows)


def _detection(figures: Mapping[str, Mapping[str, Any]]) -> list[report.Section]:
  """A table for top-1, boxes and masks, without columns that are empty."""
  sections = []
  for kind, title in _DETECTIONS.items():
    rows: dict[str, dict[str, float | None]] = {}
    for label, own in (
      (label, found[kind]) for label, found in figures.items() if kind in found
    ):
      groups = [group for group in _GROUPS if group in own]
      if kind == "top1":
        rows[label] = {group: own[group]["top1"] for group in ("all", *groups)}
      else:
        of_groups = {
          f"{g} {name}": own[g][name] for g in groups for name in ("AP", "AP50")
        }
        rows[label] = {name: own.get(name) for name in _DETECTION} | of_groups
    columns = list(next(iter(rows.values()), {}))
    columns = [c for c in columns if any(row[c] is not None for row in rows.values())]
    sections += _table(title, "", columns, rows)
  return sections


def _table(
  title: str, text: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]
) -> list[report.Section]:
  """A section with fractions as percentages; none without columns."""
  shown = [
    [label, *(report.percent(row[c]) for c in columns)] for label, row in rows.items()
  ]
  table = report.Table(("prompt", *columns), shown)
  return [report.Section(title, text, table, brief=True)] if columns else []


def _facts(results: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, str]:
  """Data, origin of the regions, CLIP's view of them and fusion, which the figures
  belong to."""
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
  source, crop = fields["regions.source"], fields["regions.crop"]
  origin = {"file": "regions.path", "network": "propose.network"}.get(source)
  if source == "none":
    named = "none: patches"
    names = [
      f"segment.{name}" for name in ("recipe", "size", "window", "stride", "pamr")
    ]
  else:
    named = f"{source}: {fields[origin]}" if origin else source
    names = ["regions.crop", *(["regions.expand"] if crop == "context" else [])]
  if origin:
    # They fuse CLIP's scores with those of embeddings, which a file may lack.
    names += [f"regions.{name}" for name in ("e_base", "e_novel", "null", "objectness")]
  return {"regions.source": named} | {name: str(fields[name]) for name in names}


def _classes(
  figure: str,
  place: Sequence[str],
  results: Mapping[str, Any],
  pair: Sequence[str],
  labels: Mapping[str, str],
) -> list[report.Section]:
  """A table of the classes that differ most between two prompts; of one, the highest
  and lowest."""
  two, pixels_C = len(pair) > 1, results.get("pixels")
  of_prompts = [results["figures"][name][place[0]][place[1]] for name in pair]
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
    cells += [report.percent(values[row]) for values in of_prompts]
    rows.append([*cells, f"{100 * ranked[row]:+.1f}"] if two else cells)
  columns = [
    "class",
    "group",
    *(["pixels"] if pixels_C else []),
    *(labels[name] for name in pair),
  ]
  heading = "Classes that differ most" if two else "Highest and lowest classes"
  text = (
    f"The two ends of {counted(len(ranked), 'class')} in the data. The figure of a class with few"
    " objects varies by chance; results.json has all classes."
  )
  table = report.Table([*columns, "difference"] if two else columns, rows)
  return [report.Section(f"{heading}: {figure} (%)", text, table)]
