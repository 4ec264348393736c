"""Loading a frozen CLIP, with its tokenizer, from a folder, a file or the hub."""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip import huggingface, openai
from pomp_jax.clip.architecture import ClipConfig, ClipError, parameter_shapes
from pomp_jax.clip.families import NoImageTower
from pomp_jax.clip.open_clip import CONFIG, PREFIX, NamedClip, named_clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import Tokenizer
from pomp_jax.clip.weights import Files, check_weights, open_weights, read_params
from pomp_jax.files.paths import Path
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
_RESIZES = {
  "resize_mode": ("shortest", "squash"),
  "interpolation": ("bicubic", "bilinear"),
}
# What the names of an image tower's tensors begin with.
_IMAGE_TOWERS = ("visual.", "vision_model.", "visual_projection.")
_ACCEPTED = (
  f"{', '.join(_CLIPS)}, a folder or hub id with {huggingface.CONFIG} and one of"
  f" {', '.join(huggingface.WEIGHTS)}, or with one of {', '.join(openai.WEIGHTS)}, or a"
  f" .safetensors, .pt or .bin file of OpenAI's or open_clip's, or {PREFIX}MODEL/TAG"
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A frozen CLIP, as loaded."""

  name: str  # source it was loaded from (recorded in prompt files)
  config: ClipConfig  # sizes of each tower, under HuggingFace's names
  # HuggingFace FlaxCLIP's parameter tree, float32, on the host; of a ResNet that of
  # `clip.resnet`.
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
    """Number of tokens that the text tower takes, SOS and EOT included (77 for
    OpenAI's)."""
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
    """Embeddings of the tokens before every prompt: the start token [1,D], or none
    [0,D]."""
    bos = self.tokenizer.bos_token_id
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


def load_clip(
  source: str, activation: str = "auto", *, image_tower: bool = True
) -> Clip:
  """Loads a CLIP from a folder, a file or the hub, and logs what it assumes.

  `source`, its name in prompt files, is `world`, or a folder, a file or a hub id that
  `docs/how-to/weights.md` describes. The activation is `quick_gelu`, `gelu`, or `auto`:
  the checkpoint's, or its publisher's usual one. Without `image_tower` the text tower
  alone is read, beside an image tower of any kind: features of images come from
  elsewhere. ClipError: nothing there, no answer of a hub, another architecture, damage,
  no tokenizer.

  Args:
    source: name of the CLIP: `world`, a folder, a file or a hub id.
    activation: `quick_gelu`, `gelu` or `auto`.
    image_tower: whether the image tower is read too.
  """
  clip = read_clip(source, activation, image_tower)
  notes = clip.config.notes
  level = logging.WARNING if any("ASSUMED" in note for note in notes) else logging.INFO
  log.log(level, "%s: %s", source, "; ".join([clip.config.describe(), *notes]))
  return clip


def _preprocessing(
  files: Files, name: str, settings_of: str, prefix: str
) -> tuple[tuple[float, ...], tuple[float, ...], bool, bool]:
  """Fields of `Clip`, by a family's STATISTICS; OpenAI's where the checkpoint has no
  own ones."""
  settings = files.json(name)
  try:
    settings = {} if settings is None else settings
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
    where = f"{files.source}: {name}"
    raise ClipError(f"{where}: not a preprocessor's settings ({error})") from error
  return mean, std, found[0] == "squash", found[1] == "bilinear"


def read_clip(
  source: str,
  activation: str = "auto",
  image_tower: bool = True,
  with_params: bool = True,
) -> Clip:
  """As `load_clip`, which logs; for validation also without the parameters.

  Names and shapes of the weights are checked against the sizes. Files of a hub are
  downloaded.

  Args:
    source: name of the CLIP, see `load_clip`.
    activation: `quick_gelu`, `gelu` or `auto`.
    image_tower: whether the image tower is read too.
    with_params: whether the weights are read; otherwise only their names and shapes.
  """
  named = named_clip(source)
  known = {CONFIG: named.settings} if named.settings else {}
  files = Files(named.source, _CLIPS.get(named.source), known)
  file = files.file or _found(files, named, source, image_tower)
  with open_weights(file) as weights:
    # For a single file the names of its tensors decide.
    is_huggingfaces = not files.file and file.name in huggingface.WEIGHTS
    is_huggingfaces |= any(name.startswith("text_model.") for name in weights.shapes)
    family: Any = huggingface if is_huggingfaces and not named.settings else openai
    config = family.read_config(files, weights, activation, image_tower)
    if not image_tower:
      config = dataclasses.replace(config, vision_config=NoImageTower())
      is_text = lambda name: not name.startswith(_IMAGE_TOWERS)
      kept = {name: shape for name, shape in weights.shapes.items() if is_text(name)}
      weights = weights._replace(shapes=kept)
    try:
      shapes = parameter_shapes(config, weights.shapes)
    except (ValueError, TypeError, ZeroDivisionError) as error:
      raise ClipError(
        f"{weights.path}: no tower has such sizes ({one_line(error)})"
      ) from error
    layout = family.layout(weights, config)
    check_weights(weights.shapes, shapes, layout, weights.path)
    tokenizer = family.read_tokenizer(files, config)
    preprocessing = _preprocessing(files, *family.STATISTICS)
    params = read_params(weights, shapes, layout) if with_params else {}
  return Clip(source, config, params, tokenizer, *preprocessing)


def _found(files: Files, named: NamedClip, source: str, image_tower: bool) -> Path:
  """The weights of a folder or repository, HuggingFace's first if its configuration is
  there.

  ClipError: none, or by the configuration, which is read first, those of no CLIP that
  is read.
  """
  names: tuple[str, ...] = openai.WEIGHTS
  if named.settings:
    # The tables know it: the hub is not asked.
    openai.check_config(files, source, image_tower)
    names = (named.file or names[0], *names)
  elif files.has(huggingface.CONFIG):
    names = huggingface.WEIGHTS + names
  if name := next(filter(files.has, names), None):
    if not named.settings:
      family: Any = huggingface if name in huggingface.WEIGHTS else openai
      family.check_config(files, source, image_tower)
    if file := files.find(name):
      return file
  because = f" ({files.trouble})" if files.trouble else ""
  raise ClipError(
    f"{files.source}: no CLIP's weights there{because}; accepted: {_ACCEPTED}"
  )
