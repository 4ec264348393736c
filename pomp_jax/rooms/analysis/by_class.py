"""Answers of an evaluation class by class: CSV files, confusion matrices, sections of
its report.

A set is a mapping: `split`, `classes` (N names) and `prompts` (label -> figures of
`metrics.Tally.figures` and `by_class`, the latter perhaps missing).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
import numpy as np

from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.report import drawing
from pomp_jax.report.labels import prompt_labels
from pomp_jax.report.report import Section, Table, write_csv

_RESULTS = (
  *("prompt", "set", "split", "n", "classes", "top1", "top1_low", "top1_high", "top5"),
  *(
    "macro_top1",
    "ece",
    "reference",
    "difference",
    "difference_low",
    "difference_high",
  ),
  *("p_value",),
)
_CLASS = ("set", "prompt", "class", "images", "top1")
_CONFUSION = ("set", "prompt", "class", "answer", "images", "images_of_class")
# Classes of a set whose confusion matrix is drawn.
_MOST_DRAWN = 50
# Pairs of names, and classes, that `results.json` and the report hold of a set.
_PAIRS, _CLASSES = 20, 50


def sets_of(
  names: Mapping[str, Sequence[str]],
  scores: Mapping[str, Mapping[str, Any]],
  reference: str,
  labels: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
  """Sets of a training's splits, by the names of their classes and the figures of their
  prompts.

  `labels` has the prompts that are called otherwise than by `prompt_labels`.
  """
  sets = {}
  for split, classes in names.items():
    images = split.partition("/")[0]
    images = images if images in ("train", "validation") else "test"
    own = {
      "split": images,
      "classes": classes,
      "reference": reference,
      "labels": labels,
    }
    sets[split] = own | {"prompts": scores[split]}
  return sets


def write(folder: RunFolder, sets: Mapping[str, Mapping[str, Any]]) -> None:
  """Writes `results.csv`, `classes.csv`, `confusions.csv` and plots of small sets."""
  rows, classes, confusions = [], [], []
  for name, of_set in sets.items():
    names = of_set["classes"]
    for label, figures in of_set["prompts"].items():
      row = [label, name, of_set["split"], figures["images"], len(names)]
      row += [figures["top1"], *figures["top1_interval"], figures["top5"]]
      row += [figures.get("macro_top1"), figures.get("ece")]
      if found := figures.get("difference"):
        row += [
          of_set.get("reference"),
          found["top1"],
          *found["interval"],
          found["p_value"],
        ]
      rows.append(row + [None] * (len(_RESULTS) - len(row)))
      if "per_class" in figures:
        images_N, top1_N = _per_class(figures)
        for one, images, top1 in zip(names, images_N, top1_N, strict=True):
          classes.append((name, label, one, images, top1 if images else ""))
        for c, answer, count in figures["confusions"]:
          confusions.append((name, label, names[c], names[answer], count, images_N[c]))
    best = _best_prompt(of_set)
    if best and 1 < len(names) <= _MOST_DRAWN:
      prompts = list(of_set["prompts"])
      labels = dict(zip(prompts, prompt_labels(prompts), strict=True)) | of_set.get(
        "labels", {}
      )
      title = f"{name}: answers under {labels[best]}"
      images_N, top1_N = _per_class(of_set["prompts"][best])
      matrix_NxN = np.diag(np.rint(np.nan_to_num(top1_N) * images_N).astype(int))
      for c, answer, count in of_set["prompts"][best]["confusions"]:
        matrix_NxN[c, answer] = count
      _draw_confusions(folder.plots / _picture(name), matrix_NxN, names, title)
  for file, columns, found in (
    ("results.csv", _RESULTS, rows),
    ("classes.csv", _CLASS, classes),
    ("confusions.csv", _CONFUSION, confusions),
  ):
    write_csv(folder.path / file, columns, found)


def _best_prompt(of_set: Mapping[str, Any]) -> str | None:
  """The prompt of the highest top-1, the first of several, whose answers are known
  by class."""
  prompts = {
    label: one for label, one in of_set["prompts"].items() if "per_class" in one
  }
  return max(prompts, key=lambda label: prompts[label]["top1"], default=None)


def summary(of_set: Mapping[str, Any], label: str | None = None) -> dict[str, Any]:
  """What `results.json` holds of one prompt, the best one if None, as JSON values.

  `confused` has [class, answer, images, images of the class], the most frequent first;
  `hardest` [class, images, top1], the lowest first. Empty where answers are not known.
  """
  label = label or _best_prompt(of_set)
  if label is None or "per_class" not in of_set["prompts"][label]:
    return {}
  figures, names = of_set["prompts"][label], of_set["classes"]
  images_N, top1_N = _per_class(figures)
  order = sorted((c for c in range(len(names)) if images_N[c]), key=lambda c: top1_N[c])
  return {
    "prompt": label,
    "confused": [
      [names[c], names[answer], count, images_N[c]]
      for c, answer, count in figures["confusions"][:_PAIRS]
    ],
    "hardest": [[names[c], images_N[c], top1_N[c]] for c in order[:_CLASSES]],
  }


def sections(
  sets: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> list[Section]:
  """Sections of confused names, confusion matrices, accuracy of classes, by each
  `summary`."""
  confused, hardest = [], []
  for name, of_set in sets.items():
    head = [name, labels.get(of_set["prompt"], of_set["prompt"])]
    for one, answer, count, images in of_set.get("confused", ()):
      confused.append([*head, one, answer, f"{count} of {images}"])
    for one, images, top1 in of_set.get("hardest", ()):
      hardest.append([*head, one, str(images), f"{100 * top1:.1f}"])
  columns = ("set", "prompt", "class")
  sections = []
  if confused:
    text = f"The {_PAIRS} most frequent errors of a set; confusions.csv has up to 2,500 kinds."
    table = Table((*columns, "taken for", "images"), confused)
    sections.append(
      Section("Most confused names", text, table, folded=len(confused) > _PAIRS)
    )
  sections += [Section(f"Confusions: {name}", picture=_picture(name)) for name in sets]
  if hardest:
    text = (
      f"The {_CLASSES} lowest of a set; classes.csv has the others, and all prompts."
    )
    table = Table((*columns, "images", "top-1 (%)"), hardest)
    sections.append(Section("Accuracy of classes", text, table, folded=True))
  return sections


def _picture(name: str) -> str:
  return f"confusions_{name.replace('/', '-')}.png"


def _per_class(figures: Mapping[str, Any]) -> tuple[list[int], list[float]]:
  """Images and accuracy of each class, as Python's numbers."""
  images, top1 = (figures["per_class"][key] for key in ("images", "top1"))
  return np.asarray(images, int).tolist(), np.asarray(top1, float).tolist()


