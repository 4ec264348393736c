"""Data of the rehearsal: pictures of the embedded world as data sets in CoOp's layout.

A set is a folder with `images/` and `split.json`. This file lists the templates, and
pictures, labels and names as CoOp's split files do. The pictures are larger than the
CLIP's input and not square, so that resizing and cropping matter as for photographs.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.source import Files, LabelledSet, SourceError, StoredImages
from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import exists, join, read_user_json, to_path
from pomp_jax.files.run_folder import writing

# set -> split of the world, and seed of the set's pictures
SETS = {
  "known": ("base", 0),
  "other_known": ("base", 1),
  "novel": ("novel", 0),
  "shifted": ("shifted", 0),
}
# Classes of a set, and test and training images of each class.
CLASSES, TEST_IMAGES, TRAINING_IMAGES = 500, 2, 1
TEMPLATES = (
  "a photo of a {}.",
  "a picture of a {}.",
  "a drawing of a {}.",
  "an image of the {}.",
)
_SPLIT = "split.json"
_SIDE, _WIDTH = 64, 80  # height and width of a picture in pixels


def write_sets(root: str | os.PathLike) -> None:
  """Writes the sets that are missing.

  A set that has its split file is complete, because that file is written last.
  """
  for name, (split, seed) in SETS.items():
    folder = to_path(root) / name
    if not exists(folder / _SPLIT):
      with writing(folder):
        _write_set(pathlib.Path(str(folder)), split, seed)


def _write_set(folder: pathlib.Path, split: str, seed: int) -> None:
  of_each = TEST_IMAGES + TRAINING_IMAGES
  pictures = world.source(
    split, images_per_class=of_each, n_classes=CLASSES, seed=1000 + seed
  )
  (folder / "images").mkdir(parents=True, exist_ok=True)
  lists: dict[str, list[tuple[str, int, str]]] = {"train": [], "test": []}
  pixels_nxSxSx3 = pictures.images(np.arange(len(pictures)))
  # Random numbers as file names: as in most published sets, a name does not tell the
  # class.
  numbers = np.random.default_rng(seed).permutation(len(pictures))
  for index, label in enumerate(pictures.labels):
    file = f"{numbers[index]:04}.png"
    _widened(pixels_nxSxSx3[index]).save(folder / "images" / file)
    part = "test" if index % of_each < TEST_IMAGES else "train"
    lists[part].append((file, int(label), pictures.names[label]))
  content = {part: sorted(rows) for part, rows in lists.items()}
  text = json.dumps({**content, "templates": TEMPLATES}, indent=1)
  write_file(folder / _SPLIT, text)


def _widened(pixels_SxSx3: np.ndarray) -> Image.Image:
  """A picture with more pixels, and strips at its sides that a centre crop removes."""
  picture = Image.fromarray(pixels_SxSx3)
  large = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
  strip = (_WIDTH - _SIDE) // 2
  wide_HxWx3 = np.pad(np.asarray(large), ((0, 0), (strip, strip), (0, 0)), "edge")
  return Image.fromarray(wide_HxWx3)


def set_names(root: str | os.PathLike) -> tuple[str, ...]:
  """Names of the rehearsal's sets, whether or not their folders exist."""
  return tuple(SETS)


def open_set(root: str | os.PathLike, name: str, part: str = "test") -> LabelledSet:
  """Opens a set.

  Args:
    root: folder of the sets.
    name: one of `SETS`.
    part: "test" or "train".

  Raises:
    SourceError: the split file is missing, or has another form.
  """
  folder = join(os.fspath(root), name)
  path = join(folder, _SPLIT)
  try:
    content = read_user_json(path, SourceError)
    rows = [(str(file), int(label), str(text)) for file, label, text in content[part]]
    templates = tuple(map(str, content["templates"]))
    names = _names_of(rows)
  except (ValueError, TypeError, KeyError) as error:
    if isinstance(error, SourceError):
      raise
    expected = "lists of [file, label, name] and of templates"
    raise SourceError(f"{path}: {type(error).__name__} {error}; {expected}") from error
  source = StoredImages(
    names,
    [label for _, label, _ in rows],
    [file for file, _, _ in rows],
    Files(join(folder, "images")),
  )
  return LabelledSet(source, ClassList(names, None, templates[0], templates), part)


def _names_of(rows: list[tuple[str, int, str]]) -> tuple[str, ...]:
  """Names by label; ValueError if labels have gaps, or a label has two names."""
  name_of: dict[int, str] = {}
  for _, label, name in rows:
    if name_of.setdefault(label, name) != name:
      raise ValueError(f"label {label} is {name_of[label]!r} and {name!r}")
  if sorted(name_of) != list(range(len(name_of))):
    raise ValueError(f"labels of {len(name_of)} classes have gaps")
  return tuple(name_of[label] for label in range(len(name_of)))


def read_split(root: str | os.PathLike, name: str) -> Mapping[str, Any]:
  """Content of a set's split file."""
  content: dict[str, Any] = json.loads((to_path(root) / name / _SPLIT).read_text())
  return content
