"""Answers of an evaluation class by class: CSV files, confusion matrices, sections of
the report.

A set is a mapping with `split`, `classes` (N names) and `prompts` (label -> figures of
`metrics.Tally.figures` and, if known, `metrics.Tally.by_class`). `reference` and
`labels` are optional, see `sets_of`.
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
  "prompt",
  "set",
  "split",
  "n",
  "classes",
  "top1",
  "top1_low",
  "top1_high",
  "top5",
  "macro_top1",
  "ece",
  "reference",
  "difference",
  "difference_low",
  "difference_high",
  "p_value",
)
_CLASS = ("set", "prompt", "class", "images", "top1")
_CONFUSION = ("set", "prompt", "class", "answer", "images", "images_of_class")
# Most classes of a set whose confusion matrix is drawn.
_MOST_DRAWN = 50
# Most entries of a set in `results.json` and in the report.
_PAIRS = 20  # pairs of confused names
_CLASSES = 50  # classes of the lowest accuracy


def sets_of(
  names: Mapping[str, Sequence[str]],
  scores: Mapping[str, Mapping[str, Any]],
  reference: str,
  labels: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
  """Builds sets from the splits of a training, as `write` takes them.

  Args:
    names: names of the classes of each split.
    scores: figures of the prompts on each split.
    reference: prompt that the others are compared with.
    labels: labels of prompts, if they differ from those of `prompt_labels`.
  """
  sets = {}
  for split, classes in names.items():
    # A slash separates the split of the images from the part of the classes.
    split_of_images = split.partition("/")[0]
    if split_of_images not in ("train", "validation"):
      split_of_images = "test"
    sets[split] = {
      "split": split_of_images,
      "classes": classes,
      "reference": reference,
      "labels": labels,
      "prompts": scores[split],
    }
  return sets


def write(folder: RunFolder, sets: Mapping[str, Mapping[str, Any]]) -> None:
  """Writes `results.csv`, `classes.csv`, `confusions.csv` and plots of small sets."""
  rows: list[list[Any]] = []
  classes: list[tuple[Any, ...]] = []
  confusions: list[tuple[Any, ...]] = []
  for name, of_set in sets.items():
    names = of_set["classes"]
    for label, figures in of_set["prompts"].items():
      rows.append(_result_row(name, of_set, label))
      if "per_class" not in figures:
        continue
      images_N, top1_N = _per_class(figures)
      # A class without images has no accuracy.
      for class_name, images, top1 in zip(names, images_N, top1_N, strict=True):
        classes.append((name, label, class_name, images, top1 if images else ""))
      for c, answer, count in figures["confusions"]:
        confusions.append((name, label, names[c], names[answer], count, images_N[c]))
    best = _best_prompt(of_set)
    if best is not None and 1 < len(names) <= _MOST_DRAWN:
      prompts = list(of_set["prompts"])
      labels = dict(zip(prompts, prompt_labels(prompts), strict=True))
      labels |= of_set.get("labels", {})
      _draw_confusions(
        folder.plots / _picture(name),
        _confusion_matrix(of_set["prompts"][best]),
        names,
        f"{name}: answers under {labels[best]}",
      )
  write_csv(folder.path / "results.csv", _RESULTS, rows)
  write_csv(folder.path / "classes.csv", _CLASS, classes)
  write_csv(folder.path / "confusions.csv", _CONFUSION, confusions)


def _result_row(name: str, of_set: Mapping[str, Any], label: str) -> list[Any]:
  """A prompt's row of `results.csv`; None for a figure that is not known."""
  figures = of_set["prompts"][label]
  low, high = figures["top1_interval"]
  row = [
    label,
    name,
    of_set["split"],
    figures["images"],
    len(of_set["classes"]),
    figures["top1"],
    low,
    high,
    figures["top5"],
    figures.get("macro_top1"),
    figures.get("ece"),
  ]
  difference = figures.get("difference")
  if difference:
    low, high = difference["interval"]
    reference = of_set.get("reference")
    row += [reference, difference["top1"], low, high, difference["p_value"]]
  return row + [None] * (len(_RESULTS) - len(row))


def _confusion_matrix(figures: Mapping[str, Any]) -> np.ndarray:
  """Counts the images of each class by answer, int [N,N]."""
  images_N, top1_N = _per_class(figures)
  n_right_N = np.rint(np.nan_to_num(top1_N) * images_N)
  matrix_NxN = np.diag(n_right_N.astype(int))
  for c, answer, count in figures["confusions"]:
    matrix_NxN[c, answer] = count
  return matrix_NxN


def _best_prompt(of_set: Mapping[str, Any]) -> str | None:
  """The prompt of the highest top-1 among those with figures by class.

  Of prompts with equal top-1 it is the first. None if no prompt has figures by class.
  """
  top1_of = {}
  for label, figures in of_set["prompts"].items():
    if "per_class" in figures:
      top1_of[label] = figures["top1"]
  return max(top1_of, key=top1_of.__getitem__, default=None)


