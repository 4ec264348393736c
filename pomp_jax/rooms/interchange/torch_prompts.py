"""Prompts as torch checkpoints of CoOp and POMP, and as Dassl's trainers leave them in a folder.

Nothing is unpickled, and torch is imported to write a file alone.

Shapes: M context vectors, D width of the CLIP's text tower, N classes.
"""

from collections.abc import Collection, Mapping
import io
import json
import os
import re
from typing import Any

import numpy as np

from pomp_jax.files.paths import Path, is_dir, is_file
from pomp_jax.files.prompt_file import FORMAT_VERSION, OF_OTHERS, PromptFileError, refuse
from pomp_jax.files.restricted_pickle import PickledObject
from pomp_jax.rooms.interchange.torch_archive import StoredTensor, TorchArchive

# The context in a state dict: CoOp's and POMP's, that of whole models (forks; POMP's segmentation
# models), and that of ZSSeg's own, which may also have vectors after the name.
_CONTEXT = re.compile(r"ctx|([\w-]+\.)*prompt_learner\.(ctx|prefix_prompt)")
_SUFFIX = "suffix_prompt"
# Item of a torch checkpoint with our text fields; published code ignores it.
_OURS = "pomp_jax"


def encode(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """The layout of CoOp's and POMP's code, for `torch.load(weights_only=True)`.

  `{"state_dict": {"ctx": [M,D] or [N,M,D]}, "epoch": .., "pomp_jax": {..}}`, with `epochs` of the
  config, else 0, and without the published buffers `token_prefix` and `token_suffix`, the
  embeddings of the training's class names. PromptFileError without torch.
  """
  try:
    import torch
  except ImportError as error:
    told = "writing .pth needs torch: pip install 'pomp-jax[torch]'"
    raise PromptFileError(f"{told} ({error})") from error
  "".join(text.values()).encode()  # raises UnicodeEncodeError, which a pickle does not
  ours = {**text, "format_version": FORMAT_VERSION}
  state = {"ctx": torch.tensor(context)}
  epoch = json.loads(text["config"]).get("epochs", 0)
  epoch = epoch if type(epoch) is int and 0 <= epoch < 2**31 else 0
  file = io.BytesIO()
  torch.save({"state_dict": state, "epoch": epoch, _OURS: ours}, file)
  return file.getvalue()


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the context of a checkpoint, of any float type, as float32, and our fields beside it."""
  with TorchArchive(path, PromptFileError) as archive:
    field, tensor = _torch_context(path, archive.value)
    if not isinstance(tensor, StoredTensor):
      refuse(path, field, _kind(tensor), "a tensor [M, D] or [N, M, D]")
    context = archive.array(tensor, field)
    ours = archive.value.get(_OURS, OF_OTHERS)
  if context.dtype.kind != "f":
    refuse(path, field, f"{context.dtype} {list(context.shape)}", "a float tensor")
  with np.errstate(over="ignore"):  # infinities are refused later
    context = context.astype(np.float32, order="C")
  if not isinstance(ours, dict):
    refuse(path, _OURS, _kind(ours), "a dict")
  return {**ours, "context": context}


def _torch_context(path: str | os.PathLike, value: Any) -> tuple[str, Any]:
  """Name and value of the context, in a checkpoint's state dict or in a state dict alone."""
  whole = value if isinstance(value, dict) else {}
  places = {"model": whole.get("model"), "state_dict": whole.get("state_dict"), "": whole}
  for place, state in places.items():
    items = state if isinstance(state, dict) else {}
    name = context_name(path, items, place or "the file")
    if name is not None:
      return f"{place}[{name!r}]", items[name]
  field, key, item = "the checkpoint", "state_dict", value
  if "state_dict" in whole:
    field, key, item = "state_dict", "ctx", whole["state_dict"]
  if not isinstance(item, dict):
    refuse(path, field, _kind(item), f"a dict with {key!r}")
  names = ", ".join(sorted(name for name in item if isinstance(name, str))) or "nothing"
  refuse(path, f"{field}[{key!r}]", f"missing (there are: {names})", "an item of that name")


def context_name(path: str | os.PathLike, items: Collection[Any], place: str) -> str | None:
  """Name of the context among those of a state dict's tensors."""
  names = [name for name in items if isinstance(name, str) and _CONTEXT.fullmatch(name)]
  if len(names) > 1:
    refuse(path, place, f"a dict with {', '.join(names)}", "one context")
  for name in names:
    if (suffix := f"{name.rpartition('.')[0]}.{_SUFFIX}") in items:
      refuse(path, f"{place}[{suffix!r}]", "present", "vectors before the name alone")
    return name
  return None


def prompt_of_trainer(output: Path) -> Path | None:
  """The best checkpoint in a trainer's folder, as Dassl loads it, else the one last saved."""
  for folder in (output / "prompt_learner", output):
    files = {path.name: path for path in folder.glob("model*.pth.tar*")} if is_dir(folder) else {}
    last = folder / "checkpoint"
    name = last.read_text(errors="replace").strip() if files and is_file(last) else ""
    newest = sorted(files, key=lambda name: (len(name), name))[-1:]
    for known in ("model-best.pth.tar", name, *newest):
      if known in files:
        return files[known]
  return None


def _kind(value: Any) -> str:
  kind = type(value).__name__
  return f"an object {value.name}" if isinstance(value, PickledObject) else f"a {kind}"
