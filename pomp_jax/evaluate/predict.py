"""Names for pictures, their pixels or their objects: of one picture, or of a folder with folders.

Writes `results.csv` and `results.json` to the run's folder: the names that were found in each file,
the likeliest or largest first, and the files that can't be read with the reason. `segment` adds a
label image and a picture of each file, `detect` a picture of each and `detections.json`.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import logging

from pomp_jax import hosts
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.data.folder import find_images
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.class_matrix import check_prompt
from pomp_jax.evaluate.classify import open_prompt
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.rooms.regions.harness import Blocks
from pomp_jax.rooms.regions.region_scorer import check_patches
from pomp_jax.rooms.regions.whole_pictures import TASKS, Rows, check_picture_regions, classes_of

log = logging.getLogger(__name__)

# Names that a label image can number.
_MAX_NAMES = 2**16 - 1
# A spreadsheet takes a field that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check(config: Settings, workdir: str) -> None:
  """Opens names, prompt, regions or network, and lists the pictures; writes nothing."""
  RunFolder(workdir).check(config.job)
  config = _with_network(config)
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
  check_picture_regions(config, files)


def run(config: Settings, workdir: str) -> dict:
  """Prints and writes the names that are found in each picture; returns what `results.json` holds.

  Processes other than the first return an empty dict. CorruptDataError if no image can be read.
  """
  config = _with_network(config)
  settings, folder = config.predict, RunFolder(workdir)
  encoder = inputs.open_encoder(config)
  files = find_images(settings.images)
  task = TASKS[settings.task](config, encoder, files, folder)
  Blocks(len(files), task.batch).run(task.find, task, "predicting")
  if task.unreadable:
    name, reason = next(iter(task.unreadable.items()))
    told = f"{len(task.unreadable)} of {len(files)} images can't be read"
    told += f"; the first: {name}: {reason}"
    if len(task.unreadable) == len(files):
      raise CorruptDataError(f"{settings.images}: {told}")
    log.warning("%s", told)
  if not hosts.is_first():
    return {}
  results = {
    "job": config.job,
    "task": settings.task,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    **task.facts,
    "images": task.rows,
    "unreadable": task.unreadable,
  }
  task.finish()
  path = folder.path / "results.csv"
  with writing(path), replacing(path) as file:
    file.write(_csv(task.rows, task.columns).encode())
  folder.write_results(results)
  return results


def _with_network(config: Settings) -> Settings:
  """The config, in which a `propose.network` without other regions is their source."""
  if config.regions.source == "none" and config.propose.network:
    return config.replace({"regions.source": "network"})
  return config


def _csv(images: Mapping[str, Rows], columns: Sequence[str]) -> str:
  """A line for each row of each file; `=a.png`, a formula of spreadsheets, becomes `./=a.png`."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(("file", "rank", *columns))
  for key, rows in images.items():
    file = f"./{key}" if key.startswith(_FORMULA) else key
    for rank, row in enumerate(rows, 1):
      writer.writerow((file, rank, *(row.get(column, "") for column in columns)))
  return text.getvalue()
