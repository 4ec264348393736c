"""Class features as Detic and open_clip store them, and the annotation categories of their rows.

Shapes: C classes, E embedding.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any, NamedTuple, NoReturn

from jaxtyping import Float
import numpy as np
import safetensors.numpy

from pomp_jax.errors import InputError, RunError
from pomp_jax.files.atomic import replacing
from pomp_jax.files.checksums import is_intact, npy_with_checksum
from pomp_jax.files.paths import local_copy, to_path
from pomp_jax.files.prompt_formats import PromptFileError, refuse
from pomp_jax.files.terminal import control_character, is_unicode, one_line, printable


class ClassFeatureError(RunError, ValueError):
  """Class features that can't be written; the message is one line."""


class CategoryFileError(InputError, ValueError):
  """An annotation file whose categories can't be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Category:
  """Category of an annotation file: its name, and synonyms that differ from it and each other.

  Both have spaces instead of underscores; a qualifier stays, "bow (weapon)".
  """

  name: str
  synonyms: tuple[str, ...] = ()


class ClassFeatures(NamedTuple):
  """Class features that stand in for a prompt: unit rows in the order of the class list."""

  features: Float[np.ndarray, "C E"]

  def check_fits(self, n_classes: int, width: int, where: str) -> None:
    """Raises PromptFileError, which names `where`, for another shape than [n_classes, width]."""
    if self.features.shape != (n_classes, width):
      accepted = f"{[n_classes, width]}, one row for each of the {n_classes} classes"
      refuse(where, "the array's shape", str(list(self.features.shape)), accepted)


def read_class_features(path: str | os.PathLike) -> ClassFeatures:
  """Reads Detic's class features, such as `lvis_v1_clip_pomp+cname.npy`, with unit rows.

  The file is a `.npy` of floats [C,E], rows of any norm. Nothing is unpickled. PromptFileError if
  it is missing, damaged or of another type or shape, or has a row of zeros or not finite.
  """
  try:
    # Memory-mapped: a header that claims more than the file has allocates nothing.
    file = local_copy(path)
    stored = np.load(file, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # a damaged file fails in more ways than NumPy documents
    found = f"not a NumPy array ({one_line(error, 200)})"
    refuse(path, "the file", found, ".npy of class features [C,E]")
  if not isinstance(stored, np.ndarray) or stored.dtype.kind != "f" or stored.ndim != 2:
    found = f"{getattr(stored, 'dtype', 'no array')} {list(getattr(stored, 'shape', []))}"
    refuse(path, "the array", found, "floats [C,E], one row a class")
  if os.path.getsize(file) > stored.offset + stored.nbytes:
    content = np.memmap(file, np.uint8, mode="r")
    if not is_intact(content):
      refuse(path, "the checksum at its end", "that of another content", "an undamaged file")
  features_CxE = np.asarray(stored, np.float32)
  _check(path, features_CxE, PromptFileError)
  norms_Cx1 = np.linalg.norm(features_CxE.astype(np.float64), axis=-1, keepdims=True)
  return ClassFeatures((features_CxE / norms_Cx1).astype(np.float32))


def write_detic(path: str | os.PathLike, features_CxE: Float[np.ndarray, "C E"]) -> None:
  """Writes the `.npy` file, float16 [C,E], that Detic loads as `ZEROSHOT_WEIGHT_PATH`.

  Detic normalises the rows; those of the published files are the text tower's output. They are in
  ascending order of the annotation's category ids. NumPy ignores the checksum at the end.
  ClassFeatureError for values that are not finite in float16, or a row of zeros.
  """
  with np.errstate(over="ignore"):
    half_CxE = np.ascontiguousarray(features_CxE, np.float16)
  _check(path, half_CxE)
  with replacing(path) as file:
    file.write(npy_with_checksum(half_CxE))


def write_open_clip(
  path: str | os.PathLike,
  features_CxE: Float[np.ndarray, "C E"],
  names: Sequence[str] = (),
  clip_model: str = "",
) -> None:
  """Writes the weights of a zero-shot classifier, float32 [E,C], as open_clip builds them.

  `logits = logit_scale * image_features @ weights`, with unit columns, from unit rows. The file is
  a `.npy`, or a `.safetensors` with the tensor `classifier` and the metadata `names` (a JSON list)
  and `clip_model`. ClassFeatureError for values not finite, a row of zeros, or another suffix.
  """
  _check(path, features_CxE)
  weights_ExC = np.ascontiguousarray(features_CxE.T, np.float32)
  suffix = os.path.splitext(path)[1]
  if suffix not in (".npy", ".safetensors"):
    raise ClassFeatureError(f"{path}: the name is of no known kind; accepted: .npy, .safetensors")
  with replacing(path) as file:
    if suffix == ".npy":
      np.save(file, weights_ExC, allow_pickle=False)
    else:
      # Bytes of a folder's name that are not Unicode become "?".
      clip_model = clip_model.encode(errors="replace").decode()
      metadata = {"names": json.dumps(list(names)), "clip_model": clip_model}
      file.write(safetensors.numpy.save({"classifier": weights_ExC}, metadata))


def _check(
  path: str | os.PathLike, features_CxE: np.ndarray, error: type[Exception] = ClassFeatureError
) -> None:
  if not np.isfinite(features_CxE).all():
    raise error(f"{path}: features are not finite; accepted: finite values")
  nonzero_C = features_CxE.any(axis=-1)
  if not nonzero_C.all():
    zero = int(np.argmin(nonzero_C))
    raise error(f"{path}: features of class {zero} are all zero; accepted: other rows")


def is_annotation_file(path: str | os.PathLike) -> bool:
  """Whether a file is JSON annotations: its suffix is .json or its first character is {."""
  if os.fspath(path).lower().endswith(".json"):
    return True
  try:
    with to_path(path).open("rb") as file:
      return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
  except (OSError, ValueError):  # ValueError: a name with a NUL in it
    return False


def categories_by_id(path: str | os.PathLike, value: Any) -> dict[int, Category]:
  """Parses `categories` of COCO or LVIS annotations, the JSON value of a file.

  Each has `id`, `name` and optionally `synonyms` (LVIS). CategoryFileError for one without integer
  `id` or name, and for a control character or a repeated id or name ("a_b" equals "a b").
  """
  if not isinstance(value, dict) or "categories" not in value:
    found = f"the keys {', '.join(value) or 'none'}" if isinstance(value, dict) else "no object"
    _refuse(path, "the file", f"without categories ({found})", "COCO or LVIS annotations")
  rows = value["categories"]
  if not isinstance(rows, list) or not rows:
    _refuse(path, "categories", _shown(rows), "a list of at least one category")
  by_id: dict[int, Category] = {}
  names: set[str] = set()
  for index, row in enumerate(rows):
    where = f"categories[{index}]"
    if not isinstance(row, dict):
      _refuse(path, where, f"a {type(row).__name__}", "an object with id and name")
    number = row.get("id")
    if type(number) is not int:
      _refuse(path, f"{where}.id", _shown(number), "an integer")
    if number in by_id:
      _refuse(path, f"{where}.id", f"{number}, which is repeated", "different ids")
    name = _words(path, f"{where}.name", row.get("name"))
    if name in names:
      _refuse(path, f"{where}.name", f"{name!r}, which is repeated", "different names")
    synonyms = row.get("synonyms", [])
    if not isinstance(synonyms, list):
      _refuse(path, f"{where}.synonyms", _shown(synonyms), "a list of strings")
    others = dict.fromkeys(_words(path, f"{where}.synonyms", synonym) for synonym in synonyms)
    others.pop(name, None)
    by_id[number] = Category(name, tuple(others))
    names.add(name)
  return by_id


def _words(path: str | os.PathLike, field: str, text: Any) -> str:
  words = " ".join(text.replace("_", " ").split()) if isinstance(text, str) else ""
  if not words or not is_unicode(words) or control_character(words):
    _refuse(path, field, _shown(text), "a name")
  return words


def _shown(value: Any) -> str:
  if isinstance(value, list | dict):
    return f"a {type(value).__name__} of {len(value)}"
  return "missing" if value is None else repr(value)


def _refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  raise CategoryFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")
