"""Classifies a folder of images into the names of a list.

Writes `results.json` to the run's folder: the likeliest names of each file, best first. Files that
can't be read are listed there with the reason.
"""

import logging

from pomp_jax import hosts, inputs
from pomp_jax.config import Settings
from pomp_jax.data.class_lists import check_names, load_class_list
from pomp_jax.data.images import ImageError, list_images, read_image
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.files.run_folder import RunFolder, write_json
from pomp_jax.files.terminal import printable, steps_of
from pomp_jax.inference.classify import Classifier, open_prompt

log = logging.getLogger(__name__)

# Images decoded at a time.
_BATCH = 256


def check(config: Settings, workdir: str) -> None:
  """Refuses unreadable names, an empty folder, and a prompt of another CLIP; writes nothing.

  Raises:
    VocabularyError, ImageError, PromptFileError, ClipError, RunFolderError: one line each.
  """
  RunFolder(workdir).check(config.job)
  names = load_class_list(config.predict.names).names
  check_names(names, config.predict.names)
  list_images(config.predict.images)
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
  files = list_images(settings.images)
  images, unreadable = {}, {}
  for start in steps_of(range(0, len(files), _BATCH), "predicting", "batches"):
    part = files[start : start + _BATCH]
    pixels = {}
    for file in part:
      try:
        pixels[file.name] = read_image(file, encoder.clip.image_size)
      except ImageError as error:
        unreadable[file.name] = str(error).removeprefix(f"{file}: ")
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
    write_json(folder.results, results)
  return results
