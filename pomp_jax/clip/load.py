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

from pomp_jax.clip import huggingface, openai
from pomp_jax.clip.architecture import ClipConfig, ClipError, parameter_shapes
from pomp_jax.clip.families import NoImageTower
from pomp_jax.clip.open_clip import CONFIG, PREFIX, named_clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import MERGES, Tokenizer
from pomp_jax.clip.weights import (
  Files,
  Layout,
  Weights,
  check_weights,
  open_weights,
  read_json,
  read_params,
)
from pomp_jax.files.paths import Path, exists, is_file, to_path
from pomp_jax.files.terminal import one_line

log = logging.getLogger(__name__)

Params = dict[str, Any]

# The channel statistics of OpenAI's CLIP (its preprocessing code, and every
# preprocessor_config.json on the hub), for checkpoints that do not bring their own.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Embedded CLIPs in HuggingFace's layout, by name.
_CLIPS = {"world": pathlib.Path(__file__).parent.parent / "world" / "clip"}
# Values of open_clip's preprocess_cfg, the default first.
_RESIZES = {"resize_mode": ("shortest", "squash"), "interpolation": ("bicubic", "bilinear")}
# A module each: names of its files and where the statistics are, `layout`, `read_config`,
# `read_tokenizer`; the most specific first.
_FAMILIES = (huggingface, openai)
# What the names of an image tower's tensors begin with.
_IMAGE_TOWERS = ("visual.", "vision_model.", "visual_projection.")
_ACCEPTED = (
  f"{', '.join(_CLIPS)}, a folder or hub id with {huggingface.NEEDED[0]} and one of"
  f" {', '.join(huggingface.WEIGHTS)}, or with one of {', '.join(openai.WEIGHTS)}, or a"
  f" .safetensors, .pt or .bin file of OpenAI's or open_clip's, or {PREFIX}MODEL/TAG"
)
# Where CLIP's merges are, which not all repositories of open_clip's tables have.
_MERGES_OF = "openai/clip-vit-base-patch16"
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
  squash: bool = False  # whether images are resized to a square, whatever their sides
  bilinear: bool = False  # whether they are resized bilinearly, not bicubically

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
    """Embeddings of the tokens before every prompt: the start token [1,D], or none [0,D]."""
    tokenizer: Any = self.tokenizer
    bos = tokenizer.bos_token_id
    ids = np.array([] if bos is None else [bos], np.int32)
    return jnp.asarray(token_embeddings(self.params, ids))

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
    resizing = [self.squash, self.bilinear] if self.squash or self.bilinear else []
    return json.dumps([self.config.settings(), self.mean, self.std, *resizing])


def read_config_and_tokenizer(
  source: str, image_tower: bool = True
) -> tuple[ClipConfig, Tokenizer]:
  """Reads a CLIP without its weights, for validation; arguments and errors as `load_clip`'s.

  Names and shapes of the weights are checked against the configuration. Files of a hub are
  downloaded.
  """
  with _open_checkpoint(source, image_tower=image_tower) as checkpoint:
    return checkpoint.config, checkpoint.tokenizer()


def is_here(source: str) -> bool:
  """Whether a CLIP's weights are on this machine; the hub is not asked."""
  names = (name for family in _FAMILIES for name in family.WEIGHTS)
  cached = lambda name: isinstance(try_to_load_from_cache(source, name), str)
  return source in _CLIPS or exists(source) or any(map(cached, names))


def load_clip(source: str, activation: str = "auto", *, image_tower: bool = True) -> Clip:
  """Loads a CLIP from a folder, a file or the hub, and logs what it assumes.

  `source`, its name in prompt files, is `world`, or a folder, a file or a hub id that
  `docs/weights.md` describes. The activation is `quick_gelu`, `gelu`, or `auto`: the checkpoint's,
  or its publisher's usual one. Without `image_tower` the text tower alone is read, beside an image
  tower of any kind: features of images come from elsewhere. ClipError: nothing there, no answer of
  a hub, another architecture, damage, no tokenizer.
  """
  with _open_checkpoint(source, activation, image_tower) as checkpoint:
    tokenizer, preprocessing = checkpoint.tokenizer(), checkpoint.preprocessing()
    params = read_params(checkpoint.weights, checkpoint.shapes, checkpoint.layout)
  config = checkpoint.config
  level = logging.WARNING if any("ASSUMED" in note for note in config.notes) else logging.INFO
  log.log(level, "%s: %s", source, "; ".join([config.describe(), *config.notes]))
  return Clip(source, config, params, tokenizer, *preprocessing)


