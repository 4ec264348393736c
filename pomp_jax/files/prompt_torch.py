"""Prompts as torch checkpoints: the layout that CoOp's and POMP's code saves and loads.

`{"state_dict": {"ctx": [M,D] or [N,M,D], ..}, "epoch": .., ..}`. The buffers `token_prefix` and
`token_suffix` beside `ctx` hold embeddings of the training's own class names; they are not read,
and not written. What such a file can't say stands in one more item of ours, "pomp_jax", which the
published code ignores.
"""

import os
from typing import Any, BinaryIO

import numpy as np

from pomp_jax.files.prompt import (
  TEXT_FIELDS,
  Prompt,
  PromptFileError,
  check_shape,
  check_version,
  make_prompt,
  refuse,
)
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.files.torch_archive import (
  StoredTensor,
  TorchArchive,
  TorchArchiveError,
  write_torch_archive,
)

_OURS = "pomp_jax"
# The number that files of torch before 1.6 begin with, as the pickle of an integer.
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Of a checkpoint that others wrote.
_UNSAID = {"clip_model": "unknown", "position": "end", "template": "{}.", "config": "{}"}


def is_legacy_torch(head: bytes) -> bool:
  """Whether a file that begins so was written by torch before 1.6 (or in its old format)."""
  return head[:1] == b"\x80" and head[2 : 2 + len(_LEGACY)] == _LEGACY


def write_torch(file: BinaryIO, prompt: Prompt, text: dict[str, str]) -> None:
  """Writes an archive that `torch.load(weights_only=True)` takes.

  `epoch` is that of the training where the prompt's config says it, else 0.
  """
  epoch = prompt.config.get("epochs", 0)
  value = {
    "state_dict": {"ctx": prompt.context},
    "epoch": epoch if type(epoch) is int and 0 <= epoch < 2**31 else 0,
    _OURS: text | {"format_version": prompt.format_version},
  }
  write_torch_archive(file, value)


def read_torch(path: str | os.PathLike) -> Prompt:
  """Reads `state_dict['ctx']`, of any float type, as float32; no code in the file is run.

  Raises:
    PromptFileError: see `prompt_file.load_prompt`.
  """
  _refuse_legacy(path)
  try:
    with TorchArchive(path) as archive:
      state = _item(path, archive.value, "state_dict")
      tensor = _item(path, state, "ctx", "state_dict")
      if not isinstance(tensor, StoredTensor):
        refuse(path, "state_dict['ctx']", _kind(tensor), "a tensor [M, D] or [N, M, D]")
      check_shape(path, "state_dict['ctx']", tensor.shape)
      context = archive.array(tensor, "state_dict['ctx']")
      ours = archive.value.get(_OURS)
  except TorchArchiveError as error:
    raise PromptFileError(str(error)) from error
  if context.dtype.kind != "f":
    refuse(path, "state_dict['ctx']", f"{context.dtype} {list(context.shape)}", "a float tensor")
  with np.errstate(over="ignore"):  # an infinity is refused later
    context = context.astype(np.float32, order="C")
  return make_prompt(path, context, _UNSAID if ours is None else _text(path, ours))


def _refuse_legacy(path: str | os.PathLike) -> None:
  try:
    with open(path, "rb") as file:
      legacy = is_legacy_torch(file.read(32))
  except OSError:
    return  # the archive's reader says it
  if legacy:
    refuse(
      path,
      "the file",
      "in torch's old format, from before 1.6",
      "the zip format (load and save it again with a newer torch)",
    )


def _item(path: str | os.PathLike, value: Any, key: str, within: str = "the checkpoint") -> Any:
  if not isinstance(value, dict):
    refuse(path, within, _kind(value), f"a dict with {key!r}")
  if key not in value:
    names = ", ".join(sorted(name for name in value if isinstance(name, str))) or "nothing"
    refuse(path, f"{within}[{key!r}]", f"missing (it has: {names})", "an item of that name")
  return value[key]


def _text(path: str | os.PathLike, ours: Any) -> dict[str, str]:
  """Our own strings."""
  version = _item(path, ours, "format_version", _OURS)
  if type(version) is not int:
    refuse(path, f"{_OURS}['format_version']", _kind(version), "an integer")
  check_version(path, version)
  text = {field: _item(path, ours, field, _OURS) for field in TEXT_FIELDS}
  for field, value in text.items():
    if not isinstance(value, str):
      refuse(path, f"{_OURS}[{field!r}]", _kind(value), "a string")
  return text


def _kind(value: Any) -> str:
  return (
    f"an object {value.name}" if isinstance(value, PickledObject) else f"a {type(value).__name__}"
  )
