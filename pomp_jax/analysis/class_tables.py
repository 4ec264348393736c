"""Answers of an evaluation as CSV files, class by class, and as confusion matrices.

A set is a mapping: `split`, `classes` (N names) and `prompts` (label -> figures of
`metrics.Tally.figures` and `by_class`, the latter perhaps missing).
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import io
from typing import Any

import numpy as np

from pomp_jax.analysis import plots
from pomp_jax.analysis.labels import prompt_labels
from pomp_jax.analysis.report import Section, Table, pictures
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder

# Classes of a set whose confusion matrix is drawn.
_MOST_DRAWN = 50
# Pairs of names, and classes, that `results.json` and the report hold of a set.
_PAIRS, _CLASSES = 20, 50


def write_class_tables(folder: RunFolder, sets: Mapping[str, Mapping[str, Any]]) -> None:
  """Writes `results.csv`, `classes.csv`, `confusions.csv` and plots of small sets.

  Args:
    folder: folder of the run.
    sets: set -> as above.
  """
  _write_csv(folder, "results.csv", _RESULTS, _results(sets))
  prompts = [
    (name, of_set["classes"], label, figures)
    for name, of_set in sets.items()
    for label, figures in of_set["prompts"].items()
    if "per_class" in figures
  ]
  _write_csv(
    folder,
    "classes.csv",
    ("set", "prompt", "class", "images", "top1"),
    (
      (name, label, one, images, top1 if images else "")
      for name, classes, label, figures in prompts
      for one, images, top1 in zip(classes, *_per_class(figures), strict=True)
    ),
  )
  _write_csv(
    folder,
    "confusions.csv",
    ("set", "prompt", "class", "answer", "images", "images_of_class"),
    (
      (name, label, classes[c], classes[answer], count, _per_class(figures)[0][c])
      for name, classes, label, figures in prompts
      for c, answer, count in figures["confusions"]
    ),
  )
  for name, of_set in sets.items():
    label = best_prompt(of_set)
    if label and 1 < len(of_set["classes"]) <= _MOST_DRAWN:
      plots.confusion_matrix(
        folder.plots / _picture(name), _matrix(of_set["prompts"][label]), of_set["classes"],
        f"{name}: answers under {prompt_labels([label])[0]}",
      )  # fmt: skip


_RESULTS = (
  *("prompt", "set", "split", "n", "classes", "top1", "top1_low", "top1_high", "top5"),
  *("macro_top1", "ece", "reference", "difference", "difference_low", "difference_high"),
  *("p_value",),
)


def _results(sets: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple]:
  """A line for each prompt of each set; shares are fractions."""
  for name, of_set in sets.items():
    reference = of_set.get("reference")
    for label, figures in of_set["prompts"].items():
      top1 = (figures["top1"], *figures["top1_interval"], figures["top5"])
      found = figures.get("difference")
      other = (reference, found["top1"], *found["interval"], found["p_value"]) if found else ()
      known = (figures.get("macro_top1", ""), figures.get("ece", ""))
      row = (label, name, of_set["split"], figures["images"], len(of_set["classes"]))
      yield (*row, *top1, *known, *other, *[""] * (5 - len(other)))


def best_prompt(of_set: Mapping[str, Any]) -> str | None:
  """The prompt of the highest top-1, the first of several, whose answers are known by class."""
  prompts = {label: one for label, one in of_set["prompts"].items() if "per_class" in one}
  return max(prompts, key=lambda label: prompts[label]["top1"], default=None)


def class_summary(of_set: Mapping[str, Any], label: str | None = None) -> dict[str, Any]:
  """What `results.json` holds of one prompt, the best one if None, as JSON values.

  Returns:
    `prompt`; `confused`: [class, answer, images, images of the class], the most frequent first;
    `hardest`: [class, images, top1], the lowest first. Nothing where answers are not known.
  """
  label = label or best_prompt(of_set)
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


def class_sections(
  summaries: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> list[Section]:
  """Sections of a report: confused names, confusion matrices, accuracy of classes.

  Args:
    summaries: set -> `class_summary`.
    labels: label -> short label of a prompt.
  """
  confused, hardest = [], []
  for name, of_set in summaries.items():
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
    folded = len(confused) > _PAIRS
    sections.append(Section("Most confused names", text, table, folded=folded))
  sections += pictures({_picture(name): f"Confusions: {name}" for name in summaries})
  if hardest:
    text = f"The {_CLASSES} lowest of a set; classes.csv has the others, and all prompts."
    table = Table((*columns, "images", "top-1 (%)"), hardest)
    sections.append(Section("Accuracy of classes", text, table, folded=True))
  return sections


def _picture(name: str) -> str:
  return f"confusions_{name.replace('/', '-')}.png"


def _per_class(figures: Mapping[str, Any]) -> tuple[list[int], list[float]]:
  """Images and accuracy of each class, as Python's numbers."""
  images, top1 = (figures["per_class"][key] for key in ("images", "top1"))
  return np.asarray(images, int).tolist(), np.asarray(top1, float).tolist()


def _matrix(figures: Mapping[str, Any]) -> np.ndarray:
  """Images by class and answer, int [N,N]."""
  images_N, top1_N = map(np.asarray, _per_class(figures))
  matrix_NxN = np.diag(np.rint(images_N * np.nan_to_num(top1_N)).astype(int))
  for c, answer, count in figures["confusions"]:
    matrix_NxN[c, answer] = count
  return matrix_NxN


def _write_csv(
  folder: RunFolder, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  with replacing(folder.path / name) as file:
    file.write(text.getvalue().encode())
