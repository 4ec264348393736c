"""Class features as Detic and open_clip store them.

Shapes: C classes, E embedding.
"""

from collections.abc import Callable, Sequence
import io
import itertools
import json
import os
from typing import Any
import zlib

from jaxtyping import Float
import numpy as np
import safetensors.numpy

from pomp_jax.config.declare import ConfigError
from pomp_jax.config.fields import Clip, Export
from pomp_jax.data import class_lists
from pomp_jax.encoder import Encoder
from pomp_jax.errors import RunError
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.classify import open_prompt, pictures_upright
from pomp_jax.evaluate.named_prompts import (
  AnyPrompt,
  NamedPrompt,
  check_prompt,
  class_features,
)
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
  """Checks names and prompt of an export of features; needs no weights."""
  prompt, categories = (
    open_prompt(export.prompt, "export.prompt"),
    categories_of(export),
  )
  synonyms = export.of(Synonyms).synonyms
  if synonyms and not any(category.synonyms for category in categories):
    raise ConfigError(
      "export.synonyms", True, f"False, as {export.names} has no synonyms"
    )
  has_rows = getattr(prompt, "has_rows", isinstance(prompt, ClassFeatures))
  if synonyms and (
    has_rows or (isinstance(prompt, Prompt) and prompt.context.ndim == 3)
  ):
    raise ConfigError("export.synonyms", True, "False, as the prompt is class-specific")
  names = [(one.name, *(one.synonyms if synonyms else ())) for one in categories]
  config = inputs.clip_config(clip.model, clip.image_tower)
  check_prompt(NamedPrompt(export.prompt, prompt), names, config, clip.model)


def categories_of(export: Export) -> tuple[class_lists.Category, ...]:
  """The categories of `export.names`, or else of the run that has learned the
  prompt."""
  return load_categories(export.names or recorded_classes(export.prompt))


def load_categories(
  name_or_path: str | os.PathLike,
) -> tuple[class_lists.Category, ...]:
  """Loads distinct names as `load_class_list`, or annotations of any suffix with
  their synonyms."""
  if name_or_path not in class_lists.CLASS_LISTS and is_annotation_file(name_or_path):
    path = to_path(name_or_path)
    content = read_user_json(path, class_lists.VocabularyError)
    if path.suffix.lower() != ".json" or class_lists.has_categories(content):
      by_id = class_lists.categories_by_id(path, content)
      return tuple(by_id[number] for number in sorted(by_id))
  names = class_lists.load_class_list(name_or_path).names
  class_lists.check_names(names, os.fspath(name_or_path))
  return tuple(map(class_lists.Category, names))


def is_annotation_file(path: str | os.PathLike) -> bool:
  """Whether a file is JSON annotations: its suffix is .json or its first character
  is {."""
  if os.fspath(path).lower().endswith(".json"):
    return True
  if not is_file(path):
    return False
  try:
    with to_path(path).open("rb") as file:
      return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
  except (OSError, ValueError):  # ValueError: a name with a NUL in it
    return False


def compute(
  export: Export, encoder: Encoder
) -> tuple[dict[str, Any], Callable[[Path], None]]:
  """Facts of the results, and a function that writes the file."""
  categories, is_detic = categories_of(export), export.format == "detic"
  # Detic normalises the features itself.
  prompt = open_prompt(export.prompt)
  features_CxE = category_features(
    encoder, categories, prompt, export.of(Synonyms).synonyms, unit=not is_detic
  )
  # Who computes image features for these weights turns pictures likewise.
  upright = pictures_upright(export.prompt, prompt)
  names = export.names or recorded_classes(export.prompt)
  facts: dict[str, Any] = {
    "clip_model": encoder.clip.name,
    "names": names,
    "upright": upright,
  }
  if is_detic:
    return facts | {"shape": features_CxE.shape}, lambda path: write_detic(
      path, features_CxE
    )
  labels = [category.name for category in categories], encoder.clip.name
  write = lambda path: write_open_clip(path, features_CxE, *labels, upright=upright)
  return facts | {"shape": features_CxE.shape[::-1]}, write


def category_features(
  encoder: Encoder,
  categories: Sequence[class_lists.Category],
  prompt: AnyPrompt,
  synonyms: bool = False,
  *,
  unit: bool = True,
) -> Float[np.ndarray, "C E"]:
  """Computes text features of a data set's categories.

  With synonyms, a row is the mean of the features of the name and of all its synonyms,
  normalised before and after if `unit`; the prompt's context is shared then.
  """
  if not synonyms:
    classes = class_lists.ClassList(tuple(category.name for category in categories))
    return class_features(encoder, classes, prompt, unit=unit)
  names = [[category.name, *category.synonyms] for category in categories]
  row = {name: i for i, name in enumerate(dict.fromkeys(itertools.chain(*names)))}
  features_NxE = class_features(
    encoder, class_lists.ClassList(tuple(row)), prompt, unit=unit
  )
  means_CxE = np.stack(
    [features_NxE[[row[name] for name in own]].mean(axis=0) for own in names]
  )
  return (
    means_CxE / np.linalg.norm(means_CxE, axis=-1, keepdims=True) if unit else means_CxE
  )


