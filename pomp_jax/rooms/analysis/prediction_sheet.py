"""A picture of test images with their most probable classes, which a training
leaves."""

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

_IMAGES = 12  # of a sheet
_CLASSIFIED = 256  # images among which misclassified ones are looked for
MISTAKES = "mistakes.png"


class Sheet(NamedTuple):
  """Images, uint8 [n,H,W,3], with their names and the most probable ones, best
  first."""

  images: np.ndarray
  names: Sequence[str]
  top3: Sequence[Sequence[tuple[str, float]]]

  def of(self, rows: Sequence[int]) -> "Sheet":
    """The sheet of these rows."""
    return Sheet(
      self.images[list(rows)],
      [self.names[row] for row in rows],
      [self.top3[row] for row in rows],
    )


def prediction_sheet(
  run: PromptRun, prompt: Prompt, results: Mapping[str, Any]
) -> Callable[[Path], None] | None:
  """Predicts test images of a finished training; all processes call it.

  Returns a function that draws the sheet as a PNG file, and misclassified images as
  `mistakes.png` beside it, if there are any; None if no image can be read.
  """
  # Prefer classes that the training did not see.
  splits = list(results["eval"])
  split = next((name for name in splits if name.endswith(("novel", "new"))), splits[0])
  sources = [
    run.encoder.sized(opening.open_source(run.data, split, n_images=n))
    for n in (_IMAGES, min(_CLASSIFIED, results["eval_images"][split]))
  ]
  classifier = Classifier(run.encoder, prompt, sources[0].names)
  shown = _classified(classifier, sources[0], _IMAGES)
  if shown is None:
    return None
  n_images, classes = (
    results["eval_images"][split],
    counted(len(classifier.names), "class"),
  )
  title = f"{split}: {len(shown.images)} of {counted(n_images, 'image')}, {classes}"
  mistakes, title_of_mistakes = misclassified(
    _classified(classifier, sources[1], _CLASSIFIED)
  )

  def draw(path: Path) -> None:
    _draw(path, *shown, title)
    if mistakes is not None:
      _draw(
        path.parent / MISTAKES, *mistakes, f"{split}, {classes}: {title_of_mistakes}"
      )

  return draw


def misclassified(classified: Sheet | None) -> tuple[Sheet | None, str]:
  """The misclassified images, and their number; None without any."""
  if classified is None:
    return None, ""
  # The most certain first: some of them are errors of the labels.
  by_certainty = sorted(
    range(len(classified.names)), key=lambda row: -classified.top3[row][0][1]
  )
  wrong = [
    row for row in by_certainty if classified.top3[row][0][0] != classified.names[row]
  ]
  if not wrong:
    return None, ""
  sheet = classified.of(wrong[:_IMAGES])
  title = (
    f"{len(sheet.names)} of {counted(len(wrong), 'misclassified image')} among"
    f" {len(classified.names):,}, the most certain first"
  )
  return sheet, title


def _classified(classifier: Classifier, source: Source, n_images: int) -> Sheet | None:
  """Predicts images of a source, as evenly over it as possible; None if none can be
  read."""
  rows = spread_evenly(n_images, len(source))
  images, reasons = readable_images(source, rows)
  read = ~np.isin(rows, list(reasons))
  if not read.any():
    log.info("no picture of predictions: %s", next(iter(reasons.values())))
    return None
  names = [source.names[label] for label in source.labels[rows[read]]]
  top3: Sequence[Any] = classifier.predict(list(images[read]), top=3)
  return Sheet(images[read], names, top3)


def _draw(
  path: Path,
  images: np.ndarray,
  names: Sequence[str],
  top3: Sequence[Sequence[tuple[str, float]]],
  title: str,
) -> None:
  """Draws images, uint8 [n,H,W,3], with their names and the most probable ones, best
  first."""
  columns = min(len(images), 4)
  rows = -(-len(images) // columns)
  width, height = 2.9 * columns, 3.7 * rows + 0.3
  figure = Figure(figsize=(width, height))
  figure.suptitle(
    drawing.escape(title), fontsize=drawing.TITLE, y=1 - 0.12 / height, va="top"
  )
  for index, image in enumerate(images):
    # Inches from the lower left. Positions are fixed: a layout engine takes seconds
    # here.
    x, y = 2.9 * (index % columns), 3.7 * (rows - 1 - index // columns)
    picture = figure.add_axes(
      ((x + 0.35) / width, (y + 1.1) / height, 2.2 / width, 2.15 / height)
    )
    answers = figure.add_axes(
      ((x + 0.1) / width, (y + 0.15) / height, 2.7 / width, 0.85 / height)
    )
    picture.axis("off")
    answers.axis("off")
    # Few pixels must stay pixels; many are reduced, where smoothing is right.
    enlarged = max(image.shape[:2]) < 2.15 * drawing.DPI
    picture.imshow(image, interpolation="nearest" if enlarged else "antialiased")
    heading = textwrap.fill(drawing.name(names[index], 60), 32)
    picture.set_title(heading, fontsize=drawing.HEADING)
    _draw_answers(answers, names[index], top3[index])
  drawing.save(path, figure)


def _draw_answers(
  axes: Axes, true_name: str, found: Sequence[tuple[str, float]]
) -> None:
  """Draws one line a name: a tick if it is right, and the name over a bar.

  The bar is the name's probability.
  """
  axes.set(xlim=(0, 1), ylim=(3, 0))
  short_names = drawing.names([name for name, _ in found], 38)
  # At 8.5 points 26 bold letters fit.
  longest = max(1, *map(len, short_names))
  name_size = 8.5 * min(1.0, 26 / longest)
  for line, (name, probability) in enumerate(found):
    is_right = name == true_name
    colour = drawing.GREEN if is_right else drawing.GREY
    bar: dict[str, Any] = {"height": 0.84, "alpha": 0.35, "linewidth": 0}
    axes.barh(line + 0.5, probability, color=colour, **bar)
    y = line + 0.52
    font: dict[str, Any] = {"va": "center", "weight": "bold" if is_right else "normal"}
    tick = "\u2713" if is_right else ""
    axes.text(0.015, y, tick, color="#00664B", fontsize=8.5, **font)
    axes.text(0.085, y, short_names[line], fontsize=name_size, **font)
    percentage = f"{100 * probability:.0f}%"
    axes.text(0.99, y, percentage, ha="right", fontsize=8.5, **font)
