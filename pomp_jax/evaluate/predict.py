"""Names for pictures, their pixels or their objects: of one picture, or of a folder
with folders.

Writes `results.csv`, `results.json` and a report to the run's folder: the names found
in each file, the likeliest or largest first, and for each file that can't be read the
reason. `segment` also writes a label image and a picture of each file, `detect` a
picture of each file and `detections.json`.
"""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import logging
from typing import Any

from jaxtyping import UInt8
import numpy as np

from pomp_jax import hosts
from pomp_jax.config import fields
from pomp_jax.config.fields import Data, Predict
from pomp_jax.config.jobs import PredictConfig
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.data.folder import find_images
from pomp_jax.data.images import ImageError, read_image
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.classifier import Classifier, open_prompt
from pomp_jax.evaluate.named_prompts import NamedPrompt, check_prompt, warn_of_turns
from pomp_jax.files.paths import Path
from pomp_jax.files.prompt_file import recorded_classes
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.registry import TASKS, load
from pomp_jax.report.report import write_csv
from pomp_jax.report.run_report import finish_run

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

# A spreadsheet reads a field that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Pictures:
  """The pictures of a run by number, each read when it is asked for."""

  def __init__(
    self, files: Mapping[str, Path], read: Callable[[Path], Any], block: int
  ):
    """Reads no picture.

    Args:
      files: pictures by their names in the results.
      read: reads a picture; raises ImageError if it can't.
      block: number of pictures that stay in memory, since each is read more than once.
    """
    self.keys = list(files)
    self.unreadable: dict[str, str] = {}  # name -> why the picture can't be read
    self._files = files
    self._picture = functools.lru_cache(block)(lambda row: read(files[self.keys[row]]))

  def __len__(self) -> int:
    return len(self.keys)

  def __getitem__(self, row: int) -> Any:
    """Returns what `read` returns for picture number `row`."""
    return self._picture(row)

  def readable(self, block: Iterable[int]) -> list[int]:
    """Returns the numbers of the pictures that can be read; notes why others can't."""
    rows = []
    for row in block:
      try:
        self._picture(row)
        rows.append(row)
      except ImageError as error:
        key = self.keys[row]
        reason = str(error).removeprefix(f"{self._files[key]}: ")
        self.unreadable[key] = reason
    return rows

  def check_readable(self, where: str) -> None:
    """Warns of pictures that can't be read.

    Args:
      where: the folder or file, for the message.

    Raises:
      CorruptDataError: no picture can be read.
    """
    if not self.unreadable:
      return
    name, reason = next(iter(self.unreadable.items()))
    problem = (
      f"{len(self.unreadable)} of {len(self)} images can't be read;"
      f" the first: {name}: {reason}"
    )
    if len(self.unreadable) == len(self):
      raise CorruptDataError(f"{where}: {problem}")
    log.warning("%s", problem)


def square_pictures(
  files: Mapping[str, Path], encoder: Encoder, upright: bool, block: int
) -> Pictures:
  """Opens pictures as the image tower takes them, uint8 [S,S,3].

  Args:
    files: pictures by their names in the results.
    encoder: CLIP in use, with its side S and its way to resize.
    upright: whether pictures are turned by EXIF.
    block: number of pictures that stay in memory.
  """

  def read(path: Path) -> UInt8[np.ndarray, "S S 3"]:
    return read_image(path, encoder.clip.image_size, upright, resize=encoder.resize)

  return Pictures(files, read, block)


@dataclasses.dataclass(frozen=True)
class OpenTask:
  """A task that is ready to answer pictures."""

  pictures: Pictures
  # Fields of `results.json` beside those of the pictures.
  facts: Mapping[str, Any]
  # Numbers of readable pictures -> the number of each, and the task's answer to it.
  answers: Callable[[Sequence[int]], Iterable[tuple[int, Any]]]
  # Number of a picture and the answer to it -> rows of the results, the likeliest or
  # largest first. Writes the picture's files.
  rows: Callable[[int, Any], Rows]
  # Writes the files of all pictures together.
  finish: Callable[[], None] = lambda: None


class Task(abc.ABC):
  """One value of `predict.task`: what is found in pictures, and the files of it."""

  batch = 8  # pictures that are read and computed together
  columns: tuple[str, ...] = ()  # fields of a row, those of `results.csv`

  def __init__(self, settings: Predict, data: Data, clip: fields.Clip):
    """Reads the names."""
    self._settings = settings
    self._upright = data.upright
    self._clip = clip
    # Without a list of names, use the names of the prompt's training.
    self.names = settings.names or recorded_classes(settings.prompt)
    names = load_class_list(self.names).names
    check_names(names, self.names)
    # names of each class
    self._synonyms: Sequence[Sequence[str]] = [(name,) for name in names]

  def check(self, files: Mapping[str, Path]) -> None:
    """Raises InputError if the prompt or a setting can't be used; opens no picture."""
    opened = open_prompt(self._settings.prompt, "predict.prompt")
    named = NamedPrompt(self._settings.prompt, opened)
    clip_config = opening.clip_config(self._clip.model)
    check_prompt(named, self._synonyms, clip_config, self._clip.model)
    warn_of_turns([named], self._upright, f"data.upright={self._upright}")

  @abc.abstractmethod
  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> OpenTask:
    """Prepares the computation; reads no picture.

    Args:
      encoder: CLIP in use.
      files: pictures by their names in the results.
      folder: folder of the run, to which the files of each picture are written.

    Raises:
      InputError: the prompt or its parts can't be used.
    """

  @abc.abstractmethod
  def text(self, row: Mapping[str, Any]) -> str:
    """Returns a row of the results as the terminal shows it."""


