"""Reads and writes class features as Detic and open_clip store them.

Shapes: C classes, N names of all classes, E embedding.
"""

from collections.abc import Callable, Sequence
import functools
import io
import itertools
import json
import os
from typing import Any
import zlib

from jaxtyping import Float
import numpy as np
import safetensors.numpy

from pomp_jax.config.errors import ConfigError
from pomp_jax.config.fields import Clip, Export
from pomp_jax.data import class_lists
from pomp_jax.encoder import Encoder
from pomp_jax.errors import RunError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import class_features
from pomp_jax.evaluate.classifier import open_prompt, pictures_upright
from pomp_jax.evaluate.named_prompts import AnyPrompt, NamedPrompt, check_prompt
from pomp_jax.files.atomic import replacing, write_file
from pomp_jax.files.paths import Path, is_file, local_copy, read_user_json, to_path
from pomp_jax.files.prompt_file import (
  ClassFeatures,
  Prompt,
  PromptFileError,
  recorded_classes,
  refuse,
)
from pomp_jax.files.terminal import one_line
from pomp_jax.rooms.interchange.fields import Synonyms


class ClassFeatureError(RunError, ValueError):
  """Class features that can't be written; the message is one line."""


def check(export: Export, clip: Clip) -> None:
  """Checks names and prompt of an export of features; needs no weights.

  Raises:
    ConfigError: synonyms are asked for, but the names have none or the prompt is
      class-specific.
    InputError: an unusable prompt, or names that the prompt does not fit.
  """
  prompt = open_prompt(export.prompt, "export.prompt")
  categories = categories_of(export)
  if export.of(Synonyms).synonyms:
    if not any(category.synonyms for category in categories):
      accepted = f"False, as {export.names} has no synonyms"
      raise ConfigError("export.synonyms", True, accepted)
    if _is_class_specific(prompt):
      accepted = "False, as the prompt is class-specific"
      raise ConfigError("export.synonyms", True, accepted)
    synonyms = [(category.name, *category.synonyms) for category in categories]
  else:
    synonyms = [(category.name,) for category in categories]
  config = opening.clip_config(clip.model, clip.image_tower)
  check_prompt(NamedPrompt(export.prompt, prompt), synonyms, config, clip.model)


def _is_class_specific(prompt: AnyPrompt) -> bool:
  """Whether a prompt has features or a context of its own for each class."""
  if isinstance(prompt, Prompt):
    return prompt.context.ndim == 3
  # `has_rows` tells this of other kinds of prompts. ClassFeatures, which lacks it, has
  # a row for each class.
  return getattr(prompt, "has_rows", isinstance(prompt, ClassFeatures))


def categories_of(export: Export) -> tuple[class_lists.Category, ...]:
  """Loads the categories of `export.names`; if empty, the prompt's trained classes."""
  return load_categories(export.names or recorded_classes(export.prompt))


def load_categories(
  name_or_path: str | os.PathLike,
) -> tuple[class_lists.Category, ...]:
  """Loads the names of a class list, or the categories of annotations.

  Categories of annotations are in ascending order of their ids and may have synonyms.
  The names of a list have none.

  Args:
    name_or_path: name of a packaged list, or a file: a list of names, or JSON
      annotations of any suffix.

  Raises:
    VocabularyError: an unusable file, or repeated names.
  """
  is_packaged = name_or_path in class_lists.CLASS_LISTS
  if not is_packaged and is_annotation_file(name_or_path):
    path = to_path(name_or_path)
    content = read_user_json(path, class_lists.VocabularyError)
    is_json = path.suffix.lower() == ".json"
    # A .json file without categories may be a list of names, which is read below.
    if not is_json or class_lists.has_categories(content):
      by_id = class_lists.categories_by_id(path, content)
      return tuple(by_id[number] for number in sorted(by_id))

  names = class_lists.load_class_list(name_or_path).names
  class_lists.check_names(names, os.fspath(name_or_path))
  return tuple(class_lists.Category(name) for name in names)


