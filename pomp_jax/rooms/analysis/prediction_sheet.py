"""A picture of test images with their most probable classes, which a training leaves."""

from collections.abc import Callable, Mapping, Sequence
import logging
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from pomp_jax.data.source import readable_images
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.classify import Classifier
from pomp_jax.files.paths import Path
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.report import drawing
from pomp_jax.report.labels import counted
from pomp_jax.train.setup import PromptRun

log = logging.getLogger(__name__)

_IMAGES = 12


def prediction_sheet(
  run: PromptRun, prompt: Prompt, results: Mapping[str, Any]
) -> Callable[[Path], None] | None:
  """Predicts test images of a finished training; all processes call it.

  Returns a function that draws the sheet as a PNG file; None if none of the images can be read.
  """
  # Prefer classes that the training did not see.
  splits = list(results["eval"])
  split = next((name for name in splits if name.endswith(("novel", "new"))), splits[0])
  source = run.encoder.sized(inputs.open_source(run.data, split, n_images=_IMAGES))
  shown = spread_evenly(_IMAGES, len(source))
  images, reasons = readable_images(source, shown)
  read = ~np.isin(shown, list(reasons))
  if not read.any():
    log.info("no picture of predictions: %s", next(iter(reasons.values())))
    return None
  images, shown = images[read], shown[read]
  classifier = Classifier(run.encoder, prompt, source.names)
  title = (
    f"{split}: {len(images)} of {counted(results['eval_images'][split], 'image')},"
    f" {counted(len(source.names), 'class')}"
  )
  names = [source.names[label] for label in source.labels[shown]]
  top3: Sequence[Any] = classifier.predict(list(images), top=3)
  return lambda path: _draw(path, images, names, top3, title)


def _draw(
  path: Path,
  images: np.ndarray,
  names: Sequence[str],
  top3: Sequence[Sequence[tuple[str, float]]],
  title: str,
) -> None:
  """Draws images, uint8 [n,H,W,3], with their names and the most probable ones, best first."""
  columns = min(len(images), 4)
  rows = -(-len(images) // columns)
  width, height = 2.9 * columns, 3.7 * rows + 0.3
  figure = Figure(figsize=(width, height))
  figure.suptitle(drawing.escape(title), fontsize=drawing.TITLE, y=1 - 0.12 / height, va="top")
  for index, image in enumerate(images):
    # Inches from the lower left. Positions are fixed: a layout engine takes seconds here.
    x, y = 2.9 * (index % columns), 3.7 * (rows - 1 - index // columns)
    picture = figure.add_axes(((x + 0.35) / width, (y + 1.1) / height, 2.2 / width, 2.15 / height))
    answers = figure.add_axes(((x + 0.1) / width, (y + 0.15) / height, 2.7 / width, 0.85 / height))
    picture.axis("off")
    answers.axis("off")
    # Few pixels must stay pixels; many are reduced, where smoothing is right.
    enlarged = max(image.shape[:2]) < 2.15 * drawing.DPI
    picture.imshow(image, interpolation="nearest" if enlarged else "antialiased")
    heading = textwrap.fill(drawing.name(names[index], 60), 32)
    picture.set_title(heading, fontsize=drawing.HEADING)
    _draw_answers(answers, names[index], top3[index])
  drawing.save(path, figure)


def _draw_answers(axes: Axes, true_name: str, found: Sequence[tuple[str, float]]) -> None:
  """Draws one line a name: a tick if it is right, and the name over a bar of its probability."""
  axes.set(xlim=(0, 1), ylim=(3, 0))
  shown = drawing.names([name for name, _ in found], 38)
  # At 8.5 points 26 bold letters fit.
  size = 8.5 * min(1.0, 26 / max(1, *map(len, shown)))
  for line, (name, probability) in enumerate(found):
    right = name == true_name
    colour = drawing.GREEN if right else drawing.GREY
    axes.barh(line + 0.5, probability, height=0.84, color=colour, alpha=0.35, linewidth=0)
    font: dict[str, Any] = {"va": "center", "fontsize": 8.5}
    font["weight"] = "bold" if right else "normal"
    axes.text(0.015, line + 0.52, "\u2713" if right else "", color="#00664B", **font)
    axes.text(0.085, line + 0.52, shown[line], **font | {"fontsize": size})
    axes.text(0.99, line + 0.52, f"{100 * probability:.0f}%", ha="right", **font)
