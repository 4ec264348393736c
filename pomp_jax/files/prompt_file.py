"""Files of learned prompts: `.npz`, and other formats of `registry.FORMATS`.

The name `hf:OWNER/NAME` stands for a file on the hub. The name of a folder stands for
the prompt of the run or of the Dassl trainer in the folder.
docs/reference/formats.md describes the formats. The reader of a format returns the
fields of a file unchecked. No reader imports or runs anything that a file names.

Shapes: M context vectors, T tokens, D width of the CLIP's text tower, N or C classes, E
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

HUB_PREFIX = "hf:"
DEFAULT_FILE = "prompt.npz"
POSITIONS = ("end", "middle", "front")

# CLIP of the prompts that POMP's and CoOp's authors publish; their files name no CLIP.
PUBLISHED_CLIP = "openai/clip-vit-base-patch16"

FORMAT_VERSION = 1
# Version of a file with `sentences`. A reader that knows only version 1 must reject the
# file, instead of using its context without the sentences.
SENTENCES_VERSION = 2
VERSIONS = (FORMAT_VERSION, SENTENCES_VERSION)
# Required fields and their types in every format, besides `format_version`.
TEXTS = ("clip_model", "position", "template", "config")
FIELDS = {"context": np.ndarray} | dict.fromkeys(TEXTS, str)
# Fields that a file may lack.
OPTIONAL = {"sentences": str, "calibration": str}

# Item that a reader may return although our own files have no such field; see
# `Prompt.class_tokens`.
CLASS_TOKENS = "class_tokens"

# Message for a prompt that is not in a run's folder, and so has no class names.
NO_NAMES = "has no class_names.json beside it, as in a run's folder: give a file or a list of names"

# Text of a class, with `{}` for the name. If the template had more words, the place of
# the context among them would be unknown.
TEMPLATE = "{}."
UNKNOWN_CLIP = "unknown"
# Fields that are assumed for a file that other code has written.
OF_OTHERS: dict[str, Any] = {
  "format_version": FORMAT_VERSION,
  "clip_model": UNKNOWN_CLIP,
  "position": "end",
  "template": TEMPLATE,
  "config": "{}",
}


class PromptFileError(InputError, ValueError):
  """A prompt file can't be used.

  The message is one line with the file, the field, and the accepted values.
  """


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises a PromptFileError about a field.

  Args:
    path: prompt file.
    field: name of the field, or "the file".
    found: description of the field's value; unprintable characters are replaced.
    accepted: description of the accepted values.
  """
  raise PromptFileError(f"{path}: {field} is {printable(found)}; accepted: {accepted}")


