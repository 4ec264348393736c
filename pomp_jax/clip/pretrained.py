"""Finding a CLIP's files in a folder, beside a file, or on the hub, and detecting their layout."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from transformers import CLIPConfig

from pomp_jax.clip.architecture import (
  ClipConfig,
  ClipError,
  config_from_huggingface,
  config_from_shapes,
  parameter_shapes,
)
from pomp_jax.clip.layouts import HUGGINGFACE, OPENAI, Layout, check_weights
from pomp_jax.files.weights import CLIPS, Weights, WeightsError, open_weights

FLAX_WEIGHTS = "flax_model.msgpack"
_HUGGINGFACE_CONFIG = "config.json"
_HUGGINGFACE_WEIGHTS = (
  FLAX_WEIGHTS,
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
)
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
)
_ACCEPTED = (
  f"{', '.join(CLIPS)}, a folder or hub id with {_HUGGINGFACE_CONFIG} and"
  f" {', '.join(_HUGGINGFACE_WEIGHTS[:-1])} or"
  f" {_HUGGINGFACE_WEIGHTS[-1]}, or with {', '.join(_OPEN_CLIP_WEIGHTS[:-1])} or"
  f" {_OPEN_CLIP_WEIGHTS[-1]}, or a .safetensors, .pt or .bin file of OpenAI's or open_clip's"
)
# Seconds to wait for the hub. Its own library retries each file for 23 s.
_TIMEOUT = 5.0
# One slash at most, and a letter or a digit first.
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Place:
  """The place of a CLIP's files: a folder, or a repository on the hub.

  The hub is asked once for the list of files. If it does not answer, its local cache is used.

  Attributes:
    source: the folder, file or hub id.
    file: the weights, if the source is a file.
  """

  def __init__(self, source: str):
    """Looks on the disk, without asking the hub.

    Raises:
      ClipError: no such path, and not the form of a hub id.
    """
    self.source, path = source, CLIPS.get(source) or pathlib.Path(source)
    self.file = path if path.is_file() else None
    self._folder = path.parent if self.file else path
    self._on_hub = not path.exists()
    self._trouble = ""
    if self._on_hub and not HUB_ID.fullmatch(source):
      raise ClipError(f"{source}: no such file or folder; accepted: {_ACCEPTED}")

  def find(self, name: str) -> pathlib.Path | None:
    """Returns the path of a file, downloaded if necessary; None if there is none."""
    if not self._on_hub:
      file = self._folder / name
      return file if file.is_file() else None
    listed = self._listed
    if listed is not None and name not in listed:
      return None
    try:
      return pathlib.Path(hf_hub_download(self.source, name, local_files_only=listed is None))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
      # Without a network, a missing file looks like an unreachable one.
      self._trouble = self._trouble or _line(error)[:200]
      return None

  @functools.cached_property
  def _listed(self) -> frozenset[str] | None:
    """Names of the repository's files; None without an answer of the hub."""
    try:
      files = HfApi().model_info(self.source, timeout=_TIMEOUT).siblings
      return frozenset(file.rfilename for file in files or ())
    except (HfHubHTTPError, HFValidationError, OSError) as error:
      self._trouble = f"the hub can't be asked: {type(error).__name__}: {_line(error)[:200]}"
      return None

  def find_first(self, names: tuple[str, ...]) -> pathlib.Path | None:
    """Returns the first of these files that exists."""
    return next(filter(None, map(self.find, names)), None)

  def nothing(self) -> ClipError:
    """The error of a source without a CLIP."""
    because = f" ({self._trouble})" if self._trouble else ""
    return ClipError(f"{self.source}: no CLIP's weights there{because}; accepted: {_ACCEPTED}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A CLIP's files, found and checked against one another, with the weights unread.

  Attributes:
    place: folder or repository.
    config: the sizes.
    weights: the open file; None for Flax's, which HuggingFace reads.
    layout: layout of that file.
    shapes: shapes of the parameters.
    file: path of the weights.
    settings: content of open_clip_config.json, if it is used.
  """

  place: Place
  config: ClipConfig
  weights: Weights | None
  layout: Layout
  shapes: dict[str, Any]
  file: pathlib.Path
  settings: dict[str, Any] | None = None


@contextlib.contextmanager
def open_checkpoint(source: str, activation: str = "auto") -> Iterator[Checkpoint]:
  """Finds a CLIP and checks names and shapes of its weights against its configuration.

  Args:
    source: a folder, a file, or a hub id.
    activation: activation of the MLPs, see `architecture.config_from_shapes`.

  Raises:
    ClipError: no CLIP there, or one that is damaged or contradicts itself.
  """
  place = Place(source)
  file = place.file
  config_file = None
  if file is None:
    config_file = place.find(_HUGGINGFACE_CONFIG)
    file = config_file and place.find_first(_HUGGINGFACE_WEIGHTS)
    if file is None:
      config_file, file = None, place.find_first(_OPEN_CLIP_WEIGHTS)
    if file is None:
      raise place.nothing()
  if file.name == FLAX_WEIGHTS:
    config = config_from_huggingface(_huggingface_config(place, config_file), activation)
    yield Checkpoint(place, config, None, HUGGINGFACE, parameter_shapes(config), file)
    return
  try:
    with open_weights(file) as weights:
      yield _checked(place, weights, file, config_file, activation)
  except WeightsError as error:
    raise ClipError(str(error)) from error


def _checked(
  place: Place,
  weights: Weights,
  file: pathlib.Path,
  config_file: pathlib.Path | None,
  activation: str,
) -> Checkpoint:
  settings = None
  if config_file is not None or any(name.startswith("text_model.") for name in weights.shapes):
    layout = HUGGINGFACE
    config = config_from_huggingface(_huggingface_config(place, config_file), activation)
  else:
    layout = OPENAI
    settings = _open_clip_settings(place)
    config = config_from_shapes(weights.shapes, weights.path, activation, settings)
  try:
    shapes = parameter_shapes(config)
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise ClipError(f"{weights.path}: no tower has such sizes ({_line(error)})") from error
  check_weights(weights.shapes, shapes, layout, weights.path)
  return Checkpoint(place, config, weights, layout, shapes, file, settings)


def _huggingface_config(place: Place, file: pathlib.Path | None) -> CLIPConfig:
  file = file or place.find(_HUGGINGFACE_CONFIG)
  if file is None:
    raise ClipError(
      f"{place.source}: no {_HUGGINGFACE_CONFIG}, expected beside weights in HuggingFace's layout"
    )
  try:
    config = CLIPConfig.from_pretrained(str(file.parent))
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise ClipError(f"{place.source}: {file.name} is no CLIP's ({_line(error)})") from error
  if config.model_type != "clip":
    raise ClipError(f"{place.source}: model_type: got {config.model_type!r}, expected 'clip'")
  return config


def _open_clip_settings(place: Place) -> dict[str, Any] | None:
  file = place.find(_OPEN_CLIP_CONFIG)
  if file is None:
    return None
  try:
    settings = json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ClipError(f"{file}: not JSON ({_line(error)})") from error
  return settings if isinstance(settings, dict) else {}


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:300]
