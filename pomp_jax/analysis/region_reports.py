"""What the HTML reports of `segment` and `detect` say: what the figures are of, tables, classes.

Shapes: C classes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

from pomp_jax.analysis.detection import detection_tables
from pomp_jax.analysis.html_report import Grid, Report, Section, pictures
from pomp_jax.analysis.labels import counted, prompt_labels
from pomp_jax.analysis.reports import grid_of, prompts_section
from pomp_jax.analysis.segmentation import FIGURES, segmentation_tables
from pomp_jax.analysis.tables import Table
from pomp_jax.config import Settings
from pomp_jax.files.run_folder import RunFolder

# Classes at either end of a table of differences.
_ENDS = 8


class _Kind(NamedTuple):
  """What differs between the two jobs.

  Attributes:
    title: what was done.
    tables: tables of the results.
    note: what the tables' columns are.
    figure: figure of a single class.
    path: its place in a prompt's figures, where each of the C classes has one.
    plot: file of the pictures.
    caption: what the pictures show.
  """

  title: str
  tables: Callable[[Mapping[str, Any]], list[Table]]
  note: str
  figure: str
  path: tuple[str, str]
  plot: str
  caption: str


_KINDS = {
  "segment": _Kind(
    "Segmentation",
    segmentation_tables,
    FIGURES,
    "IoU",
    ("per_class", "iou"),
    "segmentation.png",
    "Images, and the classes of their pixels",
  ),
  "detect": _Kind(
    "Detection",
    detection_tables,
    "",
    "box AP",
    ("box", "per_class"),
    "detections.png",
    "Images, and the classes of their boxes",
  ),
}


def regions_report(folder: RunFolder, config: Settings, results: Mapping[str, Any]) -> Report:
  """Report of `segment` or `detect`: figures of each prompt, pictures, classes that differ most."""
  kind, names = _KINDS[results["job"]], list(results["figures"])
  labels = dict(zip(names, prompt_labels(names), strict=True))
  counts = f"{counted(results['images'], 'image')}, {counted(len(results['classes']), 'class')}"
  # Of each prompt `regions.alone` adds the network's scores and CLIP's after the fused ones.
  pair = list(dict.fromkeys([names[0], names[-3 if config.regions.alone else -1]]))
  sections = [
    Section("Data and regions", table=Grid((), _facts(config, results))),
    prompts_section(results["prompts"], labels),
    *(
      Section(table.title, kind.note, grid_of(table, labels))
      for table in kind.tables(results)
      if table.columns
    ),
    *pictures(folder, {kind.plot: kind.caption}),
    *_classes(kind, results, pair, labels),
  ]
  text = f"{counted(len(names), 'prompt')} on {counts}, CLIP {results['clip_model']}."
  return Report(f"{kind.title}: {counts}", text, sections)


def _facts(config: Settings, results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What the figures are of: data, origin of the regions, CLIP's view of them, fusion."""
  groups, n_classes = Counter(results["groups"]), len(results["classes"])
  halves = [f"{groups[name]:,} {name}" for name in ("base", "novel") if groups[name]]
  facts = {
    "images": f"{results['images']:,}",
    "objects": f"{results['objects']:,}" if "objects" in results else "",
    "pixels with a class": f"{sum(results['pixels']):,}" if "pixels" in results else "",
    "classes": ": ".join(filter(None, (f"{n_classes:,}", ", ".join(halves)))),
    "CLIP": results["clip_model"],
    **_regions_of(config),
  }
  return [(name, text) for name, text in facts.items() if text]


def _regions_of(config: Settings) -> dict[str, str]:
  """Fields that say where regions come from and how they are scored."""
  regions, segment = config.regions, config.segment
  if regions.source == "none":
    sides = segment.size, segment.window, segment.stride
    return {
      "regions.source": "none: patches",
      "segment.recipe": segment.recipe,
      "segment.size, window, stride (pixels)": ", ".join(map(str, sides)),
      "segment.pamr (steps)": str(segment.pamr),
    }
  origin = {"file": regions.path, "network": config.propose.network}.get(regions.source)
  around = f", {regions.expand:g} times the box's longer side"
  fields = {
    "regions.source": ": ".join(filter(None, (regions.source, origin))),
    "regions.crop": regions.crop + (around if regions.crop == "context" else ""),
  }
  if regions.source == "truth":
    return fields
  # They fuse CLIP's scores with those of embeddings, which a file may lack.
  return fields | {
    "regions.e_base, CLIP's exponent for trained classes": f"{regions.e_base:g}",
    "regions.e_novel, for other classes": f"{regions.e_novel:g}",
    "regions.null": regions.null,
    "regions.objectness": str(regions.objectness),
  }


def _classes(
  kind: _Kind, results: Mapping[str, Any], pair: Sequence[str], labels: Mapping[str, str]
) -> list[Section]:
  """A table of the classes whose figures differ most between two prompts.

  Of one prompt, the classes with the highest and the lowest figures.
  """
  two, pixels_C = len(pair) > 1, results.get("pixels")
  of_prompts = [
    functools.reduce(lambda value, name: value[name], kind.path, results["figures"][name])
    for name in pair
  ]
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
    cells += [f"{100 * values[row]:.1f}" for values in of_prompts]
    rows.append([*cells, f"{100 * ranked[row]:+.1f}"] if two else cells)
  columns = ["class", "group", *(["pixels"] if pixels_C else []), *(labels[name] for name in pair)]
  heading = "Classes that differ most" if two else "Highest and lowest classes"
  text = (
    f"The two ends of {counted(len(ranked), 'class')} in the data. The figure of a class with few"
    " objects varies by chance; results.json has all classes."
  )
  table = Grid([*columns, "difference"] if two else columns, rows)
  return [Section(f"{heading}: {kind.figure} (%)", text, table)]