class Sentences(NamedTuple):
  """Hand-written sentences that replace a context or are mixed with it."""

  templates: tuple[str, ...]  # texts with one {} for the name
  # weight of the class features under the sentences; the context has the rest
  weight: float = 1.0

  def to_json(self) -> str:
    """Formats the sentences as the field `sentences` of a file."""
    return json.dumps(
      {"templates": self.templates, "weight": self.weight}, allow_nan=False
    )


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A learned prompt, sentences that were better than the prompt, or a mixture of both.

  Class features under a mixture are the weighted sum of the unit features under the
  context and under the sentences, normalised. Features under several sentences are
  averaged and normalised before the sum.
  """

  # float32: [M, D] shared by all classes, [N, M, D] with one context per class, or
  # [0, D] if sentences have all of the weight.
  context: np.ndarray
  clip_model: str  # name or folder of the CLIP that the context was trained with
  # Place of the class name: "end" is after the context, "middle" in the middle of the
  # context, and "front" before the context.
  position: str = "end"
  # Config of the run, as JSON.
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  sentences: Sentences | None = None
  # Calibration of the probabilities, for one CLIP and one list of classes.
  calibration: Calibration | None = None
  # Path that the prompt was read from, for messages.
  file: str = dataclasses.field(default="", compare=False)
  # float32 [T, D]: token embeddings of the first class, which a file of Dassl's has.
  class_tokens: np.ndarray | None = dataclasses.field(
    default=None, compare=False, repr=False
  )

  @property
  def upright(self) -> bool | None:
    """Whether the training pictures were turned as their EXIF orientation says.

    None if the config does not say, or if the images were not files: only files have an
    orientation.
    """
    data = self.config.get("data")
    if not isinstance(data, dict):
      return None
    source = SOURCES.get(str(data.get("source")))
    if source is None or not source.stored:
      return None
    if source.generated or "upright" in source.unread:
      return None
    upright = data.get("upright")
    return upright if isinstance(upright, bool) else None


class ClassFeatures(NamedTuple):
  """Class features in place of a prompt: unit rows in the order of the class list."""

  features: Float[np.ndarray, "C E"]

  def check_fits(self, n_classes: int, width: int, where: str) -> None:
    """Checks that there is a row for each class, as wide as the CLIP's embedding.

    Args:
      n_classes: number of classes, C.
      width: width of the CLIP's embedding, E.
      where: name of the features in the message.

    Raises:
      PromptFileError: the shape is not [C, E].
    """
    expected = (n_classes, width)
    if self.features.shape != expected:
      shape = str(list(self.features.shape))
      accepted = f"{list(expected)}, one row for each of the {n_classes} classes"
      refuse(where, "the array's shape", shape, accepted)


def check_fits(
  prompt: Prompt,
  width: int,
  clip_model: str | None = None,
  n_classes: int | None = None,
  path: str | os.PathLike = "the prompt",
) -> None:
  """Checks that a prompt can be used with a CLIP and N classes.

  Warns if the prompt was trained with another CLIP of the same width.

  Args:
    prompt: prompt to check.
    width: width of the CLIP's text tower, D.
    clip_model: name of the CLIP, if it is known.
    n_classes: number of classes, N, if it is known.
    path: name of the prompt in the messages.

  Raises:
    PromptFileError: the context's width is not D, or a class-specific context is not
      for N classes.
  """
  shape = list(prompt.context.shape)
  if shape[-1] != width:
    raise PromptFileError(
      f"{path}: context {shape} has width {shape[-1]} (trained with {prompt.clip_model!r}), but the"
      f" text tower of {clip_model or 'the CLIP in use'!r} has width {width}; set"
      " config.clip.model to the prompt's CLIP"
    )
  is_class_specific = len(shape) == 3
  if is_class_specific and n_classes is not None and shape[0] != n_classes:
    raise PromptFileError(
      f"{path}: context {shape} is class-specific, one for each of its {shape[0]} classes, but the"
      f" class list has {n_classes}"
    )
  # Compare more than the width: ViT-B/16 and ViT-B/32 have the same width.
  trained = architecture(prompt.clip_model)
  used = architecture(clip_model or "")
  if trained and used and trained != used:
    log.warning(
      "%s was trained with %s, but config.clip.model is %s, another CLIP with a text tower of the"
      " same width",
      path,
      prompt.clip_model,
      clip_model,
    )


def architecture(clip_model: str) -> str | None:
  """Finds an architecture in a CLIP's name, such as vit-b-16 or rn50x4; None if absent."""
  name = clip_model.lower()
  vit = re.search(r"vit[-_/]?([blhg])[a-z]*[-_/]?(?:patch)?[-_/]?(\d\d)(?!\d)", name)
  if vit:
    return f"vit-{vit[1]}-{vit[2]}"
  resnet = re.search(r"(?:rn|resnet)[-_]?(\d+(?:x\d+)?)", name)
  if resnet:
    return f"rn{resnet[1]}"
  return None


def _is_context(context: object) -> bool:
  """Whether a context is float32 [M,D] or [N,M,D] without an empty axis."""
  if not isinstance(context, np.ndarray) or context.dtype != np.float32:
    return False
  return context.ndim in (2, 3) and context.size > 0


def _is_empty_beside_sentences(prompt: Prompt) -> bool:
  """Whether the context is float32 [0,D], beside sentences that have all of the weight."""
  if prompt.sentences is None or prompt.sentences.weight != 1:
    return False
  context = prompt.context
  if not isinstance(context, np.ndarray) or context.dtype != np.float32:
    return False
  return context.ndim == 2 and context.shape[0] == 0 and context.shape[1] > 0