class Classify(Task):
  """The likeliest names of a picture."""

  batch = 256
  columns = ("name", "probability")

  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> OpenTask:
    """See `Task.open`."""
    settings = self._settings
    classifier = Classifier(
      encoder, settings.prompt, self.names, calibration=settings.calibration
    )
    note = classifier.scale.note
    log.info("probabilities: %s", note)
    pictures = square_pictures(files, encoder, self._upright, self.batch)

    def answers(block: Sequence[int]) -> Iterable[tuple[int, Any]]:
      pixels = [pictures[row] for row in block]
      return zip(block, classifier.predict(pixels, settings.top), strict=True)

    def rows(row: int, likeliest: Sequence[tuple[str, float]]) -> Rows:
      return [{"name": name, "probability": p} for name, p in likeliest]

    facts = {"n_classes": len(self._synonyms), "probabilities": note}
    return OpenTask(pictures, facts, answers, rows)

  def text(self, row: Mapping[str, Any]) -> str:
    """See `Task.text`."""
    return f"{row['name']} {100 * row['probability']:.1f}%"


def check(config: PredictConfig, workdir: str) -> None:
  """Checks names, prompt, regions or network, and lists pictures; writes nothing."""
  kind = TASKS[config.predict.task]
  task = load(kind.open)(config.predict, config.data, config.clip)
  task.check(find_images(config.predict.images, unread=True))


def run(config: PredictConfig, workdir: str) -> dict:
  """Prints and writes the names for each picture; returns what `results.json` holds.

  Processes other than the first return an empty dict.

  Raises:
    CorruptDataError: no image can be read.
  """
  settings = config.predict
  folder = RunFolder(workdir)
  task = load(TASKS[settings.task].open)(settings, config.data, config.clip)
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  files = find_images(settings.images, unread=True)
  if not settings.names:
    log.info("names: those of the training, %s", task.names)
  opened = task.open(encoder, files, folder)
  rows_of = _answered(task, opened, folder, settings.top)
  opened.pictures.check_readable(settings.images)
  if not hosts.is_first():
    return {}

  results = {
    "job": config.job,
    "task": settings.task,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    "names": task.names,
    "upright": config.data.upright,
    **opened.facts,
    "images": rows_of,
    "unreadable": opened.pictures.unreadable,
  }
  opened.finish()
  path = folder.path / "results.csv"
  with writing(path):
    write_csv(path, ("file", "rank", *task.columns), _table(rows_of, task.columns))
  finish_run(folder, config.to_dict(), results)
  return results


def _answered(
  task: Task, opened: OpenTask, folder: RunFolder, top: int
) -> dict[str, Rows]:
  """Answers all pictures block by block, and prints a line for each.

  Args:
    task: how a row is printed.
    opened: the same task, opened.
    folder: folder of the run, created once there is an answer.
    top: most names on a line.

  Returns:
    Rows by the name of the picture, on the first process; empty on others.
  """
  pictures = opened.pictures
  numbers = range(len(pictures))
  blocks = [
    numbers[start : start + task.batch] for start in range(0, len(numbers), task.batch)
  ]
  rows_of: dict[str, Rows] = {}
  for block in steps_of(blocks, "predicting", f"blocks of {task.batch} images"):
    readable = pictures.readable(block)
    if not readable:
      continue
    for row, answer in opened.answers(readable):
      if not hosts.is_first():
        continue
      if not rows_of:
        folder.create()
      key = pictures.keys[row]
      rows_of[key] = opened.rows(row, answer)
      texts = [task.text(answer_row) for answer_row in rows_of[key][:top]]
      line = f"{key}: " + ", ".join(texts)
      print(printable(line, len(line)))
  return rows_of


def _table(
  rows_of: Mapping[str, Rows], columns: Sequence[str]
) -> list[tuple[Any, ...]]:
  """Lines of `results.csv`: file, rank, and the task's columns."""
  lines: list[tuple[Any, ...]] = []
  for key, answers in rows_of.items():
    file = key
    if key.startswith(_FORMULA):
      # `=a.png` becomes `./=a.png`, which is no formula.
      file = f"./{key}"
    for rank, answer in enumerate(answers, 1):
      values = [answer.get(column) for column in columns]
      lines.append((file, rank, *values))
  return lines
