"""Files of learned prompts: `.npz`, and other formats of `registry.FORMATS`.

`hf:OWNER/NAME` stands for a file on the hub, a folder for the prompt of a run or of a
Dassl trainer; docs/formats.md describes them. The reader of a format returns the fields
that a file has, unchecked. Nothing is ever unpickled or run.

Shapes: M context vectors, D width of the CLIP's text tower, N or C classes, E
embedding.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import io
import json
import logging
import math
import os
import re
from typing import Any, NamedTuple, NoReturn
import zipfile

from jaxtyping import Float
import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.files.atomic import write_file
from pomp_jax.files.calibration import ACCEPTED, Calibration, calibration_from_json
from pomp_jax.files.paths import is_dir, is_file, local_copy
from pomp_jax.files.run_folder import classes_path, prompt_path
from pomp_jax.files.terminal import printable
from pomp_jax.hooks import HUB_PROMPT
from pomp_jax.registry import FORMATS, SOURCES, load

log = logging.getLogger(__name__)
_log_once = functools.cache(log.info)

HUB_PREFIX, DEFAULT_FILE = "hf:", "prompt.npz"
POSITIONS = ("end", "middle", "front")

# CLIP of the prompts that POMP's and CoOp's authors publish, whose files name none.
PUBLISHED_CLIP = "openai/clip-vit-base-patch16"

FORMAT_VERSION = 1
# Of a file with `sentences`, so that a reader of version 1 does not take it for its
# context alone.
SENTENCES_VERSION = 2
VERSIONS = (FORMAT_VERSION, SENTENCES_VERSION)
# Type of each field beside `format_version`, whatever the format.
TEXTS = ("clip_model", "position", "template", "config")
FIELDS = {"context": np.ndarray} | dict.fromkeys(TEXTS, str)
# Fields that a file may lack.
OPTIONAL = {"sentences": str, "calibration": str}

# What a prompt lacks that is no run's, nor in its folder.
NO_NAMES = "has no class_names.json beside it, as in a run's folder: give a file or a list of names"

# Text of a class, with `{}` for the name. With more words the context's place would be
# unknown.
TEMPLATE = "{}."
UNKNOWN_CLIP = "unknown"
# Fields of a file that other code has written.
OF_OTHERS: dict[str, Any] = {
  "format_version": FORMAT_VERSION,
  "clip_model": UNKNOWN_CLIP,
}
OF_OTHERS |= {"position": "end", "template": TEMPLATE, "config": "{}"}


class PromptFileError(InputError, ValueError):
  """A prompt file that can't be used: one line with the file, the field, and what is
  accepted."""


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises the PromptFileError of a field."""
  raise PromptFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")