def validate(path: str | os.PathLike, prompt: Prompt) -> None:
  """Checks every field of a prompt before a write or after a read.

  Raises:
    PromptFileError: a field breaks a rule; the message is about the first such field.
  """
  _validate_context(path, prompt)
  if not prompt.clip_model:
    refuse(path, "clip_model", "empty", "the name or the folder of a CLIP")
  if prompt.position not in POSITIONS:
    refuse(path, "position", repr(prompt.position), ", ".join(POSITIONS))
  if prompt.sentences is not None:
    _validate_sentences(path, prompt.sentences)


def _validate_context(path: str | os.PathLike, prompt: Prompt) -> None:
  context = prompt.context
  if not _is_context(context) and not _is_empty_beside_sentences(prompt):
    kind = getattr(context, "dtype", type(context).__name__)
    shape = list(getattr(context, "shape", ()))
    accepted = "a NumPy array, float32 [M, D] or [N, M, D], no axis empty"
    refuse(path, "context", f"{kind} {shape}", accepted)
  n_bad = np.count_nonzero(~np.isfinite(context))
  if n_bad:
    found = f"not finite in {n_bad} of {context.size} values"
    refuse(path, "context", found, "finite values")


def _validate_sentences(path: str | os.PathLike, sentences: Sentences) -> None:
  templates, weight = sentences
  if not templates or any(text.count("{}") != 1 for text in templates):
    accepted = "one or more texts, each with one {}"
    refuse(path, "sentences", repr(templates)[:200], accepted)
  if not 0 < weight <= 1:
    accepted = "a weight above 0, at most 1"
    refuse(path, "sentences", f"of the weight {weight}", accepted)


def is_hub(name: str | os.PathLike) -> bool:
  """Whether a name stands for a file on HuggingFace's hub, `hf:OWNER/NAME`."""
  return os.fspath(name).startswith(HUB_PREFIX)


def is_prompt_file(name: str | os.PathLike) -> bool:
  """Whether a name is of an existing prompt file, of a folder with one, or of the hub."""
  return is_hub(name) or is_file(prompt_path(name))


def format_of_name(path: str | os.PathLike) -> str | None:
  """Returns the format of a file name: npz (also on the hub), safetensors, pth, or None."""
  for name, row in FORMATS.items():
    if row.names and re.search(f"({row.names})$", str(path)):
      return name
  return "npz" if is_hub(path) else None


def save_prompt(path: str | os.PathLike, prompt: Prompt) -> None:
  """Writes a prompt file atomically, in the format that its name has.

  Errors are those of `encode`, and OSError if the file can't be written.
  """
  write_file(path, encode(path, prompt))


def encode(path: str | os.PathLike, prompt: Prompt) -> bytes:
  """Content of a prompt file, in the format that its name has.

  Raises:
    PromptFileError: the suffix is unknown, or the format does not take a field's value,
      such as a NaN.
  """
  kind = format_of_name(path)
  if kind is None or is_hub(path):
    suffixes = [s for row in FORMATS.values() if row.encode for s in row.suffixes]
    accepted = f"{', '.join(suffixes)}; for hf:OWNER/NAME `push_prompt`"
    refuse(path, "the file's name", "of no known kind", accepted)
  validate(path, prompt)
  try:
    config = json.dumps(prompt.config, allow_nan=False)
  except (TypeError, ValueError) as error:
    refuse(path, "config", f"not JSON ({error})", "plain JSON values without NaN")
  text = {
    "clip_model": prompt.clip_model,
    "position": prompt.position,
    "template": TEMPLATE,
    "config": config,
  }
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
  """Reads a prompt file.

  Nothing in the file is ever executed, and unknown fields are ignored. The content
  decides the format; if the content is damaged, the name does. A file of other code
  holds the context alone. Its position is assumed to be the published default `end`
  (`dataclasses.replace` can set another position), and its CLIP is "unknown".

  Raises:
    PromptFileError: the file can't be used.
    HubError: the file can't be downloaded.
  """
  if is_hub(path):
    if not HUB_PROMPT:
      accepted = "a file or folder, without the room interchange"
      refuse(path, "the name", "one on a hub", accepted)
    return HUB_PROMPT.open()(path)
  file = prompt_path(path)
  if file != path:
    _log_once("%s: its prompt is %s", str(path), str(file))
  kind = format_of_content(file) or format_of_name(file) or "npz"
  if kind not in FORMATS:
    accepted = ".npz, without the room interchange"
    refuse(file, "the file", f"of the format {kind}", accepted)
  fields = load(FORMATS[kind].read)(file)
  _check_types(file, fields)
  prompt = Prompt(
    context=fields["context"],
    clip_model=fields["clip_model"],
    position=fields["position"],
    config=_config(file, fields["config"]),
    sentences=_sentences(file, fields.get("sentences"), fields["format_version"]),
    calibration=_calibration(file, fields.get("calibration")),
    file=str(path),
    class_tokens=fields.get(CLASS_TOKENS),
  )
  validate(file, prompt)
  return prompt


