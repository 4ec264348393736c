"""The architecture of a CLIP: the sizes of its towers, and the shapes of their
parameters."""

from collections.abc import Mapping
import dataclasses
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.image_towers import ImageTowerConfig, NoImageTower, tower_shapes
from pomp_jax.clip.packed import ACTIVATIONS
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

# Fields of HuggingFace's configurations that the towers read. The other fields differ
# between versions of transformers.
_TRANSFORMER_FIELDS = (
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "hidden_act",
  "layer_norm_eps",
)
_TEXT_FIELDS = (
  *_TRANSFORMER_FIELDS,
  "vocab_size",
  "max_position_embeddings",
  "eos_token_id",
)
_VISION_FIELDS = (*_TRANSFORMER_FIELDS, "image_size", "patch_size")


class ClipError(InputError, ValueError):
  """A CLIP cannot be loaded, or does not fit; the message is one line."""


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """A CLIP's sizes; `notes` tell the log which settings were assumed or overruled, and
  why."""

  text_config: CLIPTextConfig
  vision_config: Any  # a CLIPVisionConfig, ResNetConfig or ImageTowerConfig
  projection_dim: int
  notes: tuple[str, ...] = ()

  @property
  def bidirectional(self) -> bool:
    """Whether every position of the text tower attends to all positions; the feature is
    then read at the last one."""
    return getattr(self.text_config, "bidirectional", False)

  @property
  def vit(self) -> CLIPVisionConfig | None:
    """Sizes of OpenAI's ViT; None for another image tower. Learned tokens and dense
    features need a ViT."""
    if isinstance(self.vision_config, CLIPVisionConfig):
      return self.vision_config
    return None

  def describe(self) -> str:
    """Summarises both towers in one line for the log.

    An example is "ViT/16 at 224, 12 layers of 768, 12 heads; text 12 layers of 512, 8
    heads, quick_gelu".
    """
    text = self.text_config
    summary = (
      f"{_image_tower_summary(self.vision_config)};"
      f" text {text.num_hidden_layers} layers of {text.hidden_size},"
      f" {text.num_attention_heads} heads, {text.hidden_act}"
    )
    if self.bidirectional:
      # A bidirectional tower computes every position for each class, not only the
      # class's own tokens.
      summary += f", bidirectional: {text.max_position_embeddings} tokens a class"
    return summary

  def text_settings(self) -> str:
    """Returns the settings that the text tower reads, as JSON that is equal under all
    releases of transformers."""
    settings = {field: getattr(self.text_config, field) for field in _TEXT_FIELDS}
    if self.bidirectional:
      settings["bidirectional"] = True
    return json.dumps(settings, sort_keys=True)

  def settings(self) -> str:
    """Returns the settings that both towers read, as JSON for the cache keys of
    features."""
    vision = self.vision_config
    if isinstance(vision, ResNetConfig):
      vision_settings = dataclasses.asdict(vision)
    elif isinstance(vision, ImageTowerConfig):
      # `repr` includes the name of the class: two families may have equal fields.
      vision_settings = {"tower": repr(vision)}
    else:
      vision_settings = {field: getattr(vision, field) for field in _VISION_FIELDS}
    settings = [self.text_settings(), vision_settings, self.projection_dim]
    return json.dumps(settings, sort_keys=True)


def _image_tower_summary(config: Any) -> str:
  """Describes the image tower, such as "ViT/16 at 224, 12 layers of 768, 12 heads"."""
  if isinstance(config, NoImageTower):
    return "no image tower"
  if isinstance(config, ResNetConfig):
    stages = "-".join(str(n_blocks) for n_blocks in config.layers)
    return f"ResNet {stages} of width {config.width} at {config.image_size}"
  if isinstance(config, ImageTowerConfig):
    family = type(config).__name__.removesuffix("Config")
    return f"{family} at {config.image_size}"
  return (
    f"ViT/{config.patch_size} at {config.image_size},"
    f" {config.num_hidden_layers} layers of {config.hidden_size},"
    f" {config.num_attention_heads} heads"
  )