def _draw_confusions(
  path: Path, matrix_NxN: np.ndarray, names: Sequence[str], title: str
) -> None:
  """Draws answers by class: a row a class, with its images' shares and numbers by
  answer."""
  n = len(names)
  side = max(2.2, 0.2 * n) if n > 15 else max(2.2, 0.36 * n)
  figure = Figure(figsize=(side + 3.2, side + 2.2), layout="constrained")
  figure.suptitle(drawing.name(title, 70), fontsize=drawing.TITLE)
  axes = figure.subplots()
  shares = matrix_NxN / np.maximum(matrix_NxN.sum(axis=1, keepdims=True), 1)
  picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  size = drawing.TEXT if n <= 15 else 5.5
  for row, column in zip(*np.nonzero(matrix_NxN), strict=True):
    colour = "white" if shares[row, column] > 0.6 else "black"
    font: dict[str, Any] = {
      "ha": "center",
      "va": "center",
      "fontsize": size,
      "color": colour,
    }
    axes.text(column, row, str(matrix_NxN[row, column]), **font)
  shown = drawing.names(names, 26)
  drawing.label_panel(axes, "", "answer", "class of the image")
  axes.set_xticks(range(n), shown, rotation=90)
  axes.set_yticks(range(n), shown)
  axes.tick_params(labelsize=drawing.TEXT if n <= 30 else 7, length=0)
  axes.spines[:].set_visible(False)
  bar = figure.colorbar(picture, ax=axes, shrink=0.6, format=PercentFormatter(1.0))
  bar.set_label("share of the class's images", fontsize=drawing.TEXT)
  bar.ax.tick_params(labelsize=drawing.TEXT)
  bar.outline.set_visible(False)
  drawing.save(path, figure)