class Sentences(NamedTuple):
  """Hand-written sentences that stand for a context, or beside it."""

  templates: tuple[str, ...]  # texts with one {} for the name
  weight: float = 1.0  # of the mean of their class features; the rest is the context's

  def to_json(self) -> str:
    """The field `sentences` of a file."""
    return json.dumps(
      {"templates": self.templates, "weight": self.weight}, allow_nan=False
    )


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A learned prompt, or what was better than it: sentences, or a mixture of both.

  Class features under a mixture are the weighted sum of the unit features of its two
  parts, normalised. Features under several sentences are averaged and normalised first.
  """

  # float32, [M, D] shared by all classes, or [N, M, D] with one context per class; [0,
  # D] of sentences alone
  context: np.ndarray
  clip_model: str  # name or folder of the CLIP that the context was trained with
  # The class name comes last (the context before it), in the middle of the context, or
  # in front.
  position: str = "end"
  # of the run, as JSON
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  sentences: Sentences | None = None
  # of its probabilities, for one CLIP and one list of classes
  calibration: Calibration | None = None

  @property
  def upright(self) -> bool | None:
    """Whether the pictures of its training were turned as their EXIF orientation says.

    None if the config does not say, or the images were no files: these have no
    orientation.
    """
    data = self.config.get("data")
    if not isinstance(data, dict):
      return None
    source = SOURCES.get(str(data.get("source")))
    if (
      source is None
      or not source.stored
      or source.generated
      or "upright" in source.unread
    ):
      return None
    upright = data.get("upright")
    return upright if isinstance(upright, bool) else None


class ClassFeatures(NamedTuple):
  """Class features that stand in for a prompt: unit rows in the order of the class
  list."""

  features: Float[np.ndarray, "C E"]

  def check_fits(self, n_classes: int, width: int, where: str) -> None:
    """Raises PromptFileError, which names `where`, for another shape than
    [n_classes, width]."""
    if self.features.shape != (n_classes, width):
      accepted = f"{[n_classes, width]}, one row for each of the {n_classes} classes"
      refuse(where, "the array's shape", str(list(self.features.shape)), accepted)


def check_fits(
  prompt: Prompt,
  width: int,
  clip_model: str | None = None,
  n_classes: int | None = None,
  path: str | os.PathLike = "the prompt",
) -> None:
  """Checks that a prompt can be used with a CLIP and N classes; warns if it is another
  CLIP's.

  PromptFileError for another width than the text tower's, or class-specific for other N
  classes.
  """
  shape = list(prompt.context.shape)
  if shape[-1] != width:
    raise PromptFileError(
      f"{path}: context {shape} has width {shape[-1]} (trained with {prompt.clip_model!r}), but the"
      f" text tower of {clip_model or 'the CLIP in use'!r} has width {width}; set"
      " config.clip.model to the prompt's CLIP"
    )
  if len(shape) == 3 and n_classes is not None and shape[0] != n_classes:
    raise PromptFileError(
      f"{path}: context {shape} is class-specific, one for each of its {shape[0]} classes, but the"
      f" class list has {n_classes}"
    )
  trained, used = architecture(prompt.clip_model), architecture(clip_model or "")
  # ViT-B/16 and ViT-B/32 have the same text width
  if trained and used and trained != used:
    log.warning(
      "%s was trained with %s, but config.clip.model is %s, another CLIP with a text tower of the"
      " same width",
      *(path, prompt.clip_model, clip_model),
    )


def architecture(clip_model: str) -> str | None:
  """Architecture that a CLIP's name tells, such as vit-b-16 or rn50x4, or None."""
  name = clip_model.lower()
  if vit := re.search(
    r"vit[-_/]?([blhg])[a-z]*[-_/]?(?:patch)?[-_/]?(\d\d)(?!\d)", name
  ):
    return f"vit-{vit[1]}-{vit[2]}"
  resnet = re.search(r"(?:rn|resnet)[-_]?(\d+(?:x\d+)?)", name)
  return f"rn{resnet[1]}" if resnet else None


def _has_shape_of_a_context(context: object) -> bool:
  """Whether it is float32 [M,D] or [N,M,D] with no axis empty."""
  if not isinstance(context, np.ndarray) or context.dtype != np.float32:
    return False
  return context.ndim in (2, 3) and context.size > 0


def _stands_aside(prompt: Prompt) -> bool:
  """Whether the context is float32 [0,D], beside sentences that have all of the
  weight."""
  context = prompt.context
  if prompt.sentences is None or prompt.sentences.weight != 1:
    return False
  is_array = isinstance(context, np.ndarray) and context.dtype == np.float32
  return is_array and context.ndim == 2 and len(context) == 0 and context.shape[1] > 0


def validate(path: str | os.PathLike, prompt: Prompt) -> None:
  """Raises PromptFileError for the first field of a prompt, written or read, that
  breaks a rule."""
  context = prompt.context
  if not _has_shape_of_a_context(context) and not _stands_aside(prompt):
    kind = getattr(context, "dtype", type(context).__name__)
    accepted = "a NumPy array, float32 [M, D] or [N, M, D], no axis empty"
    refuse(path, "context", f"{kind} {list(getattr(context, 'shape', ()))}", accepted)
  if not np.isfinite(context).all():
    bad = int(context.size - np.isfinite(context).sum())
    refuse(
      path, "context", f"not finite in {bad} of {context.size} values", "finite values"
    )
  if not prompt.clip_model:
    refuse(path, "clip_model", "empty", "the name or the folder of a CLIP")
  if prompt.position not in POSITIONS:
    refuse(path, "position", repr(prompt.position), ", ".join(POSITIONS))
  if prompt.sentences is not None:
    templates, weight = prompt.sentences
    if not templates or any(text.count("{}") != 1 for text in templates):
      refuse(
        path, "sentences", repr(templates)[:200], "one or more texts, each with one {}"
      )
    if not 0 < weight <= 1:
      refuse(
        path, "sentences", f"of the weight {weight}", "a weight above 0, at most 1"
      )


def is_hub(name: str | os.PathLike) -> bool:
  """Whether a name is one on HuggingFace's hub, `hf:OWNER/NAME`."""
  return os.fspath(name).startswith(HUB_PREFIX)


def is_prompt_file(name: str | os.PathLike) -> bool:
  """Whether `load_prompt` finds a file: of that name, of a run's folder, or perhaps
  on the hub."""
  return is_hub(name) or is_file(prompt_path(name))


