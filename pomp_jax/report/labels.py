"""Short labels of prompts and methods, and names cut to a length: distinct wherever
these are.

A prompt is named as `evaluate.named_prompts` does: a path, an id on the hub, a text
with one {}.
"""

from collections.abc import Mapping, Sequence
import os
import types
from typing import Any

from pomp_jax.files.paths import is_bucket
from pomp_jax.files.prompt_file import DEFAULT_FILE, is_hub

LEARNED = "prompt"  # key of the learned prompt in a run's results
_WORDS = {  # labels of prompts that results call by a key
  LEARNED: "learned prompt",
  "hand_written": "hand-written prompt",
  "class_name": "class name alone",
  "ensemble": "ensemble of prompts",
  "waffle": "WaffleCLIP",
}
_METHOD_NAMES = {  # as their papers write them
  "pomp": "POMP",
  "coop": "CoOp",
  "cocoop": "CoCoOp",
  "vpt": "VPT",
  "maple": "MaPLe",
  "ivlp": "IVLP",
  "protext": "ProText",
  "kdpl": "KDPL",
  "zero_shot": "zero-shot",
  "linear_probe": "linear probe",
  "tip_adapter": "Tip-Adapter",
  "tip_adapter_f": "Tip-Adapter-F",
}


def prompt_labels(names: Sequence[str]) -> list[str]:
  """Returns a short label for each prompt, distinct if the names are.

  A path is called "learned (..)", "class features (..)" or "descriptions (..)", after
  its last folders, as many as tell it from the other paths; parts that all paths end
  with are left out, and `prompt.npz` always. Ids on the hub are learned too. Texts and
  mixtures stay. `@STEP` of a checkpoint may follow.
  """
  is_text = lambda name: (
    "{}" in name or " + " in name or name.partition(":")[0] in _WORDS
  )
  paths = [
    name for name in dict.fromkeys(names) if not is_text(name) and not is_hub(name)
  ]
  parts_of = dict(zip(paths, _distinguishing(list(map(_parts, paths))), strict=True))
  labels = []
  for name in names:
    if name in parts_of:
      kinds = {".npy": "class features", ".json": "descriptions"}
      kind = kinds.get(os.path.splitext(name)[1], "learned")
      labels.append(f"{kind} ({'/'.join(parts_of[name])})")
    else:
      labels.append(f"learned ({name})" if is_hub(name) else _WORDS.get(name, name))
  return labels if len(set(labels)) == len(set(names)) else list(names)


def run_labels(
  names: Sequence[str],
  folder: str,
  results: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[str]:
  """Labels of the prompts of a training's results, by the name of the run's folder.

  What the run has learned has the name that `prompt_labels` gives to its file in other
  reports. Where the run compared with words, `results` says what each prompt is.
  """
  stated = results.get("words", {}).get("labels", {})
  labels = []
  for name in names:
    if name in stated:
      labels.append(stated[name])
    elif name == LEARNED and folder:
      labels.append(f"learned ({folder})")
    else:
      labels.append(method_label(name))
  return labels


def method_label(name: str) -> str:
  """The name of a method, of a run that is called after one, or of a prompt in results.

  "cocoop" is "CoCoOp" and "vpt_deep_4" is "VPT deep 4"; other names get spaces for
  underscores.
  """
  found = [key for key in _METHOD_NAMES if name == key or name.startswith(f"{key}_")]
  known = max(found, key=len, default="")
  rest = name[len(known) :].lstrip("_")
  words = _WORDS.get(rest) or rest.replace("_", " ")
  return " ".join(filter(None, (_METHOD_NAMES.get(known, ""), words)))


def counted(n: int, noun: str) -> str:
  """A number with its noun: "1 seed", "4,096 images", "2 classes"."""
  plural = "es" if noun.endswith(("s", "x")) else "s"
  return f"{n:,} {noun}{'' if n == 1 else plural}"


def with_counts(name: str, images: int | None, classes: int | None) -> str:
  """A name with the numbers of images and classes that are known."""
  found = {"image": images, "class": classes}
  counts = [counted(n, noun) for noun, n in found.items() if n is not None]
  return ", ".join([name, *counts])


def _parts(path: str) -> tuple[str, ...]:
  """Folders and file of a path, without `prompt.npz`, which every run's folder
  holds."""
  clean = path if is_bucket(path) else os.path.normpath(path)
  parts = tuple(part for part in clean.split("/") if part) or (path,)
  return parts[:-1] if len(parts) > 1 and parts[-1] == DEFAULT_FILE else parts


def _distinguishing(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
  """The last parts of each path, as few as keep them distinct."""
  if len(set(paths)) < 2:
    return [path[-1:] for path in paths]
  while min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
    paths = [path[:-1] for path in paths]
  n_parts = 1
  while len({path[-n_parts:] for path in paths}) < len(set(paths)):
    n_parts += 1
  return [path[-n_parts:] for path in paths]


def shorten(name: str, length: int) -> str:
  """Cuts a name in its middle, so that both ends stay; `length` counts the ellipsis,
  at least 3."""
  if len(name) <= length:
    return name
  head = length // 2
  return (
    f"{name[:head].rstrip()}\u2026{name[len(name) - (length - 1 - head) :].lstrip()}"
  )