def read_class_features(path: str | os.PathLike) -> ClassFeatures:
  """Reads Detic's class features, such as `lvis_v1_clip_pomp+cname.npy`, with unit
  rows.

  The file is a `.npy` of floats [C,E], rows of any norm. Nothing is unpickled.
  PromptFileError if it is missing, damaged or of another type or shape, or has a row of
  zeros or not finite.
  """
  try:
    # Memory-mapped: a header that claims more than the file has allocates nothing.
    file = local_copy(path)
    stored = np.load(file, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # a damaged file fails in more ways than NumPy documents
    found = f"not a NumPy array ({one_line(error, 200)})"
    refuse(path, "the file", found, ".npy of class features [C,E]")
  if not isinstance(stored, np.memmap) or stored.dtype.kind != "f" or stored.ndim != 2:
    found = (
      f"{getattr(stored, 'dtype', 'no array')} {list(getattr(stored, 'shape', []))}"
    )
    refuse(path, "the array", found, "floats [C,E], one row a class")
  content: Any = np.memmap(file, np.uint8, mode="r")
  has_checksum = len(content) > stored.offset + stored.nbytes
  if has_checksum and _crc32(content[:-4]) != bytes(content[-4:]):
    refuse(
      path, "the checksum at its end", "that of another content", "an undamaged file"
    )
  features_CxE = np.asarray(stored, np.float32)
  _check(path, features_CxE, PromptFileError)
  norms_Cx1 = np.linalg.norm(features_CxE.astype(np.float64), axis=-1, keepdims=True)
  return ClassFeatures((features_CxE / norms_Cx1).astype(np.float32))


def write_detic(
  path: str | os.PathLike, features_CxE: Float[np.ndarray, "C E"]
) -> None:
  """Writes the `.npy` file, float16 [C,E], that Detic loads as `ZEROSHOT_WEIGHT_PATH`.

  Detic normalises the rows; those of the published files are the text tower's output.
  They are in ascending order of the annotation's category ids. NumPy ignores the
  checksum at the end. ClassFeatureError for values that are not finite in float16, or a
  row of zeros.
  """
  with np.errstate(over="ignore"):
    half_CxE = np.ascontiguousarray(features_CxE, np.float16)
  _check(path, half_CxE)
  content = io.BytesIO()
  np.save(content, half_CxE, allow_pickle=False)
  write_file(path, content.getvalue() + _crc32(content.getvalue()))


def write_open_clip(
  path: str | os.PathLike,
  features_CxE: Float[np.ndarray, "C E"],
  names: Sequence[str] = (),
  clip_model: str = "",
  upright: bool = True,
) -> None:
  """Writes the weights of a zero-shot classifier, float32 [E,C], as open_clip builds
  them.

  `logits = logit_scale * image_features @ weights`, with unit columns, from unit rows.
  The file is a `.npy`, or a `.safetensors` with the tensor `classifier` and the
  metadata `names` (a JSON list), `clip_model` and `upright`, "true" if pictures are to
  be turned as their EXIF orientation says, or "false". ClassFeatureError for values not
  finite, or a row of zeros.
  """
  _check(path, features_CxE)
  weights_ExC = np.ascontiguousarray(features_CxE.T, np.float32)
  with replacing(path) as file:
    if os.fspath(path).endswith(".npy"):
      np.save(file, weights_ExC, allow_pickle=False)
    else:
      # Bytes of a folder's name that are not Unicode become "?".
      clip_model = clip_model.encode(errors="replace").decode()
      metadata = {"names": json.dumps(list(names)), "clip_model": clip_model}
      metadata["upright"] = json.dumps(upright)
      file.write(safetensors.numpy.save({"classifier": weights_ExC}, metadata))


def _check(
  path: str | os.PathLike,
  features_CxE: np.ndarray,
  error: type[Exception] = ClassFeatureError,
) -> None:
  if not np.isfinite(features_CxE).all():
    raise error(f"{path}: features are not finite; accepted: finite values")
  nonzero_C = features_CxE.any(axis=-1)
  if not nonzero_C.all():
    zero = int(np.argmin(nonzero_C))
    raise error(f"{path}: features of class {zero} are all zero; accepted: other rows")


def _crc32(content: Any) -> bytes:
  return zlib.crc32(content).to_bytes(4, "little")
