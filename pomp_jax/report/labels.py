"""Short labels of prompts and methods; distinct names get distinct labels.

Prompts have the names of `evaluate.named_prompts`: a path, an id on the hub, a text
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
_KINDS = {".npy": "class features", ".json": "descriptions"}  # by a file's suffix
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

  A path becomes "learned (..)", "class features (..)" or "descriptions (..)", by its
  suffix. In brackets are the last parts of the path, as few as distinguish the paths.
  The parts with which all paths end are omitted first, and `prompt.npz` always. The
  last part may end with the `@STEP` of a checkpoint. An id on the hub becomes "learned
  (..)" too. Texts and mixtures are unchanged.
  """
  paths = [name for name in dict.fromkeys(names) if _is_path(name)]
  short_paths = _distinguishing([_parts(path) for path in paths])
  parts_of = dict(zip(paths, short_paths, strict=True))
  labels = []
  for name in names:
    if name in parts_of:
      kind = _KINDS.get(os.path.splitext(name)[1], "learned")
      labels.append(f"{kind} ({'/'.join(parts_of[name])})")
    elif is_hub(name):
      labels.append(f"learned ({name})")
    else:
      labels.append(_WORDS.get(name, name))
  if len(set(labels)) < len(set(names)):
    return list(names)
  return labels


def _is_path(name: str) -> bool:
  """Whether a prompt is a file, rather than a text, a mixture, or an id on the hub."""
  is_text = "{}" in name or " + " in name or name.partition(":")[0] in _WORDS
  return not is_text and not is_hub(name)


def run_labels(
  names: Sequence[str],
  folder: str,
  results: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[str]:
  """Labels the prompts in a training's results.

  The learned prompt is labelled by the run's folder, as `prompt_labels` labels its
  file, so that a reader recognises the prompt in other reports.

  Args:
    names: names of prompts in `results.json`.
    folder: name of the run's folder, or "".
    results: results of the run. A run that compared its prompt with words has stored a
      label for each prompt.

  Returns:
    A label for each name, in the order of `names`.
  """
  stored_labels = results.get("words", {}).get("labels", {})
  labels = []
  for name in names:
    if name in stored_labels:
      label = stored_labels[name]
    elif name == LEARNED and folder:
      label = f"learned ({folder})"
    else:
      label = method_label(name)
    labels.append(label)
  return labels


def method_label(name: str) -> str:
  """Label of a method, of a run named after a method, or of a prompt in results.

  "cocoop" is "CoCoOp" and "vpt_deep_4" is "VPT deep 4"; other names get spaces for
  underscores.
  """
  keys = [key for key in _METHOD_NAMES if name == key or name.startswith(f"{key}_")]
  method = max(keys, key=len, default="")  # longest: tip_adapter_f, not tip_adapter
  rest = name[len(method) :].lstrip("_")
  words = _WORDS.get(rest) or rest.replace("_", " ")
  return " ".join(filter(None, (_METHOD_NAMES.get(method, ""), words)))


def counted(n: int, noun: str) -> str:
  """A number with its noun: "1 seed", "4,096 images", "2 classes"."""
  if n == 1:
    return f"{n} {noun}"
  plural = "es" if noun.endswith(("s", "x")) else "s"
  return f"{n:,} {noun}{plural}"


def with_counts(name: str, images: int | None, classes: int | None) -> str:
  """Adds numbers of images and classes to a name: "dtd, 1,880 images, 47 classes".

  Args:
    name: name of a data set or split.
    images: number of images, if it is known.
    classes: number of classes, if it is known.
  """
  words = [name]
  if images is not None:
    words.append(counted(images, "image"))
  if classes is not None:
    words.append(counted(classes, "class"))
  return ", ".join(words)


def _parts(path: str) -> tuple[str, ...]:
  """Folders and file of a path, without `prompt.npz`, which every run's folder has."""
  clean = path if is_bucket(path) else os.path.normpath(path)
  parts = tuple(part for part in clean.split("/") if part) or (path,)
  if len(parts) > 1 and parts[-1] == DEFAULT_FILE:
    return parts[:-1]
  return parts


def _distinguishing(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
  """The last parts of each path, as few as keep the paths distinct.

  Parts with which all paths end are dropped first.
  """
  if len(set(paths)) < 2:
    return [path[-1:] for path in paths]
  while min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
    paths = [path[:-1] for path in paths]
  n_parts = 1
  while len({path[-n_parts:] for path in paths}) < len(set(paths)):
    n_parts += 1
  return [path[-n_parts:] for path in paths]


def shorten(name: str, length: int) -> str:
  """Cuts a name in its middle, so that both ends stay.

  `length`, at least 3, counts the ellipsis too.
  """
  if len(name) <= length:
    return name
  n_head = length // 2
  n_tail = length - 1 - n_head
  head = name[:n_head].rstrip()
  tail = name[len(name) - n_tail :].lstrip()
  return f"{head}\u2026{tail}"