class _Place:
  """A folder of a CLIP's files, or a repository on the hub.

  The hub is asked once for the list of files. If it does not answer, its local cache is used.
  """

  def __init__(self, source: str):
    self.named = named_clip(source)
    source = self.named.source
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
    if self.named.settings and name == MERGES and not self._is_listed(name):
      return _Place(_MERGES_OF).find(name)
    listed = self._listed
    if not self._is_listed(name):
      return None
    try:
      return pathlib.Path(hf_hub_download(self.source, name, local_files_only=listed is None))
    except Exception as error:  # the hub's client and its version choose the class
      # Without a network, a missing file looks like an unreachable one.
      self.trouble = self.trouble or one_line(error, 200)
      return None

  def _is_listed(self, name: str) -> bool:
    return self._listed is None or name in self._listed

  @functools.cached_property
  def _listed(self) -> frozenset[str] | None:
    """Names of the repository's files; None without an answer of the hub."""
    try:
      files = HfApi().model_info(self.source, timeout=_TIMEOUT).siblings
      return frozenset(file.rfilename for file in files or ())
    except Exception as error:  # likewise
      self.trouble = f"the hub can't be asked: {type(error).__name__}: {one_line(error, 200)}"
      return None

  def json(self, name: str) -> Any:
    """Content of a JSON file, {} for null; None without one. open_clip's tables come first."""
    if name == CONFIG and self.named.settings:
      return self.named.settings
    file = self.find(name)
    if file is None:
      return None
    found = read_json(file)
    return {} if found is None else found

  def files(self) -> Files:
    """What a family asks for."""
    elsewhere = lambda repository, name: _Place(repository).find(name)
    return Files(self.source, self.find, self.json, elsewhere)

  def find_first(self, names: tuple[str, ...]) -> Path | None:
    """Returns the first of these files that exists."""
    return next(filter(None, map(self.find, names)), None)


class _Checkpoint(NamedTuple):
  """A CLIP's files, checked against one another."""

  place: _Place
  family: Any  # one of _FAMILIES
  config: ClipConfig
  weights: Weights
  layout: Layout
  shapes: dict[str, Any]

  def tokenizer(self) -> Tokenizer:
    return self.family.read_tokenizer(self.place.files(), self.config)

  def preprocessing(self) -> tuple[tuple[float, ...], tuple[float, ...], bool, bool]:
    """Fields of `Clip`, OpenAI's where the checkpoint has no own ones."""
    name, settings_of, prefix = self.family.STATISTICS
    settings = self.place.json(name)
    if settings is None:
      return _CLIP_MEAN, _CLIP_STD, False, False
    try:
      settings = settings.get(settings_of, {}) if settings_of else settings
      mean = tuple(map(float, settings.get(f"{prefix}mean", _CLIP_MEAN)))
      std = tuple(map(float, settings.get(f"{prefix}std", _CLIP_STD)))
      if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std take three channels")
      found = []
      for key, values in _RESIZES.items():
        found.append(settings.get(key, values[0]))
        if found[-1] not in values:
          raise ValueError(f"{key}: got {found[-1]!r}, expected {' or '.join(values)}")
    except (ValueError, TypeError, AttributeError) as error:
      where = f"{self.place.source}: {name}"
      raise ClipError(f"{where}: not a preprocessor's settings ({error})") from error
    return mean, std, found[0] == "squash", found[1] == "bilinear"


@contextlib.contextmanager
def _open_checkpoint(
  source: str, activation: str = "auto", image_tower: bool = True
) -> Iterator[_Checkpoint]:
  """Finds a CLIP and checks names and shapes of its weights against its configuration."""
  place = _Place(source)
  family, file = (None, place.file) if place.file else _found(place)
  with open_weights(file) as weights:
    if place.named.settings:
      family = openai
    elif family is not huggingface:  # a file, or one of open_clip's: the tensors' names decide
      begins = lambda prefix: any(name.startswith(prefix) for name in weights.shapes)
      family = next((family for family in _FAMILIES if begins(family.PREFIX)), openai)
    config = family.read_config(place.files(), weights, activation, image_tower)
    if not image_tower:
      config = dataclasses.replace(config, vision_config=NoImageTower())
      is_text = lambda name: not name.startswith(_IMAGE_TOWERS)
      kept = {name: shape for name, shape in weights.shapes.items() if is_text(name)}
      weights = weights._replace(shapes=kept)
    try:
      shapes = parameter_shapes(config, weights.shapes)
    except (ValueError, TypeError, ZeroDivisionError) as error:
      raise ClipError(f"{weights.path}: no tower has such sizes ({one_line(error)})") from error
    layout = family.layout(weights, config)
    check_weights(weights.shapes, shapes, layout, weights.path)
    yield _Checkpoint(place, family, config, weights, layout, shapes)


def _found(place: _Place) -> tuple[Any, Path]:
  """The first family whose files are there, and its weights."""
  if place.named.settings and (
    file := place.find_first((place.named.file or openai.WEIGHTS[0], *openai.WEIGHTS))
  ):
    return openai, file
  for family in _FAMILIES:
    if all(map(place.find, family.NEEDED)) and (file := place.find_first(family.WEIGHTS)):
      return family, file
  because = f" ({place.trouble})" if place.trouble else ""
  raise ClipError(f"{place.source}: no CLIP's weights there{because}; accepted: {_ACCEPTED}")