def parameter_shapes(
  config: ClipConfig, stored: Shapes = types.MappingProxyType({})
) -> dict[str, Any]:
  """Returns the shape of each parameter, as FlaxCLIP's tree, without any weights.

  Args:
    config: sizes of both towers.
    stored: shapes of a checkpoint's tensors, by name. These names decide whether the
      tree has the optional parameters: biases, and parameters of the families' image
      towers.

  Raises:
    ValueError, TypeError, ZeroDivisionError: no tower has such sizes.
  """
  text = config.text_config
  embedding = config.projection_dim
  text_projection: dict[str, Any] = {"kernel": (text.hidden_size, embedding)}
  tree: dict[str, Any] = {
    "logit_scale": (),
    "text_model": _text_shapes(text),
    "text_projection": text_projection,
  }
  if "text.text_projection.bias" in stored:
    text_projection["bias"] = (embedding,)
  if "logit_bias" in stored:
    tree["logit_bias"] = ()

  vision = config.vision_config
  if isinstance(vision, NoImageTower):
    return tree
  if isinstance(vision, ImageTowerConfig):
    tree["vision_model"] = tower_shapes(vision, stored, embedding)
  elif isinstance(vision, ResNetConfig):
    # A ResNet's projection is a part of its attention pooling.
    tree["vision_model"] = _resnet_shapes(vision)
  else:
    tree["vision_model"] = _vit_shapes(vision)
    tree["visual_projection"] = {"kernel": (vision.hidden_size, embedding)}
  return tree


def _text_shapes(config: CLIPTextConfig) -> dict[str, Any]:
  """Shapes of the text tower's parameters, except the projection."""
  width = config.hidden_size
  token_table = (config.vocab_size, width)
  position_table = (config.max_position_embeddings, width)
  return {
    "embeddings": {
      "token_embedding": {"embedding": token_table},
      "position_embedding": {"embedding": position_table},
    },
    "encoder": {"layers": _layer_shapes(config)},
    "final_layer_norm": _norm(width),
  }


def _vit_shapes(config: CLIPVisionConfig) -> dict[str, Any]:
  """Shapes of a ViT's parameters, except the projection."""
  width = config.hidden_size
  patch = config.patch_size
  n_patches = (config.image_size // patch) ** 2
  position_table = (1 + n_patches, width)  # the first row is the class token's
  return {
    "embeddings": {
      "class_embedding": (width,),
      "patch_embedding": {"kernel": (patch, patch, 3, width)},
      "position_embedding": {"embedding": position_table},
    },
    "pre_layrnorm": _norm(width),  # FlaxCLIP's spelling
    "encoder": {"layers": _layer_shapes(config)},
    "post_layernorm": _norm(width),
  }


def _resnet_shapes(config: ResNetConfig) -> dict[str, Any]:
  """Shapes of a ResNet's parameters, by tracing the initialisation of its module."""
  size = config.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  initialise = ModifiedResNet(config).init
  variables = jax.eval_shape(initialise, jax.random.key(0), images)
  return jax.tree.map(jnp.shape, variables["params"])


def _layer_shapes(config: CLIPTextConfig | CLIPVisionConfig) -> dict[str, Any]:
  """Shapes of the parameters of either tower's transformer, by number of the layer.

  Raises:
    ValueError: the towers don't have the activation, or the number of heads does not
      divide the width.
  """
  width = config.hidden_size
  n_heads = config.num_attention_heads
  inner_width = config.intermediate_size
  if config.hidden_act not in ACTIVATIONS:
    accepted = ", ".join(ACTIVATIONS)
    raise ValueError(f"hidden_act: got {config.hidden_act!r}, expected {accepted}")
  if width % n_heads:
    raise ValueError(
      f"num_attention_heads: got {n_heads}, expected a divisor of {width}"
    )
  layer = {
    "layer_norm1": _norm(width),
    "self_attn": {
      "q_proj": _dense(width, width),
      "k_proj": _dense(width, width),
      "v_proj": _dense(width, width),
      "out_proj": _dense(width, width),
    },
    "layer_norm2": _norm(width),
    "mlp": {
      "fc1": _dense(width, inner_width),
      "fc2": _dense(inner_width, width),
    },
  }
  return {str(i): layer for i in range(config.num_hidden_layers)}


def _dense(n_in: int, n_out: int) -> dict[str, Any]:
  return {"kernel": (n_in, n_out), "bias": (n_out,)}


def _norm(width: int) -> dict[str, Any]:
  return {"scale": (width,), "bias": (width,)}
