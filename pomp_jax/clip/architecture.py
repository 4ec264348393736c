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

from pomp_jax.clip.families import ImageTowerConfig, NoImageTower, tower_shapes
from pomp_jax.clip.packed import ACTIVATIONS
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

# What the towers read of HuggingFace's configurations; the rest differs between its
# versions.
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
  """A CLIP that cannot be loaded or does not fit; the message is one line."""


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """A CLIP's sizes; `notes` are assumed or overruled settings with their reasons,
  for the log."""

  text_config: CLIPTextConfig
  vision_config: Any  # a CLIPVisionConfig, ResNetConfig or ImageTowerConfig
  projection_dim: int
  notes: tuple[str, ...] = ()

  @property
  def bidirectional(self) -> bool:
    """Whether every position of the text tower attends to all, and the last is the
    feature."""
    return getattr(self.text_config, "bidirectional", False)

  @property
  def vit(self) -> CLIPVisionConfig | None:
    """OpenAI's ViT, which learned tokens and dense features need; None for other
    image towers."""
    return (
      self.vision_config if isinstance(self.vision_config, CLIPVisionConfig) else None
    )

  def describe(self) -> str:
    """Summarises the architecture, such as "ViT/16 at 224, 12 layers of 768,
    quick_gelu"."""
    text, vision = self.text_config, self.vision_config
    if isinstance(vision, NoImageTower):
      image = "no image tower"
    elif isinstance(vision, ResNetConfig):
      stages = "-".join(map(str, vision.layers))
      image = f"ResNet {stages} of width {vision.width} at {vision.image_size}"
    elif isinstance(vision, ImageTowerConfig):
      image = f"{type(vision).__name__.removesuffix('Config')} at {vision.image_size}"
    else:
      image = (
        f"ViT/{vision.patch_size} at {vision.image_size}, {vision.num_hidden_layers} layers of"
        f" {vision.hidden_size}, {vision.num_attention_heads} heads"
      )
    cost = f", bidirectional: {text.max_position_embeddings} tokens a class"
    return (
      f"{image}; text {text.num_hidden_layers} layers of {text.hidden_size},"
      f" {text.num_attention_heads} heads, {text.hidden_act}{cost if self.bidirectional else ''}"
    )

  def text_settings(self) -> str:
    """What the text tower reads, as JSON; the same under any release of
    transformers."""
    text = self.text_config
    settings = {field: getattr(text, field) for field in _TEXT_FIELDS}
    settings |= {"bidirectional": True} if self.bidirectional else {}
    return json.dumps(settings, sort_keys=True)

  def settings(self) -> str:
    """What both towers read, as JSON: a part of the cache keys of features."""
    config = self.vision_config
    if isinstance(config, ResNetConfig):
      vision = dataclasses.asdict(config)
    elif isinstance(config, ImageTowerConfig):
      vision = {"tower": repr(config)}
    else:
      vision = {field: getattr(config, field) for field in _VISION_FIELDS}
    return json.dumps(
      [self.text_settings(), vision, self.projection_dim], sort_keys=True
    )


def parameter_shapes(
  config: ClipConfig, found: Shapes = types.MappingProxyType({})
) -> dict[str, Any]:
  """The shape of each parameter, as a tree, without computing any.

  `found` are the tensors of a checkpoint, of which some may be there or not.
  ValueError, TypeError, ZeroDivisionError: sizes that make no tower.
  """
  text, vision, embedding = (
    config.text_config,
    config.vision_config,
    config.projection_dim,
  )
  width = text.hidden_size
  tree: dict[str, Any] = {
    "logit_scale": (),
    "text_model": {
      "embeddings": {
        "token_embedding": {"embedding": (text.vocab_size, width)},
        "position_embedding": {"embedding": (text.max_position_embeddings, width)},
      },
      "encoder": {"layers": _layer_shapes(text)},
      "final_layer_norm": _norm(width),
    },
    "text_projection": {"kernel": (width, embedding)},
  }
  if "text.text_projection.bias" in found:
    tree["text_projection"]["bias"] = (embedding,)
  if "logit_bias" in found:
    tree["logit_bias"] = ()
  if isinstance(vision, NoImageTower):
    return tree
  if isinstance(vision, ImageTowerConfig):
    return tree | {"vision_model": tower_shapes(vision, found, embedding)}
  if isinstance(vision, ResNetConfig):  # whose projection is within
    images = jax.ShapeDtypeStruct(
      (1, vision.image_size, vision.image_size, 3), jnp.float32
    )
    module = jax.eval_shape(ModifiedResNet(vision).init, jax.random.key(0), images)
    return tree | {"vision_model": jax.tree.map(jnp.shape, module["params"])}
  width, patch = vision.hidden_size, vision.patch_size
  tree["vision_model"] = {
    "embeddings": {
      "class_embedding": (width,),
      "patch_embedding": {"kernel": (patch, patch, 3, width)},
      "position_embedding": {
        "embedding": (1 + (vision.image_size // patch) ** 2, width)
      },
    },
    "pre_layrnorm": _norm(width),
    "encoder": {"layers": _layer_shapes(vision)},
    "post_layernorm": _norm(width),
  }
  return tree | {"visual_projection": {"kernel": (width, embedding)}}


def _layer_shapes(config: CLIPTextConfig | CLIPVisionConfig) -> dict[str, Any]:
  """The layers of either tower's transformer, by their number."""
  width, n_heads, inner = (
    config.hidden_size,
    config.num_attention_heads,
    config.intermediate_size,
  )
  if config.hidden_act not in ACTIVATIONS:
    raise ValueError(
      f"hidden_act: got {config.hidden_act!r}, expected {', '.join(ACTIVATIONS)}"
    )
  if width % n_heads:
    raise ValueError(
      f"num_attention_heads: got {n_heads}, expected a divisor of {width}"
    )
  dense = lambda n_in, n_out: {"kernel": (n_in, n_out), "bias": (n_out,)}
  projections = ("q_proj", "k_proj", "v_proj", "out_proj")
  layer = {
    "layer_norm1": _norm(width),
    "self_attn": {name: dense(width, width) for name in projections},
    "layer_norm2": _norm(width),
    "mlp": {"fc1": dense(width, inner), "fc2": dense(inner, width)},
  }
  return {str(i): layer for i in range(config.num_hidden_layers)}


def _norm(width: int) -> dict[str, Any]:
  return {"scale": (width,), "bias": (width,)}
