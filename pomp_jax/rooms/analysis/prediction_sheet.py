"""Draws test images with their most probable classes at the end of a training."""

from collections.abc import Callable, Mapping, Sequence
import logging
import textwrap
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.data.source import Source, readable_images
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.files.paths import Path
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.report import drawing
from pomp_jax.report.labels import counted
from pomp_jax.train.training import PromptRun

log = logging.getLogger(__name__)

_IMAGES = 12  # most images of a sheet
_CLASSIFIED = 256  # most images among which misclassified ones are looked for
MISTAKES = "mistakes.png"


class Sheet(NamedTuple):
  """Images with the names of their classes, and the most probable names."""

  images: np.ndarray  # uint8 [n,H,W,3]
  names: Sequence[str]  # true class of each image
  # of each image: up to three names with their probabilities, the most probable first
  top3: Sequence[Sequence[tuple[str, float]]]

  def of(self, rows: Sequence[int]) -> "Sheet":
    """The sheet of these rows."""
    return Sheet(
      self.images[list(rows)],
      [self.names[row] for row in rows],
      [self.top3[row] for row in rows],
    )


def _split_to_show(splits: Sequence[str]) -> str:
  """The first split of classes that the training did not see, else the first split."""
  for split in splits:
    if split.endswith(("novel", "new")):
      return split
  return splits[0]


def prediction_sheet(
  run: PromptRun, prompt: Prompt, results: Mapping[str, Any]
) -> Callable[[Path], None] | None:
  """Predicts test images of a finished training; all processes call it.

  Args:
    run: the training.
    prompt: the prompt that the training has learned.
    results: results of the training, with the evaluated splits.

  Returns:
    A function that draws the sheet as a PNG file and, if there are misclassified
    images, `mistakes.png` beside the sheet. None if no image can be read.
  """
  split = _split_to_show(list(results["eval"]))
  n_images = results["eval_images"][split]

  def open_images(n: int) -> Source:
    return run.encoder.sized(opening.open_source(run.data, split, n_images=n))

  few_images = open_images(_IMAGES)
  classifier = Classifier(run.encoder, prompt, few_images.names)
  sheet = _classified(classifier, few_images, _IMAGES)
  if sheet is None:
    return None
  # Mistakes are rare, so look for them among more images.
  many_images = open_images(min(_CLASSIFIED, n_images))
  mistakes, count = misclassified(_classified(classifier, many_images, _CLASSIFIED))

  n_classes = counted(len(classifier.names), "class")
  title = f"{split}: {len(sheet.images)} of {counted(n_images, 'image')}, {n_classes}"
  title_of_mistakes = f"{split}, {n_classes}: {count}"

  def draw(path: Path) -> None:
    _draw(path, sheet, title)
    if mistakes is not None:
      _draw(path.parent / MISTAKES, mistakes, title_of_mistakes)

  return draw


def misclassified(classified: Sheet | None) -> tuple[Sheet | None, str]:
  """Returns a sheet of misclassified images and its title; None and "" without any."""
  if classified is None:
    return None, ""
  wrong = []
  for row, name in enumerate(classified.names):
    answer, _ = classified.top3[row][0]
    if answer != name:
      wrong.append(row)
  if not wrong:
    return None, ""
  # Show the most certain answers first: some of them reveal wrong labels.
  wrong.sort(key=lambda row: -classified.top3[row][0][1])
  sheet = classified.of(wrong[:_IMAGES])
  title = (
    f"{len(sheet.names)} of {counted(len(wrong), 'misclassified image')} among"
    f" {len(classified.names):,}, the most certain first"
  )
  return sheet, title


def _classified(classifier: Classifier, source: Source, n_images: int) -> Sheet | None:
  """Classifies images that are spread evenly over a source.

  Args:
    classifier: a prompt's classifier with the classes of the source.
    source: labelled images.
    n_images: number of images; unreadable ones among them are left out.

  Returns:
    The readable images with their names and three likeliest classes. None, with a line
    in the log, if no image can be read.
  """
  rows = spread_evenly(n_images, len(source))
  images, reasons = readable_images(source, rows)
  is_readable = ~np.isin(rows, list(reasons))
  if not is_readable.any():
    first_reason = next(iter(reasons.values()))
    log.info("no picture of predictions: %s", first_reason)
    return None

  images = images[is_readable]
  labels = source.labels[rows[is_readable]]
  names = [source.names[label] for label in labels]
  top3: Sequence[Any] = classifier.predict(list(images), top=3)
  return Sheet(images, names, top3)


def _draw(path: Path, sheet: Sheet, title: str) -> None:
  """Draws images with their names and the most probable names, best first."""
  n_columns = min(len(sheet.images), 4)
  n_rows = -(-len(sheet.images) // n_columns)  # rounded up
  # Sizes are in inches. Positions are fixed, because a layout engine takes seconds.
  width = 2.9 * n_columns
  height = 3.7 * n_rows + 0.3
  figure = Figure(figsize=(width, height))
  figure.suptitle(
    drawing.escape(title), fontsize=drawing.TITLE, y=1 - 0.12 / height, va="top"
  )

  def add_axes(left: float, bottom: float, wide: float, high: float) -> Axes:
    place = (left / width, bottom / height, wide / width, high / height)
    axes = figure.add_axes(place)
    axes.axis("off")
    return axes

  for index, image in enumerate(sheet.images):
    row, column = divmod(index, n_columns)
    x = 2.9 * column
    y = 3.7 * (n_rows - 1 - row)
    picture = add_axes(x + 0.35, y + 1.1, 2.2, 2.15)
    answers = add_axes(x + 0.1, y + 0.15, 2.7, 0.85)
    # Show the pixels of an enlarged image as they are; smooth a reduced image only.
    is_enlarged = max(image.shape[:2]) < 2.15 * drawing.DPI
    picture.imshow(image, interpolation="nearest" if is_enlarged else "antialiased")
    heading = textwrap.fill(drawing.name(sheet.names[index], 60), 32)
    picture.set_title(heading, fontsize=drawing.HEADING)
    _draw_answers(answers, sheet.names[index], sheet.top3[index])
  drawing.save(path, figure)


def _draw_answers(
  axes: Axes, true_name: str, answers: Sequence[tuple[str, float]]
) -> None:
  """Draws a line for each name: a tick if the name is right, and the name over a bar.

  The bar's length is the name's probability.
  """
  axes.set(xlim=(0, 1), ylim=(3, 0))
  short_names = drawing.names([name for name, _ in answers], 38)
  # At 8.5 points 26 bold letters fit. Reduce the font for longer names.
  longest = max(len(name) for name in short_names)
  name_size = 8.5 * min(1.0, 26 / max(longest, 1))
  for line, (name, probability) in enumerate(answers):
    is_right = name == true_name
    axes.barh(
      line + 0.5,
      probability,
      color=drawing.GREEN if is_right else drawing.GREY,
      height=0.84,
      alpha=0.35,
      linewidth=0,
    )
    y = line + 0.52
    font: dict[str, Any] = {"va": "center", "weight": "bold" if is_right else "normal"}
    if is_right:
      axes.text(0.015, y, "\u2713", color="#00664B", fontsize=8.5, **font)
    axes.text(0.085, y, short_names[line], fontsize=name_size, **font)
    percentage = f"{100 * probability:.0f}%"
    axes.text(0.99, y, percentage, ha="right", fontsize=8.5, **font)
