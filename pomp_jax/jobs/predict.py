"""Names for pictures, their pixels or their objects: of one picture, or of a folder with folders.

Writes `results.csv` and `results.json` to the run's folder: the names that were found in each file,
the likeliest or largest first. `segment` adds a label image and a picture of each file, `detect` a
picture of each and `detections.json`. Files that can't be read are listed in `results.json` with
the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import logging
from typing import Any, Protocol

from pomp_jax import hosts, inputs
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.data.folder import find_images
from pomp_jax.data.images import ImageError, read_image
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.encoder import Encoder
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.inference.class_matrix import check_prompt
from pomp_jax.inference.classify import Classifier, open_prompt
from pomp_jax.inference.named_prompts import NamedPrompt
from pomp_jax.inputs.picture_regions import check_picture_regions, with_network
from pomp_jax.inputs.regions import needs_crops
from pomp_jax.inputs.segmenter import check_patches
from pomp_jax.jobs.whole_pictures import Detect, Rows, Segment, classes_of

log = logging.getLogger(__name__)

# Images decoded at a time.
_BATCH = 256
# Names that a label image can number.
_MAX_NAMES = 2**16 - 1
# A spreadsheet takes a field that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check(config: Settings, workdir: str) -> None:
  """Opens names, prompt, regions or network, and lists the pictures; writes nothing.

  Raises:
    VocabularyError, SourceError, PromptFileError, ClipError, RunFolderError, ConfigError,
      MaskFormerError, RegionFileError, CategoryFileError, AnnotationError: one line each.
  """
  RunFolder(workdir).check(config.job)
  config = with_network(config)
  settings = config.predict
  names = load_class_list(settings.names).names
  check_names(names, settings.names)
  files = find_images(settings.images)
  named = NamedPrompt(settings.prompt, open_prompt(settings.prompt))
  clip_config = inputs.clip_config(config.clip.model)
  check_prompt(named, classes_of(config).synonyms, clip_config, config.clip.model)
  if settings.task == "classify":
    return
  if settings.task == "segment" and len(names) > _MAX_NAMES:
    raise ConfigError("predict.names", f"{len(names)} names", f"at most {_MAX_NAMES}")
  if config.regions.source == "none":
    check_patches(config.segment, clip_config)
    return
  boxes_alone = check_picture_regions(config, files)
  if boxes_alone is None:
    return
  if settings.task == "segment":
    found = f"regions with masks (image {boxes_alone} has boxes alone)"
    raise ConfigError("regions.path", config.regions.path, found)
  if config.regions.crop == "masked" and needs_crops(config.regions):
    accepted = f"context (image {boxes_alone} has regions without masks)"
    raise ConfigError("regions.crop", "masked", accepted)


def run(config: Settings, workdir: str) -> dict:
  """Prints and writes the names that are found in each picture.

  Raises:
    CorruptDataError: none of the images can be read.
    MaskFormerError: a network of another CLIP.
  """
  config = with_network(config)
  settings, folder = config.predict, RunFolder(workdir)
  encoder = inputs.open_encoder(config)
  files = find_images(settings.images)
  task = _TASKS[settings.task](config, encoder, tuple(files), folder)
  keys = list(files)
  images: dict[str, Rows] = {}
  unreadable = {}
  for start in steps_of(range(0, len(keys), task.batch), "predicting", "batches"):
    pictures = {}
    for key in keys[start : start + task.batch]:
      try:
        pictures[key] = task.read(files[key])
      except ImageError as error:
        unreadable[key] = str(error).removeprefix(f"{files[key]}: ")
    if pictures and hosts.is_first():
      folder.create()
    for name, rows in zip(pictures, task.predict(pictures) if pictures else (), strict=True):
      images[name] = rows
      if hosts.is_first():
        line = f"{name}: " + ", ".join(map(task.text, rows[: settings.top]))
        print(printable(line, len(line)))
  if unreadable:
    name, reason = next(iter(unreadable.items()))
    told = f"{len(unreadable)} of {len(files)} images can't be read; the first: {name}: {reason}"
    if not images:
      raise CorruptDataError(f"{settings.images}: {told}")
    log.warning("%s", told)
  results = {
    "job": config.job,
    "task": settings.task,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    **task.facts,
    "images": images,
    "unreadable": unreadable,
  }
  if hosts.is_first():
    task.finish()
    path = folder.path / "results.csv"
    with writing(path), replacing(path) as file:
      file.write(_csv(images, task.columns).encode())
    folder.write_results(results)
  return results


class _Task(Protocol):
  """One value of `predict.task`.

  Attributes:
    batch: pictures that are read and computed together.
    columns: fields of a row, those of `results.csv`.
    facts: what `results.json` says of the run beside the pictures.
  """

  batch: int
  columns: tuple[str, ...]
  facts: dict[str, Any]

  def read(self, path: Path) -> Any:
    """Decodes a picture; raises ImageError."""

  def predict(self, pictures: Mapping[str, Any]) -> Iterator[Rows]:
    """Yields what is found in each picture, and writes its files on the first process."""

  def text(self, row: Mapping[str, Any]) -> str:
    """A row in a line of the log."""

  def finish(self) -> None:
    """Writes files of all pictures together."""


class _Classify:
  """The likeliest names of a picture."""

  batch = _BATCH
  columns = ("name", "probability")

  def __init__(self, config: Settings, encoder: Encoder, keys: Sequence[str], folder: RunFolder):
    names = load_class_list(config.predict.names).names
    self._classifier = Classifier(encoder, config.predict.prompt, names)
    self._size, self._top = encoder.clip.image_size, config.predict.top
    self._upright = config.data.upright
    self.facts = {"n_classes": len(names)}

  def read(self, path):
    return read_image(path, self._size, self._upright)

  def predict(self, pictures):
    for best in self._classifier.predict(list(pictures.values()), self._top):
      yield [{"name": name, "probability": p} for name, p in best]

  def text(self, row):
    return f"{row['name']} {100 * row['probability']:.1f}%"

  def finish(self):
    pass


_TASKS: dict[str, Any] = {"classify": _Classify, "segment": Segment, "detect": Detect}


def _csv(images: Mapping[str, Rows], columns: Sequence[str]) -> str:
  """A line for each row of each file, the first one best.

  A file like `=a.png`, which a spreadsheet would compute, is written as `./=a.png`.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(("file", "rank", *columns))
  for key, rows in images.items():
    file = f"./{key}" if key.startswith(_FORMULA) else key
    for rank, row in enumerate(rows, 1):
      writer.writerow((file, rank, *(row.get(column, "") for column in columns)))
  return text.getvalue()