def is_annotation_file(path: str | os.PathLike) -> bool:
  """Whether a file is JSON annotations, by its suffix .json or its first character {."""
  if os.fspath(path).lower().endswith(".json"):
    return True
  if not is_file(path):
    return False
  try:
    with to_path(path).open("rb") as file:
      # The prefix is UTF-8's byte order mark.
      return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
  except (OSError, ValueError):  # ValueError: a name with a NUL in it
    return False


def compute(
  export: Export, encoder: Encoder
) -> tuple[dict[str, Any], Callable[[Path], None]]:
  """Computes the features of an export.

  Returns:
    Facts for the results, and a function that writes the file.
  """
  categories = categories_of(export)
  prompt = open_prompt(export.prompt)
  is_detic = export.format == "detic"  # Detic normalises the features itself
  features_CxE = category_features(
    encoder, categories, prompt, export.of(Synonyms).synonyms, unit=not is_detic
  )
  # Image features for these weights must come from pictures turned in the same way.
  upright = pictures_upright(export.prompt, prompt)
  facts: dict[str, Any] = {
    "clip_model": encoder.clip.name,
    "names": export.names or recorded_classes(export.prompt),
    "upright": upright,
  }
  if is_detic:
    facts["shape"] = features_CxE.shape
    return facts, lambda path: write_detic(path, features_CxE)
  facts["shape"] = features_CxE.shape[::-1]
  write = functools.partial(
    write_open_clip,
    features_CxE=features_CxE,
    names=[category.name for category in categories],
    clip_model=encoder.clip.name,
    upright=upright,
  )
  return facts, write


def category_features(
  encoder: Encoder,
  categories: Sequence[class_lists.Category],
  prompt: AnyPrompt,
  synonyms: bool = False,
  *,
  unit: bool = True,
) -> Float[np.ndarray, "C E"]:
  """Computes text features of a data set's categories.

  Args:
    encoder: encoder of the CLIP.
    categories: names of the C categories, with their synonyms.
    prompt: prompt for the names; with `synonyms` its context must be shared.
    synonyms: whether a row is the mean over the name and all its synonyms.
    unit: whether to normalise the features of each name, and each mean.
  """
  if not synonyms:
    classes = class_lists.ClassList(tuple(category.name for category in categories))
    return class_features(encoder, classes, prompt, unit=unit)
  names_of_categories = [[category.name, *category.synonyms] for category in categories]
  # Categories may share a synonym, whose features are computed once.
  names = dict.fromkeys(itertools.chain.from_iterable(names_of_categories))
  row_of = {name: row for row, name in enumerate(names)}
  classes = class_lists.ClassList(tuple(names))
  features_NxE = class_features(encoder, classes, prompt, unit=unit)
  means = []
  for category_names in names_of_categories:
    rows = [row_of[name] for name in category_names]
    means.append(features_NxE[rows].mean(axis=0))
  means_CxE = np.stack(means)
  if unit:
    means_CxE = means_CxE / np.linalg.norm(means_CxE, axis=-1, keepdims=True)
  return means_CxE


