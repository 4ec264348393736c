"""Loading a frozen CLIP, with its tokenizer, from a folder, a file or the hub."""

import dataclasses
import json
import logging
import pathlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip import huggingface, openai_layout
from pomp_jax.clip.architecture import ClipConfig, ClipError, parameter_shapes
from pomp_jax.clip.image_towers import NoImageTower
from pomp_jax.clip.open_clip import CONFIG, PREFIX, NamedClip, named_clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import Tokenizer
from pomp_jax.clip.weights import (
  Files,
  Layout,
  PreprocessingSettings,
  Weights,
  check_weights,
  open_weights,
  read_params,
)
from pomp_jax.files.paths import Path
from pomp_jax.files.terminal import one_line

log = logging.getLogger(__name__)

Params = dict[str, Any]

# Channel statistics of OpenAI's CLIP (from its preprocessing code, and every
# preprocessor_config.json on the hub), for checkpoints without statistics.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Embedded CLIPs in HuggingFace's layout, by name.
_CLIPS = {"world": pathlib.Path(__file__).parent.parent / "world" / "clip"}
# Accepted values of items of open_clip's preprocess_cfg, the default first.
_RESIZES = {
  "resize_mode": ("shortest", "squash"),
  "interpolation": ("bicubic", "bilinear"),
}
# Prefixes of the names of an image tower's tensors.
_IMAGE_TOWERS = ("visual.", "vision_model.", "visual_projection.")
_ACCEPTED = (
  f"{', '.join(_CLIPS)}, a folder or hub id with {huggingface.CONFIG} and one of"
  f" {', '.join(huggingface.WEIGHTS)}, or with one of"
  f" {', '.join(openai_layout.WEIGHTS)}, or a"
  f" .safetensors, .pt or .bin file of OpenAI's or open_clip's, or {PREFIX}MODEL/TAG"
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A frozen CLIP, as loaded."""

  name: str  # source of the files, which prompt files record
  config: ClipConfig  # sizes of each tower, under HuggingFace's names
  # Parameters as HuggingFace FlaxCLIP's tree, float32, on the host. A ResNet has the
  # tree of `clip.resnet` in it. Towers of `clip.image_towers` have their tensors by
  # name.
  params: Params
  tokenizer: Tokenizer  # the checkpoint's own tokenizer
  # Per-channel mean of the preprocessing, for pixels in [0, 1].
  mean: tuple[float, ...] = _CLIP_MEAN
  # Per-channel standard deviation of the preprocessing, for pixels in [0, 1].
  std: tuple[float, ...] = _CLIP_STD
  squash: bool = False  # whether images are resized to a square, whatever their shape
  bilinear: bool = False  # whether images are resized bilinearly, not bicubically

  @property
  def text_width(self) -> int:
    """D, width of the text tower and of a context vector."""
    return self.config.text_config.hidden_size

  @property
  def positions(self) -> int:
    """Number of positions of the text tower, SOS and EOT included (77 in OpenAI's
    CLIPs)."""
    return self.config.text_config.max_position_embeddings

  @property
  def image_size(self) -> int:
    """Height and width of the vision tower's images, pixels."""
    return self.config.vision_config.image_size

  @property
  def logit_scale(self) -> float:
    """exp(logit_scale), the factor on cosine similarities (100 in OpenAI's CLIPs)."""
    return float(np.exp(self.params["logit_scale"]))

  @property
  def sos_embedding(self) -> jax.Array:
    """Embeddings of what precedes every prompt: the start token [1,D], or nothing [0,D]
    if the tokenizer has no start token."""
    bos = self.tokenizer.bos_token_id
    ids = np.array([] if bos is None else [bos], np.int32)
    return jnp.asarray(token_embeddings(self.params, ids))

  @property
  def text_params(self) -> Params:
    """Parameters of the text tower."""
    return {key: self.params[key] for key in ("text_model", "text_projection")}

  @property
  def vision_params(self) -> Params:
    """Parameters of the vision tower: `vision_model` and `visual_projection`."""
    return {key: self.params[key] for key in self.params if key.startswith("vis")}

  @property
  def settings(self) -> str:
    """JSON of all settings that features depend on, beside parameters and tokens."""
    settings: list[Any] = [self.config.settings(), self.mean, self.std]
    if self.squash or self.bilinear:  # the usual resizing is not in the JSON
      settings += [self.squash, self.bilinear]
    return json.dumps(settings)


def load_clip(
  source: str, activation: str = "auto", *, image_tower: bool = True
) -> Clip:
  """Loads a CLIP from a folder, a file or the hub, and logs what it assumes.

  Args:
    source: `world`, or a folder, a file or a hub id that `docs/how-to/weights.md`
      describes. Prompt files record the source as the CLIP's name.
    activation: `quick_gelu`, `gelu`, or `auto`: the checkpoint's activation, or else
      the usual one of its publisher.
    image_tower: whether the image tower is read too. If not, the CLIP may have any kind
      of image tower, and features of images must come from elsewhere.

  Raises:
    ClipError: the source has no weights, the hub does not answer, the architecture is
      not supported, a file is damaged, or the tokenizer is missing.
  """
  clip = read_clip(source, activation, image_tower)
  notes = clip.config.notes
  level = logging.INFO
  if any("ASSUMED" in note for note in notes):
    level = logging.WARNING
  facts = "; ".join([clip.config.describe(), *notes])
  log.log(level, "%s: %s", source, facts)
  return clip


class _Preprocessing(NamedTuple):
  """How images become the image tower's input; fields as in `Clip`."""

  mean: tuple[float, ...]
  std: tuple[float, ...]
  squash: bool
  bilinear: bool


def _preprocessing(files: Files, stored: PreprocessingSettings) -> _Preprocessing:
  """Reads the preprocessing of a checkpoint; missing settings default to OpenAI's.

  Args:
    files: files of the CLIP.
    stored: where the checkpoint stores the settings.

  Raises:
    ClipError: a setting has a value that no preprocessing has.
  """
  content = files.json(stored.file_name)
  try:
    settings = {} if content is None else content
    if stored.item:
      settings = settings.get(stored.item, {})
    mean = tuple(map(float, settings.get(f"{stored.prefix}mean", _CLIP_MEAN)))
    std = tuple(map(float, settings.get(f"{stored.prefix}std", _CLIP_STD)))
    if len(mean) != 3 or len(std) != 3:
      raise ValueError("mean and std take three channels")
    return _Preprocessing(
      mean,
      std,
      squash=_resizing(settings, "resize_mode") == "squash",
      bilinear=_resizing(settings, "interpolation") == "bilinear",
    )
  except (ValueError, TypeError, AttributeError) as error:
    raise ClipError(
      f"{files.source}: {stored.file_name}: not a preprocessor's settings ({error})"
    ) from error


def _resizing(settings: Any, item: str) -> str:
  """Returns an item of _RESIZES or its default; ValueError if its value is unknown."""
  accepted = _RESIZES[item]
  value = settings.get(item, accepted[0])
  if value not in accepted:
    raise ValueError(f"{item}: got {value!r}, expected {' or '.join(accepted)}")
  return value


def read_clip(
  source: str,
  activation: str = "auto",
  image_tower: bool = True,
  with_params: bool = True,
) -> Clip:
  """Loads a CLIP like `load_clip`, but logs nothing, and can skip the parameters.

  Checks names and shapes of the weights against the CLIP's sizes. Downloads the files
  of a CLIP on the hub. Validation skips the parameters.

  Args:
    source: name of the CLIP, see `load_clip`.
    activation: `quick_gelu`, `gelu` or `auto`.
    image_tower: whether the image tower is read too.
    with_params: whether the weights are read; otherwise only their names and shapes.

  Raises:
    ClipError: see `load_clip`.
  """
  named = named_clip(source)
  known_files = {}
  if named.settings:
    known_files = {CONFIG: named.settings}
  files = Files(named.source, _CLIPS.get(named.source), known_files)
  weights_file = files.file or _weights_file(files, named, source, image_tower)

  with open_weights(weights_file) as weights:
    module = _layout_module(files, named, weights_file.name, weights)
    config = module.read_config(files, weights, activation, image_tower)
    if not image_tower:
      config = dataclasses.replace(config, vision_config=NoImageTower())
      weights = _without_image_tower(weights)
    try:
      shapes = parameter_shapes(config, weights.shapes)
    except (ValueError, TypeError, ZeroDivisionError) as error:
      raise ClipError(
        f"{weights.path}: no tower has such sizes ({one_line(error)})"
      ) from error
    layout = module.layout(weights, config)
    check_weights(weights.shapes, shapes, layout, weights.path)

    # Read the small files first: a mistake in them shows before the weights are read.
    tokenizer = module.read_tokenizer(files, config)
    preprocessing = _preprocessing(files, module.PREPROCESSING)
    params = {}
    if with_params:
      params = read_params(weights, shapes, layout)
  return Clip(source, config, params, tokenizer, *preprocessing)


@runtime_checkable
class _LayoutModule(Protocol):
  """What `huggingface` and `openai_layout` both have."""

  PREPROCESSING: PreprocessingSettings

  def read_config(
    self, files: Files, weights: Weights, activation: str, image_tower: bool
  ) -> ClipConfig:
    """Returns the sizes of the towers."""

  def layout(self, weights: Weights, config: ClipConfig) -> Layout:
    """Returns where the file stores each parameter."""

  def read_tokenizer(self, files: Files, config: ClipConfig) -> Tokenizer:
    """Returns the tokenizer."""


def _layout_module(
  files: Files, named: NamedClip, file_name: str, weights: Weights
) -> _LayoutModule:
  """Returns the module that reads the layout of the weights.

  Args:
    files: files of the CLIP.
    named: what open_clip's tables say of the CLIP.
    file_name: name of the file of weights.
    weights: the open file of weights.
  """
  if named.settings:
    return openai_layout
  # In a folder or repository the file's name decides. A source that is itself a file
  # may have any name, so the names of its tensors decide.
  is_in_folder = files.file is None
  if is_in_folder and file_name in huggingface.WEIGHTS:
    return huggingface
  if any(name.startswith("text_model.") for name in weights.shapes):
    return huggingface
  return openai_layout


def _without_image_tower(weights: Weights) -> Weights:
  """Leaves the image tower's tensors out of a file's shapes."""
  shapes = {}
  for name, shape in weights.shapes.items():
    if not name.startswith(_IMAGE_TOWERS):
      shapes[name] = shape
  return weights._replace(shapes=shapes)


def _weights_file(
  files: Files, named: NamedClip, source: str, image_tower: bool
) -> Path:
  """Finds the file of weights of a folder or repository.

  Weights in HuggingFace's layout come first if its config.json is there. The
  configuration is checked before the weights are downloaded.

  Args:
    files: files of the CLIP.
    named: what open_clip's tables say of the CLIP.
    source: name of the CLIP, for messages.
    image_tower: whether the image tower is read too.

  Raises:
    ClipError: no weights are there, or no tower here implements the configuration.
  """
  names: tuple[str, ...]
  if named.settings:
    # The tables hold the configuration, so the hub is not asked for it.
    openai_layout.check_config(files, source, image_tower)
    usual_name = openai_layout.WEIGHTS[0]
    names = (named.file or usual_name, *openai_layout.WEIGHTS)
  elif files.has(huggingface.CONFIG):
    names = huggingface.WEIGHTS + openai_layout.WEIGHTS
  else:
    names = openai_layout.WEIGHTS

  for name in names:
    if not files.has(name):
      continue
    if not named.settings:
      module: Any = huggingface if name in huggingface.WEIGHTS else openai_layout
      module.check_config(files, source, image_tower)
    file = files.find(name)
    if file is not None:
      return file
    break  # the file is listed, but its download failed: report that, try no other
  because = f" ({files.trouble})" if files.trouble else ""
  raise ClipError(
    f"{files.source}: no CLIP's weights there{because}; accepted: {_ACCEPTED}"
  )