def summary(of_set: Mapping[str, Any], label: str | None = None) -> dict[str, Any]:
  """Summarises one prompt, the best one if `label` is None, as JSON values.

  `confused` lists [class, answer, images, images of the class], the most frequent
  first. `hardest` lists [class, images, top1], the lowest top-1 first. The summary is
  empty if the prompt has no figures by class.
  """
  label = label or _best_prompt(of_set)
  if label is None or "per_class" not in of_set["prompts"][label]:
    return {}
  names = of_set["classes"]
  figures = of_set["prompts"][label]
  images_N, top1_N = _per_class(figures)
  confused = []
  for c, answer, count in figures["confusions"][:_PAIRS]:
    confused.append([names[c], names[answer], count, images_N[c]])
  with_images = [c for c in range(len(names)) if images_N[c]]
  hardest = sorted(with_images, key=lambda c: top1_N[c])[:_CLASSES]
  return {
    "prompt": label,
    "confused": confused,
    "hardest": [[names[c], images_N[c], top1_N[c]] for c in hardest],
  }


def sections(
  sets: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> list[Section]:
  """Sections of confused names, confusion matrices and accuracy of classes.

  Args:
    sets: `summary` of each set, by its name.
    labels: labels of prompts in tables; a prompt without a label appears by its name.
  """
  confused_rows = []
  class_rows = []
  for name, summary in sets.items():
    prompt = summary["prompt"]
    head = [name, labels.get(prompt, prompt)]
    for class_name, answer, n_errors, n_images in summary.get("confused", ()):
      share = f"{n_errors} of {n_images}"
      confused_rows.append([*head, class_name, answer, share])
    for class_name, n_images, top1 in summary.get("hardest", ()):
      class_rows.append([*head, class_name, str(n_images), f"{100 * top1:.1f}"])

  columns = ("set", "prompt", "class")
  sections = []
  if confused_rows:
    text = f"The {_PAIRS} most frequent errors of a set; confusions.csv has up to 2,500 kinds."
    table = Table((*columns, "taken for", "images"), confused_rows)
    is_long = len(confused_rows) > _PAIRS
    sections.append(Section("Most confused names", text, table, folded=is_long))
  for name in sets:
    sections.append(Section(f"Confusions: {name}", picture=_picture(name)))
  if class_rows:
    text = (
      f"The {_CLASSES} lowest of a set; classes.csv has the others, and all prompts."
    )
    table = Table((*columns, "images", "top-1 (%)"), class_rows)
    sections.append(Section("Accuracy of classes", text, table, folded=True))
  return sections


def _picture(name: str) -> str:
  return f"confusions_{name.replace('/', '-')}.png"


def _per_class(figures: Mapping[str, Any]) -> tuple[list[int], list[float]]:
  """Numbers of images and accuracies of the classes, as Python numbers."""
  images, top1 = (figures["per_class"][key] for key in ("images", "top1"))
  return np.asarray(images, int).tolist(), np.asarray(top1, float).tolist()


def _draw_confusions(
  path: Path, matrix_NxN: np.ndarray, names: Sequence[str], title: str
) -> None:
  """Draws a row for each class: shares and numbers of its images by answer."""
  n_classes = len(names)
  # Draw smaller cells for many classes.
  cell_inches = 0.2 if n_classes > 15 else 0.36
  side = max(2.2, cell_inches * n_classes)
  figure = Figure(figsize=(side + 3.2, side + 2.2), layout="constrained")
  figure.suptitle(drawing.name(title, 70), fontsize=drawing.TITLE)
  axes = figure.subplots()
  shares_NxN = matrix_NxN / np.maximum(matrix_NxN.sum(axis=1, keepdims=True), 1)
  picture = axes.imshow(shares_NxN, cmap="Blues", vmin=0, vmax=1)
  for row, column in np.argwhere(matrix_NxN):
    axes.text(
      column,
      row,
      str(matrix_NxN[row, column]),
      ha="center",
      va="center",
      fontsize=drawing.TEXT if n_classes <= 15 else 5.5,
      color="white" if shares_NxN[row, column] > 0.6 else "black",
    )
  short_names = drawing.names(names, 26)
  drawing.label_panel(axes, "", "answer", "class of the image")
  axes.set_xticks(range(n_classes), short_names, rotation=90)
  axes.set_yticks(range(n_classes), short_names)
  axes.tick_params(labelsize=drawing.TEXT if n_classes <= 30 else 7, length=0)
  axes.spines[:].set_visible(False)
  bar = figure.colorbar(picture, ax=axes, shrink=0.6, format=PercentFormatter(1.0))
  bar.set_label("share of the class's images", fontsize=drawing.TEXT)
  bar.ax.tick_params(labelsize=drawing.TEXT)
  bar.outline.set_visible(False)
  drawing.save(path, figure)
