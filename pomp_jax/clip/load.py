"""Loading a frozen CLIP: its configuration, parameters and tokenizer, in any accepted format."""

from collections.abc import Mapping
import dataclasses
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPTokenizerFast, FlaxCLIPModel

from pomp_jax.clip.architecture import ClipConfig, ClipError, huggingface_config
from pomp_jax.clip.layouts import HUGGINGFACE, read_params
from pomp_jax.clip.pretrained import Checkpoint, open_checkpoint
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import Tokenizer, read_bpe

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
    name: source it was loaded from (recorded in prompt files).
    config: sizes of each tower, under HuggingFace's names.
    params: HuggingFace FlaxCLIP's parameter tree, float32, on the host; that of `clip.resnet` for
      a ResNet image tower.
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
    """The settings that features depend on beside parameters and tokens, as JSON."""
    return json.dumps([self.config.settings(), self.mean, self.std])


def read_clip_config(source: str) -> ClipConfig:
  """Reads the configuration alone, for validation before anything heavy starts.

  Names and shapes of the weights are checked against it, and the tokenizer is read. Files of a hub
  are downloaded.

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

  Assumptions are logged.

  Args:
    source: `world` for the embedded world's CLIP; a folder or hub id in the layout of HuggingFace
      or open_clip; or a file of weights in the layout of OpenAI and open_clip, with its tokenizer
      beside it.
    name: name in prompt files; the source if None.
    activation: activation of the MLPs: `quick_gelu`, `gelu`, or `auto` for that of the checkpoint,
      or the usual one of its publisher.

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
  """Reads flax_model.msgpack by HuggingFace's own code."""
  source = checkpoint.place.source
  try:
    _, params = FlaxCLIPModel.from_pretrained(
      str(checkpoint.file.parent), config=huggingface_config(checkpoint.config), _do_init=False
    )
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _unreadable(source, checkpoint.file.name, error) from error
  if jax.tree.map(jnp.shape, dict(params)) != checkpoint.shapes:
    raise ClipError(f"{source}: {checkpoint.file.name}: shapes other than those of its config.json")
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(params))


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
  """HuggingFace's tokenizer beside weights in its layout, otherwise one from the merges."""
  place = checkpoint.place
  own = place.find_first(_TOKENIZER_FILES[:2])
  if checkpoint.layout is not HUGGINGFACE or own is None:
    return read_bpe(place.find, checkpoint.config.text_config.vocab_size, place.source)
  # From the hub, each file is downloaded when it is looked up.
  for name in _TOKENIZER_FILES:
    place.find(name)
  try:
    return CLIPTokenizerFast.from_pretrained(str(own.parent))
  except Exception as error:  # the tokenizers' library raises bare Exceptions
    raise _unreadable(place.source, own.name, error) from error


def _channel_statistics(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation by open_clip_config.json, or by HuggingFace's preprocessor."""
  if checkpoint.settings is not None:
    settings: Any = checkpoint.settings.get("preprocess_cfg", {})
    names, where = ("mean", "std"), f"{checkpoint.file}: preprocess_cfg"
  else:
    file = checkpoint.place.find("preprocessor_config.json")
    if file is None or checkpoint.layout is not HUGGINGFACE:
      return _CLIP_MEAN, _CLIP_STD
    try:
      settings = json.loads(file.read_text())
    except (OSError, ValueError) as error:
      raise ClipError(f"{file}: not a preprocessor's settings ({error})") from error
    names, where = ("image_mean", "image_std"), str(file)
  try:
    if not isinstance(settings, Mapping):
      raise TypeError("no JSON object")
    mean, std = (
      tuple(map(float, settings.get(name, default)))
      for name, default in zip(names, (_CLIP_MEAN, _CLIP_STD), strict=True)
    )
    if len(mean) != 3 or len(std) != 3:
      raise ValueError(f"{' and '.join(names)} take three channels")
  except (ValueError, TypeError) as error:
    raise ClipError(f"{where}: not a preprocessor's settings ({error})") from error
  return mean, std


def _unreadable(source: str, part: str, error: Exception) -> ClipError:
  reason = " ".join(str(error).split())
  return ClipError(f"{source}: {part} can't be read ({reason[:300]})")