def format_of_name(path: str | os.PathLike) -> str | None:
  """Returns the format of a file name: npz, safetensors, pth, or None."""
  names = (
    name
    for name, row in FORMATS.items()
    if row.names and re.search(f"({row.names})$", str(path))
  )
  return next(names, "npz" if is_hub(path) else None)


def save_prompt(path: str | os.PathLike, prompt: Prompt) -> None:
  """Writes a prompt file atomically, in the format of its name; errors as
  `encode`'s."""
  write_file(path, encode(path, prompt))


def encode(path: str | os.PathLike, prompt: Prompt) -> bytes:
  """Content of a prompt file, in the format of its name.

  PromptFileError if the format does not take a field's value, such as a NaN, or for
  another suffix.
  """
  kind = format_of_name(path)
  if kind is None or is_hub(path):
    written = ", ".join(
      suffix for row in FORMATS.values() if row.encode for suffix in row.suffixes
    )
    accepted = f"{written}; for hf:OWNER/NAME `push_prompt`"
    refuse(path, "the file's name", "of no known kind", accepted)
  validate(path, prompt)
  try:
    config = json.dumps(prompt.config, allow_nan=False)
  except (TypeError, ValueError) as error:
    refuse(path, "config", f"not JSON ({error})", "plain JSON values without NaN")
  text = {"clip_model": prompt.clip_model, "position": prompt.position}
  text |= {"template": TEMPLATE, "config": config}
  if prompt.sentences is not None:
    if kind != "npz":
      found = "sentences, or a mixture with them"
      accepted = (
        "a context in this format; .npz, and class features of names, take both"
      )
      refuse(path, "the prompt", found, accepted)
    text["sentences"] = prompt.sentences.to_json()
  if prompt.calibration is not None:
    text["calibration"] = prompt.calibration.to_json()
  try:
    return load(FORMATS[kind].encode)(prompt.context, text)
  except UnicodeEncodeError as error:
    refuse(path, "a string", f"not Unicode ({error})", "text that UTF-8 can hold")


def load_prompt(path: str | os.PathLike) -> Prompt:
  """Reads a prompt file; nothing in it is ever executed, and unknown fields are
  ignored.

  The content decides the format, or the name where the content is damaged. A file of
  other code holds the context alone: its position is assumed to be `end` (the published
  default; `dataclasses.replace` sets another), and its CLIP is "unknown".
  PromptFileError if the file can't be used, HubError if it can't be downloaded.
  """
  if is_hub(path):
    if not HUB_PROMPT:
      refuse(
        path,
        "the name",
        "one on a hub",
        "a file or folder, without the room interchange",
      )
    return HUB_PROMPT.open()(path)
  if (found := prompt_path(path)) != path:
    _log_once("%s: its prompt is %s", str(path), str(found))
  path = found
  form = format_of_content(path) or format_of_name(path) or "npz"
  if (row := FORMATS.get(form)) is None:
    refuse(
      path, "the file", f"of the format {form}", ".npz, without the room interchange"
    )
  fields = load(row.read)(path)
  version = fields.get("format_version")
  if type(version) is not int or version not in VERSIONS:
    told = "missing" if version is None else repr(version)
    refuse(
      path,
      "format_version",
      told,
      f"{' or '.join(map(str, VERSIONS))}, the known versions",
    )
  for field, own in FIELDS.items():
    if field not in fields:
      names = ", ".join(sorted(map(str, fields))) or "nothing"
      refuse(
        path, field, f"missing (there are: {names})", f"a {own.__name__} of that name"
      )
    if type(fields[field]) is not own:
      refuse(path, field, f"a {type(fields[field]).__name__}", f"a {own.__name__}")
  try:
    config = json.loads(fields["config"])
  except (ValueError, RecursionError) as error:
    refuse(path, "config", f"not JSON ({error})", "a JSON object")
  if not isinstance(config, dict):
    refuse(path, "config", f"a {type(config).__name__}", "a JSON object")
  if fields["template"] != TEMPLATE:
    refuse(
      path,
      "template",
      repr(fields["template"]),
      f"{TEMPLATE!r}, as all contexts are trained",
    )
  prompt = Prompt(
    fields["context"],
    fields["clip_model"],
    fields["position"],
    config,
    _sentences(path, fields.get("sentences"), version),
    _calibration(path, fields.get("calibration")),
  )
  validate(path, prompt)
  return prompt


