"""Loading a frozen CLIP, with its tokenizer, from a folder, a file or the hub."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import re
from typing import Any, NamedTuple

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPConfig, CLIPTokenizerFast

from pomp_jax.clip.architecture import (
  ClipConfig,
  ClipError,
  config_from_huggingface,
  config_from_shapes,
  parameter_shapes,
)
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import Tokenizer, read_bpe
from pomp_jax.clip.weights import (
  FLAX,
  FLAX_SUFFIX,
  HUGGINGFACE,
  OPENAI,
  Layout,
  Weights,
  check_weights,
  open_weights,
  read_params,
)
from pomp_jax.files.paths import Path, exists, is_file, local_copy, read_bytes, to_path
from pomp_jax.files.terminal import one_line

log = logging.getLogger(__name__)

Params = dict[str, Any]

# The channel statistics of OpenAI's CLIP (its preprocessing code, and every
# preprocessor_config.json on the hub), for checkpoints that do not bring their own.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER_FILES = (
  *("tokenizer.json", "vocab.json", "merges.txt"),
  *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
# Embedded CLIPs in HuggingFace's layout, by name.
_CLIPS = {"world": pathlib.Path(__file__).parent.parent / "world" / "clip"}
_HUGGINGFACE_CONFIG = "config.json"
_HUGGINGFACE_WEIGHTS = (
  f"flax_model{FLAX_SUFFIX}",
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
  f"{', '.join(_CLIPS)}, a folder or hub id with {_HUGGINGFACE_CONFIG} and one of"
  f" {', '.join(_HUGGINGFACE_WEIGHTS)}, or with one of {', '.join(_OPEN_CLIP_WEIGHTS)}, or a"
  " .safetensors, .pt or .bin file of OpenAI's or open_clip's"
)
# Seconds to wait for the hub. Its own library retries each file for 23 s.
_TIMEOUT = 5.0
# One slash at most, and a letter or a digit first.
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Clip:
  """A frozen CLIP, as loaded."""

  name: str  # source it was loaded from (recorded in prompt files)
  config: ClipConfig  # sizes of each tower, under HuggingFace's names
  # HuggingFace FlaxCLIP's parameter tree, float32, on the host; that of `clip.resnet` for a ResNet
  # image tower.
  params: Params
  tokenizer: Tokenizer  # the checkpoint's own tokenizer
  # Per-channel mean of the preprocessing, for pixels in [0, 1].
  mean: tuple[float, ...] = _CLIP_MEAN
  std: tuple[float, ...] = _CLIP_STD  # per-channel standard deviation, likewise

  @property
  def text_width(self) -> int:
    """D, the width of the text tower and so of a context vector."""
    return self.config.text_config.hidden_size

  @property
  def positions(self) -> int:
    """Number of tokens that the text tower takes, SOS and EOT included (77 for OpenAI's)."""
    return self.config.text_config.max_position_embeddings

  @property
  def image_size(self) -> int:
    """Height and width of the vision tower's images, pixels."""
    return self.config.vision_config.image_size

  @property
  def logit_scale(self) -> float:
    """exp(logit_scale), the factor on cosine similarities (100 for OpenAI's)."""
    return float(np.exp(self.params["logit_scale"]))

  @property
  def sos_embedding(self) -> jax.Array:
    """The embedding of the start token, the first of every prompt [D]."""
    tokenizer: Any = self.tokenizer
    bos = np.array(tokenizer.bos_token_id, np.int32)
    return jnp.asarray(token_embeddings(self.params, bos))

  @property
  def text_params(self) -> Params:
    """Parameters of the text tower."""
    return {key: self.params[key] for key in ("text_model", "text_projection")}

  @property
  def vision_params(self) -> Params:
    """Parameters of the vision tower."""
    return {key: self.params[key] for key in self.params if key.startswith("vis")}

  @property
  def settings(self) -> str:
    """Settings that features depend on beside parameters and tokens, as JSON."""
    return json.dumps([self.config.settings(), self.mean, self.std])


def read_config_and_tokenizer(source: str) -> tuple[ClipConfig, Tokenizer]:
  """Reads a CLIP without its weights, for validation; arguments and errors as `load_clip`'s.

  Names and shapes of the weights are checked against the configuration. Files of a hub are
  downloaded.
  """
  with _open_checkpoint(source) as checkpoint:
    return checkpoint.config, _tokenizer(checkpoint)


def is_here(source: str) -> bool:
  """Whether a CLIP's weights are on this machine; the hub is not asked."""
  names = (*_HUGGINGFACE_WEIGHTS, *_OPEN_CLIP_WEIGHTS)
  cached = lambda name: isinstance(try_to_load_from_cache(source, name), str)
  return source in _CLIPS or exists(source) or any(map(cached, names))


def load_clip(source: str, name: str | None = None, activation: str = "auto") -> Clip:
  """Loads a CLIP from a folder, a file or the hub, and logs what it assumes.

  `source` is `world`, or a folder, a file or a hub id that `docs/weights.md` describes; `name` is
  for prompt files, the source if None. The activation is `quick_gelu`, `gelu`, or `auto`: the
  checkpoint's, or its publisher's usual one. ClipError: nothing there, no answer of a hub, another
  architecture, damage, no tokenizer.
  """
  with _open_checkpoint(source, activation) as checkpoint:
    tokenizer = _tokenizer(checkpoint)
    mean, std = _channel_statistics(checkpoint)
    params = read_params(checkpoint.weights, checkpoint.shapes, checkpoint.layout)
  config = checkpoint.config
  level = logging.WARNING if any("ASSUMED" in note for note in config.notes) else logging.INFO
  log.log(level, "%s: %s", source, "; ".join([config.describe(), *config.notes]))
  return Clip(name or source, config, params, tokenizer, mean, std)


class _Place:
  """A folder of a CLIP's files, or a repository on the hub.

  The hub is asked once for the list of files. If it does not answer, its local cache is used.
  """

  def __init__(self, source: str):
    self.source, path = source, _CLIPS.get(source) or to_path(source)
    self.file = path if is_file(path) else None
    self._folder = path.parent if self.file else path
    self._on_hub = not exists(path)
    self.trouble = ""
    if self._on_hub and not _HUB_ID.fullmatch(source):
      raise ClipError(f"{source}: no such file or folder; accepted: {_ACCEPTED}")

  def find(self, name: str) -> Path | None:
    """Returns the path of a file, downloaded if necessary; None if there is none."""
    if not self._on_hub:
      file = self._folder / name
      return file if is_file(file) else None
    listed = self._listed
    if listed is not None and name not in listed:
      return None
    try:
      return pathlib.Path(hf_hub_download(self.source, name, local_files_only=listed is None))
    except Exception as error:  # the hub's client and its version choose the class
      # Without a network, a missing file looks like an unreachable one.
      self.trouble = self.trouble or one_line(error, 200)
      return None

  @functools.cached_property
  def _listed(self) -> frozenset[str] | None:
    """Names of the repository's files; None without an answer of the hub."""
    try:
      files = HfApi().model_info(self.source, timeout=_TIMEOUT).siblings
      return frozenset(file.rfilename for file in files or ())
    except Exception as error:  # likewise
      self.trouble = f"the hub can't be asked: {type(error).__name__}: {one_line(error, 200)}"
      return None

  def find_first(self, names: tuple[str, ...]) -> Path | None:
    """Returns the first of these files that exists."""
    return next(filter(None, map(self.find, names)), None)


class _Checkpoint(NamedTuple):
  """A CLIP's files, checked against one another."""

  place: _Place
  config: ClipConfig
  weights: Weights
  layout: Layout
  shapes: dict[str, Any]


@contextlib.contextmanager
def _open_checkpoint(source: str, activation: str = "auto") -> Iterator[_Checkpoint]:
  """Finds a CLIP and checks names and shapes of its weights against its configuration."""
  place = _Place(source)
  file, config_file = place.file, None
  if file is None:
    config_file = place.find(_HUGGINGFACE_CONFIG)
    file = config_file and place.find_first(_HUGGINGFACE_WEIGHTS)
    if file is None:
      config_file, file = None, place.find_first(_OPEN_CLIP_WEIGHTS)
    if file is None:
      because = f" ({place.trouble})" if place.trouble else ""
      raise ClipError(f"{source}: no CLIP's weights there{because}; accepted: {_ACCEPTED}")
  with open_weights(file) as weights:
    if config_file is not None or any(name.startswith("text_model.") for name in weights.shapes):
      layout = FLAX if weights.path.endswith(FLAX_SUFFIX) else HUGGINGFACE
      config = config_from_huggingface(_huggingface_config(place), activation)
    else:
      layout, found = OPENAI, place.find(_OPEN_CLIP_CONFIG)
      settings = None if found is None else _read_json(found) or {}  # `null` has no model_cfg
      config = config_from_shapes(weights.shapes, weights.path, activation, settings)
    try:
      shapes = parameter_shapes(config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
      raise ClipError(f"{weights.path}: no tower has such sizes ({one_line(error)})") from error
    check_weights(weights.shapes, shapes, layout, weights.path)
    yield _Checkpoint(place, config, weights, layout, shapes)


def _huggingface_config(place: _Place) -> CLIPConfig:
  file = place.find(_HUGGINGFACE_CONFIG)
  if file is None:
    raise ClipError(
      f"{place.source}: no {_HUGGINGFACE_CONFIG}, expected beside weights in HuggingFace's layout"
    )
  try:
    config = CLIPConfig.from_pretrained(str(local_copy(file).parent))
  except Exception as error:  # the errors of transformers' checks share no base
    raise ClipError(f"{place.source}: {file.name} is no CLIP's ({one_line(error)})") from error
  if config.model_type != "clip":
    raise ClipError(f"{place.source}: model_type: got {config.model_type!r}, expected 'clip'")
  return config


def _read_json(file: Path | None) -> Any:
  try:
    return None if file is None else json.loads(read_bytes(file).decode())
  except (OSError, ValueError) as error:
    raise ClipError(f"{file}: not JSON ({one_line(error)})") from error


def _tokenizer(checkpoint: _Checkpoint) -> Tokenizer:
  """HuggingFace's tokenizer beside weights in its layout, otherwise one from the merges."""
  place = checkpoint.place
  own = place.find_first(_TOKENIZER_FILES[:2])
  if checkpoint.layout is OPENAI or own is None:
    return read_bpe(place.find, checkpoint.config.text_config.vocab_size, place.source)
  # From the hub, each file is downloaded when it is looked up; from a bucket, when it is copied.
  for name in _TOKENIZER_FILES:
    if found := place.find(name):
      local_copy(found)
  try:
    return CLIPTokenizerFast.from_pretrained(str(local_copy(own).parent))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise ClipError(f"{place.source}: {own.name} can't be read ({one_line(error)})") from error


def _channel_statistics(checkpoint: _Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation by open_clip_config.json, or by HuggingFace's preprocessor."""
  name, prefix = "preprocessor_config.json", "image_"
  if checkpoint.layout is OPENAI:
    name, prefix = _OPEN_CLIP_CONFIG, ""
  file = checkpoint.place.find(name)
  if file is None:
    return _CLIP_MEAN, _CLIP_STD
  settings = _read_json(file)
  try:
    settings = settings if prefix else settings.get("preprocess_cfg", {})
    mean = tuple(map(float, settings.get(f"{prefix}mean", _CLIP_MEAN)))
    std = tuple(map(float, settings.get(f"{prefix}std", _CLIP_STD)))
    if len(mean) != 3 or len(std) != 3:
      raise ValueError("mean and std take three channels")
  except (ValueError, TypeError, AttributeError) as error:
    raise ClipError(f"{file}: not a preprocessor's settings ({error})") from error
  return mean, std
