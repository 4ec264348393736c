"""Loading a frozen CLIP: its configuration, parameters and tokenizer, whoever published it."""

from collections.abc import Mapping
import dataclasses
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPTokenizerFast, FlaxCLIPModel

from pomp_jax.clip.architecture import ClipConfig, huggingface_config
from pomp_jax.clip.bpe import read_bpe
from pomp_jax.clip.checkpoint import Checkpoint, open_checkpoint
from pomp_jax.clip.errors import ClipError
from pomp_jax.clip.layouts import HUGGINGFACE, read_params
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import Tokenizer

log = logging.getLogger(__name__)

Params = dict[str, Any]

# The channel statistics of OpenAI's CLIP (its preprocessing code, and every
# preprocessor_config.json on the hub), for checkpoints that do not bring their own.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER_FILES = (
  "tokenizer.json",
  "vocab.json",
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A frozen CLIP, as loaded.

  Attributes:
    name: what it was loaded from (recorded in prompt files).
    config: its sizes, those of each tower under HuggingFace's names.
    params: HuggingFace FlaxCLIP's parameter tree, float32, on the host; a ResNet's image tower is
      `clip.resnet`'s.
    tokenizer: the checkpoint's own tokenizer.
    mean: per-channel mean of the preprocessing, for pixels in [0, 1].
    std: per-channel standard deviation, likewise.
  """

  name: str
  config: ClipConfig
  params: Params
  tokenizer: Tokenizer
  mean: tuple[float, ...] = _CLIP_MEAN
  std: tuple[float, ...] = _CLIP_STD

  @property
  def text_width(self) -> int:
    """D, the width of the text tower and so of a context vector."""
    return self.config.text_config.hidden_size

  @property
  def positions(self) -> int:
    """How many tokens the text tower takes, SOS and EOT included (77 for OpenAI's)."""
    return self.config.text_config.max_position_embeddings

  @property
  def image_size(self) -> int:
    """Height and width of the images that the vision tower takes, pixels."""
    return self.config.vision_config.image_size

  @property
  def logit_scale(self) -> float:
    """exp(logit_scale): what cosine similarities are multiplied by (100 for OpenAI's)."""
    return float(np.exp(self.params["logit_scale"]))

  @property
  def sos_embedding(self) -> jax.Array:
    """The embedding of the start token, which opens every prompt [D]."""
    bos = np.array(self.tokenizer.bos_token_id, np.int32)
    return jnp.asarray(token_embeddings(self.params, bos))

  @property
  def text_params(self) -> Params:
    """The part of the parameters that the text tower reads."""
    return {key: self.params[key] for key in ("text_model", "text_projection")}

  @property
  def vision_params(self) -> Params:
    """The part of the parameters that the vision tower reads."""
    return {key: self.params[key] for key in self.params if key.startswith("vis")}

  @property
  def settings(self) -> str:
    """All that features depend on beside parameters and tokens, as JSON."""
    return json.dumps([self.config.settings(), self.mean, self.std])


def read_clip_config(source: str) -> ClipConfig:
  """The configuration alone: what validation needs before anything heavy starts.

  Names and shapes of the weights are held against it, and the tokenizer is read; a hub's files are
  downloaded.

  Args:
    source: see `load_clip`.

  Raises:
    ClipError: nothing there, or not a CLIP.
  """
  with open_checkpoint(source) as checkpoint:
    _tokenizer(checkpoint)
    return checkpoint.config


def load_clip(source: str, name: str | None = None, activation: str = "auto") -> Clip:
  """Loads a CLIP from a folder, a file or the hub; `docs/weights.md` lists the formats.

  What had to be assumed goes to the log.

  Args:
    source: `world`, the embedded world's CLIP; a folder or hub id in HuggingFace's or open_clip's
      layout; or a file of weights in OpenAI's layout, which open_clip's is too, with its tokenizer
      beside it.
    name: what to call it in prompt files; the source if not given.
    activation: of the MLPs: `quick_gelu`, `gelu`, or `auto`: as the checkpoint says, or as those
      who publish such checkpoints have it.

  Returns:
    The CLIP, its parameters float32 NumPy arrays on the host.

  Raises:
    ClipError: nothing there, a hub that does not answer, another architecture, damage, or no
      tokenizer.
  """
  with open_checkpoint(source, activation) as checkpoint:
    tokenizer = _tokenizer(checkpoint)
    mean, std = _channel_statistics(checkpoint)
    if checkpoint.weights is None:
      params = _flax_params(checkpoint)
    else:
      params = read_params(checkpoint.weights, checkpoint.shapes, checkpoint.layout)
  config = checkpoint.config
  level = logging.WARNING if any("ASSUMED" in note for note in config.notes) else logging.INFO
  log.log(level, "%s: %s", source, "; ".join([config.describe(), *config.notes]))
  return Clip(name or source, config, params, tokenizer, mean, std)


def _flax_params(checkpoint: Checkpoint) -> Params:
  """HuggingFace reads its own file."""
  source = checkpoint.place.source
  try:
    _, params = FlaxCLIPModel.from_pretrained(
      str(checkpoint.file.parent), config=huggingface_config(checkpoint.config), _do_init=False
    )
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _unreadable(source, checkpoint.file.name, error) from error
  if jax.tree.map(jnp.shape, dict(params)) != checkpoint.shapes:
    raise ClipError(f"{source}: the weights do not have the shapes that its config.json declares")
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(params))


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
  """HuggingFace's where the weights are in its layout and bring one; else by the merges."""
  place = checkpoint.place
  own = place.find_first(_TOKENIZER_FILES[:2])
  if checkpoint.layout is not HUGGINGFACE or own is None:
    return read_bpe(place.find, checkpoint.config.text_config.vocab_size, place.source)
  # From the hub, each file comes when it is asked for.
  for name in _TOKENIZER_FILES:
    place.find(name)
  try:
    return CLIPTokenizerFast.from_pretrained(str(own.parent))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise _unreadable(place.source, own.name, error) from error


def _channel_statistics(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Of open_clip_config.json's `preprocess_cfg`, or of HuggingFace's preprocessor."""
  if checkpoint.settings is not None:
    settings = checkpoint.settings.get("preprocess_cfg", {})
    return _statistics(settings, "mean", "std", f"{checkpoint.file}: preprocess_cfg")
  file = checkpoint.place.find("preprocessor_config.json")
  if file is None or checkpoint.layout is not HUGGINGFACE:
    return _CLIP_MEAN, _CLIP_STD
  try:
    settings = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise ClipError(f"{file}: not a preprocessor's settings ({error})") from error
  return _statistics(settings, "image_mean", "image_std", str(file))


def _statistics(settings: Any, mean_item: str, std_item: str, where: str):
  try:
    if not isinstance(settings, Mapping):
      raise TypeError("no JSON object")
    mean = tuple(map(float, settings.get(mean_item, _CLIP_MEAN)))
    std = tuple(map(float, settings.get(std_item, _CLIP_STD)))
    if len(mean) != 3 or len(std) != 3:
      raise ValueError(f"{mean_item} and {std_item} take three channels")
  except (ValueError, TypeError) as error:
    raise ClipError(f"{where}: not a preprocessor's settings ({error})") from error
  return mean, std


def _unreadable(source: str, part: str, error: Exception) -> ClipError:
  reason = " ".join(str(error).split())
  return ClipError(f"{source}: {part} can't be read ({reason[:300]})")
