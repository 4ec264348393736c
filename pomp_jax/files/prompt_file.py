"""`prompt.npz`: a learned context and all that is needed to use it again.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

import dataclasses
import json
import os
from typing import Any, NoReturn
import zipfile

import numpy as np

from pomp_jax.files.atomic import replacing

FORMAT_VERSION = 1
POSITIONS = ("end", "middle", "front")

# What a file may claim before anything of that size is allocated.
_MAX_CONTEXT_BYTES = 4 * 2**30
_MAX_TEXT_BYTES = 64 * 2**20


class PromptFileError(ValueError):
  """A prompt file that can't be used: one line with the file, the field, and what it may be."""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A learned prompt.

  Attributes:
    context: float32, [M, D] shared by all classes, or [N, M, D] with one context a class.
    clip_model: name or folder of the CLIP that the context was trained with.
    position: where the context stands: before the class name (`end`: the name comes at the end), on
      both sides of it (`middle`), or after it (`front`).
    template: what is tokenized for a class; `{}` stands for the name.
    config: the configuration of the run, as JSON holds it.
    format_version: version of the file's layout.
  """

  context: np.ndarray
  clip_model: str
  position: str = "end"
  template: str = "{}."
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  format_version: int = FORMAT_VERSION


def save_prompt(path: str | os.PathLike, prompt: Prompt) -> None:
  """Writes a prompt file, whole or not at all; what `load_prompt` would refuse is not written.

  Args:
    path: the file, usually `prompt.npz`; replaced when it exists.
    prompt: the prompt.

  Raises:
    PromptFileError: a field has a value that the format does not take (a NaN, say).
    OSError: the file can't be written.
  """
  _validate(path, prompt)
  try:
    config = json.dumps(prompt.config, allow_nan=False)
  except (TypeError, ValueError) as error:
    _refuse(path, "config", f"not JSON ({error})", "plain JSON values without NaN")
  arrays = {
    "context": np.ascontiguousarray(prompt.context),
    "clip_model": np.array(prompt.clip_model),
    "position": np.array(prompt.position),
    "template": np.array(prompt.template),
    "format_version": np.array(prompt.format_version, np.int64),
    "config": np.array(config),
  }
  with replacing(path) as file:
    np.savez(file, allow_pickle=False, **arrays)


def load_prompt(path: str | os.PathLike) -> Prompt:
  """Reads a prompt file; nothing in it is ever unpickled, and unknown arrays are ignored.

  Args:
    path: a file that `save_prompt` wrote, or any npz with the same arrays.

  Returns:
    The prompt, every field checked.

  Raises:
    PromptFileError: no such file, not a (whole) npz, or a field that is missing, of the wrong type
      or shape, not finite, or of an unknown kind.
  """
  try:
    archive = zipfile.ZipFile(path)
  except FileNotFoundError:
    _refuse(path, "the file", "missing", "a prompt file (.npz)")
  except Exception as error:  # a damaged archive fails in more ways than zipfile documents
    _refuse(path, "the file", f"not a whole npz ({error})", "an undamaged npz")
  with archive:
    # The version first: another format need not have the fields of this one.
    version = _read_scalar(archive, path, "format_version", "iu", "an integer")
    if version != FORMAT_VERSION:
      _refuse(path, "format_version", str(version), f"{FORMAT_VERSION} (the only known version)")
    text = {
      name: _read_scalar(archive, path, name, "U", "a 0-d string")
      for name in ("clip_model", "position", "template", "config")
    }
    context = _read_array(archive, path, "context", _MAX_CONTEXT_BYTES)
  try:
    config = json.loads(text["config"])
  except (ValueError, RecursionError) as error:
    _refuse(path, "config", f"not JSON ({error})", "a JSON object")
  if not isinstance(config, dict):
    _refuse(path, "config", f"a {type(config).__name__}", "a JSON object")
  prompt = Prompt(**(text | {"context": context, "config": config, "format_version": version}))
  _validate(path, prompt)
  return prompt


def check_fits(
  prompt: Prompt,
  width: int,
  clip_model: str | None = None,
  n_classes: int | None = None,
  path: str | os.PathLike = "the prompt",
) -> None:
  """Refuses a prompt that does not fit the CLIP or the class list that it is to be used with.

  Args:
    prompt: the prompt.
    width: D of the text tower.
    clip_model: name of that CLIP, for the message.
    n_classes: N of the class list, or None when it is not known; a shared context fits any N.
    path: where the prompt came from, for the message.

  Raises:
    PromptFileError: the widths differ, or a class-specific context has another number of classes.
  """
  shape = list(prompt.context.shape)
  if shape[-1] != width:
    raise PromptFileError(
      f"{path}: context {shape} has width {shape[-1]} (trained with {prompt.clip_model!r}), but the"
      f" text tower of {clip_model or 'the CLIP in use'!r} has width {width}"
    )
  if len(shape) == 3 and n_classes is not None and shape[0] != n_classes:
    raise PromptFileError(
      f"{path}: context {shape} is class-specific, one for each of its {shape[0]} classes, but the"
      f" class list has {n_classes}"
    )


def _refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  # What a damaged file holds must not break the line, nor flood it.
  found = "".join(letter if letter.isprintable() else "?" for letter in found[:300])
  raise PromptFileError(f"{path}: {field} is {found}; accepted: {accepted}")


def _validate(path: str | os.PathLike, prompt: Prompt) -> None:
  """The rules that hold for what is written and for what is read."""
  context = prompt.context
  accepted = "float32 [M, D] or [N, M, D], no axis empty"
  if not isinstance(context, np.ndarray):
    _refuse(path, "context", f"a {type(context).__name__}", f"a NumPy array, {accepted}")
  if context.dtype != np.float32 or context.ndim not in (2, 3) or context.size == 0:
    _refuse(path, "context", f"{context.dtype} {list(context.shape)}", accepted)
  if not np.isfinite(context).all():
    bad = int(context.size - np.isfinite(context).sum())
    _refuse(path, "context", f"not finite in {bad} of {context.size} values", "finite values")
  if not prompt.clip_model:
    _refuse(path, "clip_model", "empty", "the name or the folder of a CLIP")
  if prompt.position not in POSITIONS:
    _refuse(path, "position", repr(prompt.position), ", ".join(POSITIONS))
  if prompt.template.count("{}") != 1:
    _refuse(path, "template", repr(prompt.template), "a text with one {} for the class name")
  if prompt.format_version != FORMAT_VERSION:
    _refuse(path, "format_version", str(prompt.format_version), str(FORMAT_VERSION))


def _read_scalar(
  archive: zipfile.ZipFile, path: str | os.PathLike, field: str, kinds: str, accepted: str
) -> Any:
  array = _read_array(archive, path, field, _MAX_TEXT_BYTES)
  if array.ndim != 0 or array.dtype.kind not in kinds:
    _refuse(path, field, f"{array.dtype} {list(array.shape)}", accepted)
  return array.item()


def _read_array(
  archive: zipfile.ZipFile, path: str | os.PathLike, field: str, max_bytes: int
) -> np.ndarray:
  """Reads one array; its header is judged before memory of the size it claims is taken."""
  try:
    member = archive.open(f"{field}.npy")
  except KeyError:
    names = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist()))
    _refuse(path, field, f"missing (the file has: {names or 'nothing'})", "an array of that name")
  except Exception as error:
    _refuse(path, field, f"unreadable ({error})", "an undamaged npz")
  try:
    with member:
      shape, dtype = _read_header(member)
      claimed = int(np.prod([int(size) for size in shape], dtype=object)) * dtype.itemsize
    if dtype.hasobject:
      _refuse(path, field, "pickled Python objects", "plain arrays (pickles can run any code)")
    if claimed > max_bytes:
      _refuse(path, field, f"{claimed} bytes large", f"at most {max_bytes} bytes")
    with archive.open(f"{field}.npy") as member:
      return np.lib.format.read_array(member, allow_pickle=False)
  except PromptFileError:
    raise
  except Exception as error:  # zlib, zipfile and the header's parser: whatever a bad byte can raise
    _refuse(path, field, f"damaged ({error})", "an undamaged array")


def _read_header(member) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype that an npy file announces."""
  version = np.lib.format.read_magic(member)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
  elif version == (2, 0):
    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
  else:
    # 3.0 differs in the encoding of field names alone, and no field of ours has such names.
    raise ValueError(f"npy version {version} is not one of 1.0, 2.0")
  return shape, dtype
