"""The report of the job `analyse`."""

from collections.abc import Mapping
from typing import Any

from pomp_jax.report.labels import counted
from pomp_jax.report.report import (
  INTERVAL,
  Report,
  Section,
  Table,
  cell,
  percent,
  prompts_section,
  short_labels,
)


def geometry_report(results: Mapping[str, Any], _: Mapping[str, Any]) -> Report:
  """Report of the job `analyse`: figures, maps and similarities of each set, nearest tokens."""
  labels, sets = short_labels(results["prompts"]), results["sets"]
  counts = [(name, f"{of['images']:,}", f"{of['classes']:,}") for name, of in sets.items()]
  sections = [
    prompts_section(results["prompts"], labels),
    Section("Data sets", table=Table(("set", "images", "classes"), counts)),
    Section("Alignment and uniformity", picture="alignment_uniformity.png"),
  ]
  for title, text, shown in (
    ("Alignment (lower is better)", "", lambda of: cell(of["alignment"], 3)),
    ("Uniformity (lower is better)", "", lambda of: cell(of["uniformity"], 3)),
    ("Top-1 accuracy (%)", INTERVAL, lambda of: percent(of["top1"], of.get("top1_interval"))),
  ):
    rows = [
      [short, *(shown(of_set["prompts"][label]) for of_set in sets.values())]
      for label, short in labels.items()
    ]
    sections.append(Section(title, text, Table(("prompt", *sets), rows), brief=True))
  for name in sets:
    file = name.replace("/", "-")
    sections.append(Section(f"Class features of {name}", picture=f"map_{file}.png"))
    sections.append(Section(f"Cosines of classes of {name}", picture=f"similarity_{file}.png"))
  text = (
    "Euclidean distances; half of the vocabulary's tokens have another within"
    f" {results['tokens']['median_distance_between_tokens']:.3f}."
  )
  for label, vectors in results["tokens"]["vectors"].items():
    rows = []
    for number, one in enumerate(vectors, 1):
      near = zip(one["tokens"], one["distances"], strict=True)
      rows.append([str(number), *(f"{token} {distance:.3f}" for token, distance in near)])
    if rows:  # a prompt of class names alone has no vector
      table = Table(("vector", *(f"token {i}" for i in range(1, len(rows[0])))), rows)
      sections.append(Section(f"Nearest tokens: {labels[label]}", text, table, brief=True))
  prompts = counted(len(labels), "prompt")
  text = f"{prompts} on {counted(len(sets), 'data set')}, CLIP {results['clip_model']}."
  return Report(f"Class features under {prompts}", text, sections)