def _sentences(path: str | os.PathLike, text: Any, version: int) -> Sentences | None:
  """The sentences of a file's field; None for a file without them."""
  if text is None and version != SENTENCES_VERSION:
    return None
  if text is None:
    refuse(
      path, "sentences", "missing", f"a str of that name in version {SENTENCES_VERSION}"
    )
  accepted = (
    'a JSON object {"templates": [texts], "weight": number}, in version 2 alone'
  )
  try:
    stored = json.loads(text)
    templates, weight = stored["templates"], stored["weight"]
    fits = version == SENTENCES_VERSION and all(
      isinstance(one, str) for one in templates
    )
    fits = fits and type(weight) in (int, float) and math.isfinite(weight)
  except (TypeError, ValueError, KeyError, RecursionError):
    fits = False
  if not fits:
    refuse(path, "sentences", printable(repr(text))[:200], accepted)
  return Sentences(tuple(templates), float(weight))


def _calibration(path: str | os.PathLike, text: Any) -> Calibration | None:
  """The calibration of a file's field; None for a file without one."""
  if text is None:
    return None
  try:
    return calibration_from_json(text)
  except ValueError as error:
    refuse(path, "calibration", printable(str(error))[:200], ACCEPTED)


def format_of_content(path: str | os.PathLike) -> str | None:
  """Format that a file begins like: npz, safetensors or pth; None if it is none of
  them."""
  try:
    with open(local_copy(path), "rb") as file:
      head = file.read(32)
    if is_safetensors(head):
      return "safetensors"
    with zipfile.ZipFile(local_copy(path)) as archive:
      is_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
      return "pth" if is_torch else "npz"
  except Exception:  # the reader raises it in one line
    return None


def recorded_clip(path: str) -> str | None:
  """CLIP that a prompt's file names, in a mixture the first; None for other prompts."""
  for name in _files_in(path):
    clip_model = load_prompt(name).clip_model
    return None if clip_model == UNKNOWN_CLIP else clip_model
  return None


def recorded_upright(path: str) -> bool | None:
  """`Prompt.upright` of a prompt's file, in a mixture the first that is known."""
  found = (load_prompt(name).upright for name in _files_in(path))
  return next((upright for upright in found if upright is not None), None)


def recorded_classes(path: str) -> str:
  """File of the class names of the run that has learned a prompt, or all parts of a
  mixture.

  Empty if it is not beside the prompt: for other prompts, and for a copy of a run's
  file elsewhere.
  """
  # A run of a method without a prompt has classes too.
  names = (
    [path] if is_dir(path) else [name for name in _files_in(path) if not is_hub(name)]
  )
  files = {str(classes_path(name) or "") for name in names}
  return files.pop() if len(files) == 1 else ""


def _files_in(path: str) -> Iterator[str]:
  """Prompt files that a name of `evaluate.prompts` stands for: itself, or parts of a
  mixture."""
  parts = [part.partition("*")[2].strip() for part in path.split(" + ")]
  for name in filter(None, [path, *parts]):
    if is_prompt_file(name) and not name.endswith((".npy", ".json")):
      yield name


def encode_npz(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """The arrays `context`, `format_version` and the text fields."""
  version = SENTENCES_VERSION if "sentences" in text else FORMAT_VERSION
  arrays: dict[str, Any] = {"context": np.ascontiguousarray(context)}
  arrays["format_version"] = np.int64(version)
  file = io.BytesIO()
  np.savez(
    file,
    allow_pickle=False,
    **arrays,
    **{k: np.array(value) for k, value in text.items()},
  )
  return file.getvalue()


def read_npz(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the arrays of an npz file that are fields; 0-d arrays as plain values."""
  fields: dict[str, Any] = {}
  field, problem = "the file", "not a whole npz"
  try:
    with zipfile.ZipFile(local_copy(path)) as archive:
      problem = "damaged, or not plain numbers"
      for field in ("format_version", *FIELDS, *OPTIONAL):
        if f"{field}.npy" in archive.namelist():
          # The whole member, whose CRC-32 is compared: NumPy stops where its header
          # says.
          content = io.BytesIO(archive.read(f"{field}.npy"))
          array = np.lib.format.read_array(content, allow_pickle=False)
          fields[field] = array if array.ndim else array.item()
  except FileNotFoundError:
    refuse(path, field, "missing", "an npz")
  except (
    Exception
  ) as error:  # a bad byte fails in more ways than zipfile, zlib and NumPy document
    refuse(path, field, f"{problem} ({error})", "an undamaged npz")
  return fields


def is_safetensors(head: bytes) -> bool:
  """Whether a file begins like safetensors: the header's length, then a JSON object."""
  return head[8:9] == b"{"