def _check_types(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
  """Raises PromptFileError for a missing field, a wrong type, or another template."""
  version = fields.get("format_version")
  if type(version) is not int or version not in VERSIONS:
    found = "missing" if version is None else repr(version)
    accepted = f"{' or '.join(map(str, VERSIONS))}, the known versions"
    refuse(path, "format_version", found, accepted)
  for field, kind in FIELDS.items():
    if field not in fields:
      names = ", ".join(sorted(map(str, fields))) or "nothing"
      accepted = f"a {kind.__name__} of that name"
      refuse(path, field, f"missing (there are: {names})", accepted)
    if type(fields[field]) is not kind:
      found = f"a {type(fields[field]).__name__}"
      refuse(path, field, found, f"a {kind.__name__}")
  if fields["template"] != TEMPLATE:
    accepted = f"{TEMPLATE!r}, as all contexts are trained"
    refuse(path, "template", repr(fields["template"]), accepted)


def _config(path: str | os.PathLike, text: str) -> dict[str, Any]:
  """Parses the field `config` of a file."""
  try:
    config = json.loads(text)
  except (ValueError, RecursionError) as error:
    refuse(path, "config", f"not JSON ({error})", "a JSON object")
  if not isinstance(config, dict):
    refuse(path, "config", f"a {type(config).__name__}", "a JSON object")
  return config


def _sentences(path: str | os.PathLike, text: Any, version: int) -> Sentences | None:
  """Parses the field `sentences` of a file; None for a file without the field."""
  if text is None:
    if version != SENTENCES_VERSION:
      return None
    accepted = f"a str of that name in version {SENTENCES_VERSION}"
    refuse(path, "sentences", "missing", accepted)
  try:
    stored = json.loads(text)
    templates = stored["templates"]
    weight = stored["weight"]
    fits = (
      version == SENTENCES_VERSION
      and all(isinstance(template, str) for template in templates)
      and type(weight) in (int, float)
      and math.isfinite(weight)
    )
  except (TypeError, ValueError, KeyError, RecursionError):
    fits = False
  if not fits:
    accepted = (
      'a JSON object {"templates": [texts], "weight": number}, in version 2 alone'
    )
    refuse(path, "sentences", printable(repr(text))[:200], accepted)
  return Sentences(tuple(templates), float(weight))


def _calibration(path: str | os.PathLike, text: Any) -> Calibration | None:
  """Parses the field `calibration` of a file; None for a file without the field."""
  if text is None:
    return None
  try:
    return calibration_from_json(text)
  except ValueError as error:
    refuse(path, "calibration", printable(str(error))[:200], ACCEPTED)


def format_of_content(path: str | os.PathLike) -> str | None:
  """Tells the format of a prompt file by its first bytes and its members.

  Returns:
    npz, safetensors or pth; None for any other file and for an unreadable file. After
    None, `load_prompt` chooses the reader by the file's name, and the reader reports
    what is wrong with the file.
  """
  try:
    file = local_copy(path)
    with open(file, "rb") as stream:
      head = stream.read(32)
    if is_safetensors(head):
      return "safetensors"
    with zipfile.ZipFile(file) as archive:
      members = archive.namelist()
  except Exception:  # a damaged file fails in more ways than zipfile documents
    return None
  # torch.save writes a zip too, with a pickle that describes the tensors.
  if any(member.endswith("/data.pkl") for member in members):
    return "pth"
  return "npz"


def recorded_clip(path: str) -> str | None:
  """CLIP that a prompt's file names, or a mixture's first file; None for other prompts."""
  for name in _files_in(path):
    clip_model = load_prompt(name).clip_model
    return None if clip_model == UNKNOWN_CLIP else clip_model
  return None


def recorded_upright(path: str) -> bool | None:
  """`Prompt.upright` of a prompt's file, or of a mixture's first part that knows it."""
  for name in _files_in(path):
    upright = load_prompt(name).upright
    if upright is not None:
      return upright
  return None


def recorded_classes(path: str) -> str:
  """File of the class names of the run that has learned a prompt.

  All parts of a mixture must have the same file. Returns "" if they don't, or if there
  is no such file beside the prompt: for other prompts, and for a copy of a run's prompt
  elsewhere.
  """
  names = [name for name in _files_in(path) if not is_hub(name)]
  if is_dir(path):
    names = [path]  # a run of a method without a prompt has classes too
  files = {str(classes_path(name) or "") for name in names}
  return files.pop() if len(files) == 1 else ""


def _files_in(path: str) -> Iterator[str]:
  """Yields the prompt files that an item of `evaluate.prompts` names.

  The item is the name of one prompt, or a mixture "WEIGHT * NAME + WEIGHT * NAME".
  """
  parts = [part.partition("*")[2].strip() for part in path.split(" + ")]
  for name in filter(None, [path, *parts]):
    if is_prompt_file(name) and not name.endswith((".npy", ".json")):
      yield name


def encode_npz(context: np.ndarray, text: Mapping[str, str]) -> bytes:
  """Content of an npz: the arrays `context` and `format_version`, and the text fields."""
  version = SENTENCES_VERSION if "sentences" in text else FORMAT_VERSION
  arrays: dict[str, Any] = {
    "context": np.ascontiguousarray(context),
    "format_version": np.int64(version),
  }
  for field, value in text.items():
    arrays[field] = np.array(value)
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **arrays)
  return file.getvalue()


