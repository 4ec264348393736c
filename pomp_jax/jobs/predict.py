"""Classifies images, one or those of a folder and of the folders within, into the names of a list.

Writes `results.csv` and `results.json` to the run's folder: the likeliest names of each file, best
first. Files that can't be read are listed in `results.json` with the reason.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import logging
from typing import Any

from pomp_jax import hosts, inputs
from pomp_jax.config import Settings
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.data.folder import find_images
from pomp_jax.data.images import ImageError, read_image
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.files.atomic import replacing
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.inference.classify import Classifier, open_prompt

log = logging.getLogger(__name__)

# Images decoded at a time.
_BATCH = 256
_COLUMNS = ("file", "rank", "name", "probability")
# A spreadsheet takes a field that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check(config: Settings, workdir: str) -> None:
  """Refuses unreadable names, an empty folder, and a prompt of another CLIP; writes nothing.

  Raises:
    VocabularyError, SourceError, PromptFileError, ClipError, RunFolderError: one line each.
  """
  RunFolder(workdir).check(config.job)
  names = load_class_list(config.predict.names).names
  check_names(names, config.predict.names)
  find_images(config.predict.images)
  prompt = open_prompt(config.predict.prompt)
  if isinstance(prompt, Prompt):
    width = inputs.clip_config(config.clip.model).text_config.hidden_size
    check_fits(prompt, width, config.clip.model, len(names), config.predict.prompt)


def run(config: Settings, workdir: str) -> dict:
  """Prints and writes the `config.predict.top` likeliest names of each image.

  Raises:
    CorruptDataError: none of the images can be read.
  """
  settings = config.predict
  encoder = inputs.open_encoder(config)
  classifier = Classifier(encoder, settings.prompt, load_class_list(settings.names).names)
  files = find_images(settings.images)
  keys = list(files)
  images, unreadable = {}, {}
  for start in steps_of(range(0, len(keys), _BATCH), "predicting", "batches"):
    pixels = {}
    for key in keys[start : start + _BATCH]:
      try:
        pixels[key] = read_image(files[key], encoder.clip.image_size)
      except ImageError as error:
        unreadable[key] = str(error).removeprefix(f"{files[key]}: ")
    found = classifier.predict(list(pixels.values()), settings.top) if pixels else []
    for name, best in zip(pixels, found, strict=True):
      images[name] = [{"name": name, "probability": p} for name, p in best]
      if hosts.is_first():
        line = f"{name}: " + ", ".join(f"{label} {100 * p:.1f}%" for label, p in best)
        print(printable(line, len(line)))
  if unreadable:
    name, reason = next(iter(unreadable.items()))
    told = f"{len(unreadable)} of {len(files)} images can't be read; the first: {name}: {reason}"
    if not images:
      raise CorruptDataError(f"{settings.images}: {told}")
    log.warning("%s", told)
  results = {
    "job": config.job,
    "clip_model": encoder.clip.name,
    "prompt": settings.prompt,
    "n_classes": len(classifier.names),
    "images": images,
    "unreadable": unreadable,
  }
  if hosts.is_first():
    folder = RunFolder(workdir)
    folder.create()
    path = folder.path / "results.csv"
    with writing(path), replacing(path) as file:
      file.write(_csv(images).encode())
    folder.write_results(results)
  return results


def _csv(images: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """A line for each name of each file, best first.

  A file like `=a.png`, which a spreadsheet would compute, is written as `./=a.png`.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(_COLUMNS)
  for key, best in images.items():
    file = f"./{key}" if key.startswith(_FORMULA) else key
    for rank, found in enumerate(best, 1):
      writer.writerow((file, rank, found["name"], found["probability"]))
  return text.getvalue()
