"""Files of learned prompts: which format a file has, and the reader and the writer for it.

.npz                     our own, `prompt_npz`
.safetensors             the same fields, `prompt_safetensors`
.pt, .pth, .pth.tar[-N]  torch checkpoints as CoOp and POMP publish them, `prompt_torch`
"""

from collections.abc import Callable
import os
import re
from typing import BinaryIO
import zipfile

from pomp_jax.files.atomic import replacing
from pomp_jax.files.prompt import (
  FORMAT_VERSION,
  POSITIONS,
  Prompt,
  PromptFileError,
  check_fits,
  refuse,
  text_fields,
)
from pomp_jax.files.prompt_npz import read_npz, write_npz
from pomp_jax.files.prompt_safetensors import is_safetensors, read_safetensors, write_safetensors
from pomp_jax.files.prompt_torch import is_legacy_torch, read_torch, write_torch
from pomp_jax.files.torch_archive import is_torch_archive

__all__ = [
  "FORMAT_VERSION",
  "POSITIONS",
  "Prompt",
  "PromptFileError",
  "check_fits",
  "format_of_name",
  "load_prompt",
  "save_prompt",
]

_READERS = {"npz": read_npz, "safetensors": read_safetensors, "pth": read_torch}
_WRITERS: dict[str, Callable[[BinaryIO, Prompt, dict[str, str]], None]] = {
  "npz": write_npz,
  "safetensors": write_safetensors,
  "pth": write_torch,
}
# Dassl, on which CoOp and POMP are built, writes model.pth.tar-5 and model-best.pth.tar.
_SUFFIXES = {
  "npz": r"\.npz",
  "safetensors": r"\.safetensors",
  "pth": r"\.(pt|pth)(\.tar)?(-\d+)?",
}


def format_of_name(path: str | os.PathLike) -> str | None:
  """The format that a file's name stands for: npz, safetensors, pth, or None."""
  for name, suffix in _SUFFIXES.items():
    if re.search(f"{suffix}$", os.fspath(path)):
      return name
  return None


def save_prompt(path: str | os.PathLike, prompt: Prompt) -> None:
  """Writes a prompt file, whole or not at all; what `load_prompt` would refuse is not written.

  Args:
    path: the file, usually `prompt.npz`; its name decides the format. Replaced when it exists.
    prompt: the prompt.

  Raises:
    PromptFileError: a field has a value that the format does not take (a NaN, say), or the name
      stands for no format.
    OSError: the file can't be written.
  """
  kind = format_of_name(path)
  if kind is None:
    refuse(path, "the file's name", "of no known kind", ".npz, .safetensors, .pth.tar, .pth, .pt")
  text = text_fields(path, prompt)
  try:
    with replacing(path) as file:
      _WRITERS[kind](file, prompt, text)
  except UnicodeEncodeError as error:
    refuse(path, "a string", f"not Unicode ({error})", "text that UTF-8 can hold")


def load_prompt(path: str | os.PathLike) -> Prompt:
  """Reads a prompt file; nothing in it is ever executed, and what is not of a prompt is ignored.

  The format is told by the content; where that tells nothing (a damaged file), by the name.

  A torch checkpoint that others wrote holds the context alone: its position is taken to be `end`
  (the published default; `dataclasses.replace` sets another), and its CLIP is "unknown".

  Args:
    path: a file that `save_prompt` wrote, any npz or safetensors with the same fields, or a torch
      checkpoint with `state_dict['ctx']`.

  Returns:
    The prompt, every field checked.

  Raises:
    PromptFileError: no such file, not a (whole) file of its format, or a field that is missing, of
      the wrong type or shape, not finite, or of an unknown kind.
  """
  return _READERS[_format_of_content(path) or format_of_name(path) or "npz"](path)


def _format_of_content(path: str | os.PathLike) -> str | None:
  try:
    with open(path, "rb") as file:
      head = file.read(32)
    if is_safetensors(head):
      return "safetensors"
    if is_legacy_torch(head):
      return "pth"
    with zipfile.ZipFile(path) as archive:
      return "pth" if is_torch_archive(archive) else "npz"
  except Exception:  # the reader says what is wrong, in its own words
    return None