def read_npz(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the arrays of an npz file that are fields of a prompt, and ignores all others.

  Returns:
    The arrays by field, for the fields that the file has; 0-d arrays as plain values.

  Raises:
    PromptFileError: the file is missing or damaged, or a field is not plain numbers or
      text.
  """
  try:
    archive = zipfile.ZipFile(local_copy(path))
  except FileNotFoundError:
    refuse(path, "the file", "missing", "an npz")
  except Exception as error:  # a damaged file fails in more ways than zipfile documents
    refuse(path, "the file", f"not a whole npz ({error})", "an undamaged npz")

  fields: dict[str, Any] = {}
  with archive:
    members = archive.namelist()
    for field in ("format_version", *FIELDS, *OPTIONAL):
      if f"{field}.npy" in members:
        fields[field] = _read_member(path, archive, field)
  return fields


def _read_member(path: str | os.PathLike, archive: zipfile.ZipFile, field: str) -> Any:
  """Reads a field of an npz: an array, or a plain value if it is 0-d.

  Args:
    path: the file, for the message.
    archive: the open npz.
    field: name of the field, which the archive has.

  Raises:
    PromptFileError: the member is damaged, or holds Python objects.
  """
  try:
    # Read all bytes of the member, so that zipfile compares their CRC-32. NumPy would
    # read only as many bytes as the array's header states.
    content = io.BytesIO(archive.read(f"{field}.npy"))
    array = np.lib.format.read_array(content, allow_pickle=False)
    return array if array.ndim else array.item()
  except Exception as error:
    # A bad byte fails in more ways than zipfile, zlib and NumPy document.
    found = f"damaged, or not plain numbers ({error})"
    refuse(path, field, found, "an undamaged npz")


def is_safetensors(head: bytes) -> bool:
  """Whether a file begins like safetensors: the header's length, then a JSON object."""
  return head[8:9] == b"{"
