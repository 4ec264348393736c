"""Loading a frozen CLIP: its configuration, HuggingFace FlaxCLIP parameters and tokenizer."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPConfig, CLIPTokenizerFast, FlaxCLIPModel

from pomp_jax.clip.text import token_embeddings

Params = dict[str, Any]

# The channel statistics of OpenAI's CLIP (its preprocessing code, and every
# preprocessor_config.json on the hub), for checkpoints that do not bring their own.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipError(ValueError):
  """A CLIP that cannot be loaded or does not fit; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Clip:
  """A frozen CLIP, as loaded.

  Attributes:
    name: what it was loaded from (recorded in prompt files).
    config: HuggingFace's CLIPConfig.
    params: HuggingFace FlaxCLIP's parameter tree, float32, on the host.
    tokenizer: the checkpoint's own tokenizer.
    mean: per-channel mean of the preprocessing, for pixels in [0, 1].
    std: per-channel standard deviation, likewise.
  """

  name: str
  config: CLIPConfig
  params: Params
  tokenizer: CLIPTokenizerFast
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
    return {key: self.params[key] for key in ("vision_model", "visual_projection")}


def read_clip_config(source: str) -> CLIPConfig:
  """The configuration alone: what validation needs before anything heavy starts.

  Args:
    source: a folder in HuggingFace's layout, or a hub id.

  Raises:
    ClipError: nothing there, or not a CLIP.
  """
  try:
    config = CLIPConfig.from_pretrained(source)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _unreadable(source, error) from error
  if config.model_type != "clip":
    raise ClipError(f"{source}: model_type is {config.model_type!r}, a CLIP ('clip') is needed")
  return config


def load_clip(source: str, name: str | None = None) -> Clip:
  """Loads a CLIP from a folder or the hub.

  Args:
    source: a folder in HuggingFace's layout with `flax_model.msgpack`, or a hub id.
    name: what to call it in prompt files; the source if not given.

  Returns:
    The CLIP, its parameters float32 NumPy arrays on the host.

  Raises:
    ClipError: nothing there, no Flax weights, or weights of another shape.
  """
  config = read_clip_config(source)
  try:
    model, params = FlaxCLIPModel.from_pretrained(source, config=config, _do_init=False)
    tokenizer = CLIPTokenizerFast.from_pretrained(source)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _unreadable(source, error) from error
  expected = jax.tree.map(jnp.shape, model.params_shape_tree)
  found = jax.tree.map(jnp.shape, dict(params))
  if expected != found:
    raise ClipError(f"{source}: the weights do not have the shapes that its config.json declares")
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(params))
  mean, std = _channel_statistics(source)
  return Clip(name or source, config, params, tokenizer, mean, std)


def _channel_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
  file = pathlib.Path(source) / "preprocessor_config.json"
  if not file.is_file():
    return _CLIP_MEAN, _CLIP_STD
  try:
    settings = json.loads(file.read_text())
    mean = tuple(map(float, settings.get("image_mean", _CLIP_MEAN)))
    std = tuple(map(float, settings.get("image_std", _CLIP_STD)))
    if len(mean) != 3 or len(std) != 3:
      raise ValueError("image_mean and image_std take three channels")
  except (ValueError, TypeError, AttributeError) as error:
    raise ClipError(f"{file}: not a preprocessor's settings ({error})") from error
  return mean, std


def _unreadable(source: str, error: Exception) -> ClipError:
  reason = " ".join(str(error).split())
  return ClipError(
    f"{source}: no CLIP could be read there; a folder in HuggingFace's layout with"
    f" flax_model.msgpack or a hub id is needed ({reason[:300]})"
  )
