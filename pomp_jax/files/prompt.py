"""What a prompt consists of, whichever file holds it, and the rules for it.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import os
from typing import Any, NoReturn

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable

FORMAT_VERSION = 1
POSITIONS = ("end", "middle", "front")

# What a file may claim before anything of that size is allocated.
MAX_CONTEXT_BYTES = 4 * 2**30
MAX_TEXT_BYTES = 64 * 2**20
# No text tower has more: CLIP's have 77 positions and at most 1,280 of width.
MAX_VECTORS, MAX_WIDTH, MAX_CLASSES = 1024, 16_384, 2**20

# The fields that every format carries as strings, beside the version.
TEXT_FIELDS = ("clip_model", "position", "template", "config")


class PromptFileError(InputError, ValueError):
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


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises the one line for a field.

  Raises:
    PromptFileError: always.
  """
  raise PromptFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")


def check_shape(path: str | os.PathLike, field: str, shape: Sequence[int]) -> None:
  """Refuses a context that is larger than any text tower takes, before it is read.

  Args:
    path: the file, for the message.
    field: what the context is called in it.
    shape: claimed for the context.

  Raises:
    PromptFileError: more vectors, width, classes or bytes than the limits above.
  """
  limits = {"N": MAX_CLASSES, "M": MAX_VECTORS, "D": MAX_WIDTH}
  # From the last axis on: a shared context has no classes.
  too_long = any(
    size > most for size, most in zip(shape[::-1], [*limits.values()][::-1], strict=False)
  )
  if too_long or 4 * math.prod(shape) > MAX_CONTEXT_BYTES:
    most = ", ".join(f"{axis} at most {size}" for axis, size in limits.items())
    accepted = f"[M, D] or [N, M, D], {most}, {MAX_CONTEXT_BYTES} bytes in all"
    refuse(path, field, f"of shape {list(shape)}", accepted)


def validate(path: str | os.PathLike, prompt: Prompt) -> None:
  """The rules that hold for what is written and for what is read, in any format.

  Raises:
    PromptFileError: the first field that breaks one.
  """
  context = prompt.context
  accepted = "float32 [M, D] or [N, M, D], no axis empty"
  if not isinstance(context, np.ndarray):
    refuse(path, "context", f"a {type(context).__name__}", f"a NumPy array, {accepted}")
  if context.dtype != np.float32 or context.ndim not in (2, 3) or context.size == 0:
    refuse(path, "context", f"{context.dtype} {list(context.shape)}", accepted)
  check_shape(path, "context", context.shape)
  if not np.isfinite(context).all():
    bad = int(context.size - np.isfinite(context).sum())
    refuse(path, "context", f"not finite in {bad} of {context.size} values", "finite values")
  if not prompt.clip_model:
    refuse(path, "clip_model", "empty", "the name or the folder of a CLIP")
  if prompt.position not in POSITIONS:
    refuse(path, "position", repr(prompt.position), ", ".join(POSITIONS))
  if prompt.template.count("{}") != 1:
    refuse(path, "template", repr(prompt.template), "a text with one {} for the class name")
  if prompt.format_version != FORMAT_VERSION:
    refuse(path, "format_version", str(prompt.format_version), str(FORMAT_VERSION))


def text_fields(path: str | os.PathLike, prompt: Prompt) -> dict[str, str]:
  """TEXT_FIELDS as they are written; the prompt is checked.

  Raises:
    PromptFileError: a field has a value that no format takes (a NaN, say).
  """
  validate(path, prompt)
  try:
    config = json.dumps(prompt.config, allow_nan=False)
  except (TypeError, ValueError) as error:
    refuse(path, "config", f"not JSON ({error})", "plain JSON values without NaN")
  return {
    "clip_model": prompt.clip_model,
    "position": prompt.position,
    "template": prompt.template,
    "config": config,
  }


def check_version(path: str | os.PathLike, version: int) -> None:
  """Refuses another layout before its fields are looked at: it need not have ours.

  Raises:
    PromptFileError: not FORMAT_VERSION.
  """
  if version != FORMAT_VERSION:
    refuse(path, "format_version", str(version), f"{FORMAT_VERSION} (the only known version)")


def make_prompt(path: str | os.PathLike, context: np.ndarray, text: dict[str, str]) -> Prompt:
  """A prompt of what was read, every field checked.

  Args:
    path: where it was read, for the message.
    context: the context.
    text: TEXT_FIELDS.

  Raises:
    PromptFileError: a field that can't be.
  """
  try:
    config = json.loads(text["config"])
  except (ValueError, RecursionError) as error:
    refuse(path, "config", f"not JSON ({error})", "a JSON object")
  if not isinstance(config, dict):
    refuse(path, "config", f"a {type(config).__name__}", "a JSON object")
  prompt = Prompt(context, text["clip_model"], text["position"], text["template"], config)
  validate(path, prompt)
  return prompt