def read_class_features(path: str | os.PathLike) -> ClassFeatures:
  """Reads Detic's class features, such as `lvis_v1_clip_pomp+cname.npy`.

  Args:
    path: `.npy` file of floats [C,E], rows of any norm. Nothing is unpickled.

  Returns:
    The features with unit rows.

  Raises:
    PromptFileError: a file that is missing, damaged, or of another type or shape, or a
      row that is zero or not finite.
  """
  try:
    # Memory-mapped: a header that claims more than the file has allocates nothing.
    file = local_copy(path)
    stored = np.load(file, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # a damaged file fails in more ways than NumPy documents
    got = f"not a NumPy array ({one_line(error, 200)})"
    refuse(path, "the file", got, ".npy of class features [C,E]")
  # For an .npz NumPy returns an object of another class.
  is_array = isinstance(stored, np.memmap)
  if not is_array or stored.dtype.kind != "f" or stored.ndim != 2:
    dtype = getattr(stored, "dtype", "no array")
    shape = list(getattr(stored, "shape", []))
    refuse(path, "the array", f"{dtype} {shape}", "floats [C,E], one row a class")

  # Our own files have a checksum behind the array, Detic's files have none.
  content: Any = np.memmap(file, np.uint8, mode="r")
  has_checksum = len(content) > stored.offset + stored.nbytes
  if has_checksum:
    checksum = bytes(content[-4:])
    if checksum != _crc32(content[:-4]):
      part = "the checksum at its end"
      refuse(path, part, "that of another content", "an undamaged file")

  features_CxE = np.asarray(stored, np.float32)
  _check(path, features_CxE, PromptFileError)
  # Compute norms in float64, where the square of a large float32 is finite.
  norms_Cx1 = np.linalg.norm(features_CxE.astype(np.float64), axis=-1, keepdims=True)
  unit_CxE = (features_CxE / norms_Cx1).astype(np.float32)
  return ClassFeatures(unit_CxE)


def write_detic(
  path: str | os.PathLike, features_CxE: Float[np.ndarray, "C E"]
) -> None:
  """Writes the `.npy` file, float16 [C,E], that Detic loads as `ZEROSHOT_WEIGHT_PATH`.

  A CRC-32 follows the array, which NumPy ignores.

  Args:
    path: file to write.
    features_CxE: a row for each category, in ascending order of the ids. Rows may have
      any norm: Detic normalises them, and the rows of its published files are the text
      tower's raw output.

  Raises:
    ClassFeatureError: values that are not finite in float16, or a row of zeros.
  """
  # A value beyond float16 becomes infinite, which `_check` refuses.
  with np.errstate(over="ignore"):
    half_CxE = np.ascontiguousarray(features_CxE, np.float16)
  _check(path, half_CxE)
  file = io.BytesIO()
  np.save(file, half_CxE, allow_pickle=False)
  content = file.getvalue()
  write_file(path, content + _crc32(content))


def write_open_clip(
  path: str | os.PathLike,
  features_CxE: Float[np.ndarray, "C E"],
  names: Sequence[str] = (),
  clip_model: str = "",
  upright: bool = True,
) -> None:
  """Writes the weights of a zero-shot classifier, as open_clip builds them.

  `logits = logit_scale * image_features @ weights`, with float32 weights [E,C]. The
  file is a `.npy`, or a `.safetensors` with the tensor `classifier` and the other
  arguments as metadata.

  Args:
    path: file to write; its suffix chooses the format.
    features_CxE: class features with unit rows, which become unit columns.
    names: names of the classes; the metadata has them as a JSON list.
    clip_model: name of the CLIP.
    upright: whether pictures must be turned as their EXIF orientation says; the
      metadata has "true" or "false".

  Raises:
    ClassFeatureError: values that are not finite, or a row of zeros.
  """
  _check(path, features_CxE)
  weights_ExC = np.ascontiguousarray(features_CxE.T, np.float32)
  with replacing(path) as file:
    if os.fspath(path).endswith(".npy"):
      np.save(file, weights_ExC, allow_pickle=False)
    else:
      metadata = {
        "names": json.dumps(list(names)),
        # Bytes of a folder's name that are not Unicode become "?".
        "clip_model": clip_model.encode(errors="replace").decode(),
        "upright": json.dumps(upright),
      }
      file.write(safetensors.numpy.save({"classifier": weights_ExC}, metadata))


def _check(
  path: str | os.PathLike,
  features_CxE: Float[np.ndarray, "C E"],
  error: type[Exception] = ClassFeatureError,
) -> None:
  """Checks that features have a direction, so that cosines to them are numbers.

  Args:
    path: file of the features, for the message.
    features_CxE: a row for each class.
    error: class of the error to raise.

  Raises:
    ClassFeatureError, or `error`: a value is not finite, or a row is all zeros.
  """
  if not np.isfinite(features_CxE).all():
    raise error(f"{path}: features are not finite; accepted: finite values")
  is_zero_C = ~features_CxE.any(axis=-1)
  if is_zero_C.any():
    first = int(np.argmax(is_zero_C))
    raise error(f"{path}: features of class {first} are all zero; accepted: other rows")


def _crc32(content: Any) -> bytes:
  return zlib.crc32(content).to_bytes(4, "little")
