"""Names for pictures, their pixels or their objects: of one picture, or of a folder
with folders.

Writes `results.csv`, `results.json` and a report to the run's folder: the names found
in each file, the likeliest or largest first, and for each file that can't be read the
reason. `segment` also writes a label image and a picture of each file, `detect` a
picture of each file and `detections.json`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pomp_jax.data.unreadable import CorruptDataError
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


class Task:
  """One value of `predict.task`: what it finds in pictures, and the files that it
  writes."""

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
    # fields of `results.json` beside those of the pictures
    self.facts: dict[str, Any] = {}
    self.rows: dict[str, Rows] = {}  # picture -> answers
    self.unreadable: dict[str, str] = {}  # picture -> why it can't be read

  def check(self, files: Mapping[str, Path]) -> None:
    """Raises InputError if the prompt or a setting can't be used; opens no picture."""
    opened = open_prompt(self._settings.prompt, "predict.prompt")
    named = NamedPrompt(self._settings.prompt, opened)
    clip_config = opening.clip_config(self._clip.model)
    check_prompt(named, self._synonyms, clip_config, self._clip.model)
    warn_of_turns([named], self._upright, f"data.upright={self._upright}")

  def open(
    self, encoder: Encoder, files: Mapping[str, Path], folder: RunFolder
  ) -> None:
    """Prepares the computation; reads no picture.

    Args:
      encoder: CLIP in use.
      files: pictures by their names in the results.
      folder: folder of the run, to which the files of each picture are written.

    Raises:
      InputError: the prompt or its parts can't be used.
    """
    self._files = files
    self._keys = list(files)
    self._folder = folder

    def read(row: int) -> Any:
      return self._read(files[self._keys[row]])

    # Cache a block of pictures, because `find` and `take` both read them.
    self._picture = functools.lru_cache(self.batch)(read)
    self._find = self._open(encoder)

  def find(self, block: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields the number of each readable picture of a block, and the answer to it."""
    readable = []
    for row in block:
      key = self._keys[row]
      try:
        self._picture(row)
        readable.append(row)
      except ImageError as error:
        self.unreadable[key] = str(error).removeprefix(f"{self._files[key]}: ")
    if not readable:
      return iter(())
    return self._find(readable)

  def take(self, row: int, found: Any) -> None:
    """Writes the files of a picture, and prints a line with its answers."""
    if not self.rows:
      self._folder.create()
    key = self._keys[row]
    rows = self._take(key, self._picture(row), found)
    self.rows[key] = rows
    texts = [self._text(answer) for answer in rows[: self._settings.top]]
    line = f"{key}: " + ", ".join(texts)
    print(printable(line, len(line)))

  def finish(self) -> None:
    """Writes files of all pictures together."""

  # Each task defines four methods: `_read` reads a picture; `_open` prepares and
  # returns the function that `find` calls; `_take` returns the rows of a picture and
  # writes its files; `_text` formats a row.
  _read: Callable[[Path], Any]
  _open: Callable[[Encoder], Callable[[Sequence[int]], Iterator[tuple[int, Any]]]]
  _take: Callable[[str, Any, Any], Rows]
  _text: Callable[[Mapping[str, Any]], str]


class Classify(Task):
  """The likeliest names of a picture."""

  batch = 256
  columns = ("name", "probability")

  def _open(
    self, encoder: Encoder
  ) -> Callable[[Sequence[int]], Iterator[tuple[int, Any]]]:
    top = self._settings.top
    self._size = encoder.clip.image_size
    self._resize = encoder.resize
    classifier = Classifier(
      encoder,
      self._settings.prompt,
      self.names,
      calibration=self._settings.calibration,
    )
    note = classifier.scale.note
    self.facts = {"n_classes": len(self._synonyms), "probabilities": note}
    log.info("probabilities: %s", note)

    def find(block: Sequence[int]) -> Iterator[tuple[int, Any]]:
      pictures = [self._picture(row) for row in block]
      return zip(block, classifier.predict(pictures, top), strict=True)

    return find

  def _read(self, path: Path) -> UInt8[np.ndarray, "S S 3"]:
    return read_image(path, self._size, self._upright, resize=self._resize)

  def _take(
    self,
    key: str,
    picture: UInt8[np.ndarray, "S S 3"],
    found: Sequence[tuple[str, float]],
  ) -> Rows:
    return [{"name": name, "probability": p} for name, p in found]

  def _text(self, row: Mapping[str, Any]) -> str:
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
  task.open(encoder, files, folder)
  numbers = range(len(files))
  blocks = [
    numbers[start : start + task.batch] for start in range(0, len(files), task.batch)
  ]
  for block in steps_of(blocks, "predicting", f"blocks of {task.batch} images"):
    for row, answer in task.find(block):
      if hosts.is_first():
        task.take(row, answer)
  if task.unreadable:
    name, reason = next(iter(task.unreadable.items()))
    problem = (
      f"{len(task.unreadable)} of {len(files)} images can't be read;"
      f" the first: {name}: {reason}"
    )
    if len(task.unreadable) == len(files):
      raise CorruptDataError(f"{settings.images}: {problem}")
    log.warning("%s", problem)
  if not hosts.is_first():
    return {}
  results = {
    "job": config.job,
    "task": settings.task,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    "names": task.names,
    "upright": config.data.upright,
    **task.facts,
    "images": task.rows,
    "unreadable": task.unreadable,
  }
  task.finish()
  path = folder.path / "results.csv"
  with writing(path):
    write_csv(path, ("file", "rank", *task.columns), _table(task))
  finish_run(folder, config.to_dict(), results)
  return results


def _table(task: Task) -> list[tuple[Any, ...]]:
  """Lines of `results.csv`: file, rank, and the task's columns."""
  lines: list[tuple[Any, ...]] = []
  for key, answers in task.rows.items():
    file = key
    if key.startswith(_FORMULA):
      # `=a.png` becomes `./=a.png`, which is no formula.
      file = f"./{key}"
    for rank, answer in enumerate(answers, 1):
      values = [answer.get(column) for column in task.columns]
      lines.append((file, rank, *values))
  return lines
