"""The architecture of a CLIP: its sizes, from config.json or from the shapes of the weights.

OpenAI's and open_clip's weights have one layout, whose shapes give all sizes but the number of
heads and the activation. `open_clip_config.json` beside the weights has both. Without it they are
assumed to be the usual ones of the two projects.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.clip.vit import Encoder, VisionTransformer
from pomp_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

# Tensors that only OpenAI's own state dicts have beside the weights.
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")

# Heads are 64 wide, except in open_clip's H/14, g/14, bigG/14 and e/14.
_HEAD_WIDTH = 64
_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
_WIDEST_OF_OPENAI = 1024

# Items of open_clip_config.json that are checked or read, and values that are the default here. Any
# other item that is set would change what the same weights compute.
_KNOWN_ITEMS = {
  "model_cfg": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"},
  "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
  "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_HARMLESS_ITEMS = {
  ("vision_cfg", "pool_type"): ("tok",),
  ("vision_cfg", "pos_embed_type"): ("learnable",),
  ("text_cfg", "pool_type"): ("argmax",),
  ("text_cfg", "proj_type"): ("linear",),
}
_TRAINING_ITEMS = {"patch_dropout", "init_logit_scale"}

# What the towers read of HuggingFace's configurations; the rest differs between its versions.
_TRANSFORMER_FIELDS = (
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "hidden_act",
  "layer_norm_eps",
)
_TEXT_FIELDS = (*_TRANSFORMER_FIELDS, "vocab_size", "max_position_embeddings", "eos_token_id")
_VISION_FIELDS = (*_TRANSFORMER_FIELDS, "image_size", "patch_size")


class ClipError(InputError, ValueError):
  """A CLIP that cannot be loaded or does not fit; the message is one line."""


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """A CLIP's sizes; `notes` are assumed or overruled settings with their reasons, for the log."""

  text_config: CLIPTextConfig
  vision_config: CLIPVisionConfig | ResNetConfig
  projection_dim: int
  notes: tuple[str, ...] = ()

  def describe(self) -> str:
    """Summarises the architecture, such as "ViT/16 at 224, 12 layers of 768, quick_gelu"."""
    text, vision = self.text_config, self.vision_config
    if isinstance(vision, ResNetConfig):
      stages = "-".join(map(str, vision.layers))
      image = f"ResNet {stages} of width {vision.width} at {vision.image_size}"
    else:
      image = (
        f"ViT/{vision.patch_size} at {vision.image_size}, {vision.num_hidden_layers} layers of"
        f" {vision.hidden_size}, {vision.num_attention_heads} heads"
      )
    return (
      f"{image}; text {text.num_hidden_layers} layers of {text.hidden_size},"
      f" {text.num_attention_heads} heads, {text.hidden_act}"
    )

  def text_settings(self) -> str:
    """What the text tower reads, as JSON; the same under any release of transformers."""
    text = self.text_config
    return json.dumps({field: getattr(text, field) for field in _TEXT_FIELDS}, sort_keys=True)

  def settings(self) -> str:
    """What both towers read, as JSON: a part of the cache keys of features."""
    config = self.vision_config
    if isinstance(config, ResNetConfig):
      vision = dataclasses.asdict(config)
    else:
      vision = {field: getattr(config, field) for field in _VISION_FIELDS}
    return json.dumps([self.text_settings(), vision, self.projection_dim], sort_keys=True)


def config_from_huggingface(config: CLIPConfig, activation: str) -> ClipConfig:
  """Reads a config.json, with another activation if one is requested."""
  notes: tuple[str, ...] = ()
  text, vision = config.text_config, config.vision_config
  if activation not in ("auto", text.hidden_act):
    notes = (f"{activation} by config.clip.activation, instead of its own {text.hidden_act}",)
    text.hidden_act = vision.hidden_act = activation
  return ClipConfig(text, vision, config.projection_dim, notes)


def config_from_shapes(
  shapes: Shapes, where: str, activation: str, open_clip: Mapping[str, Any] | None = None
) -> ClipConfig:
  """Infers the sizes of weights in OpenAI's and open_clip's layout from their shapes.

  `where` is the file, for messages. The activation `auto` is that of `open_clip`, the content of
  open_clip_config.json, or else the assumed one. ClipError: no such CLIP, or one that `open_clip`
  contradicts.
  """
  model = _model_settings(open_clip, where) if open_clip is not None else {}
  vision_settings, text_settings = model.get("vision_cfg", {}), model.get("text_cfg", {})
  n_tokens, width = _shape(shapes, "token_embedding.weight", 2, where)
  n_positions, _ = _shape(shapes, "positional_embedding", 2, where)
  _, embedding = _shape(shapes, "text_projection", 2, where)
  n_heads = text_settings.get("heads") or _heads(width, _HEAD_WIDTH, "text", where)
  if width % n_heads:
    raise ClipError(
      f"{where}: open_clip_config.json: text_cfg.heads: got {n_heads}, expected a divisor of the"
      f" text tower's width {width}"
    )
  hidden_act, note = _activation(shapes, activation, model)
  notes = [note]
  text = CLIPTextConfig(
    **_transformer(shapes, "transformer", width, where),
    vocab_size=n_tokens,
    max_position_embeddings=n_positions,
    num_attention_heads=n_heads,
    hidden_act=hidden_act,
    projection_dim=embedding,
    bos_token_id=n_tokens - 2,
    eos_token_id=n_tokens - 1,
    pad_token_id=n_tokens - 1,
  )
  head_width = vision_settings.get("head_width")
  vision: CLIPVisionConfig | ResNetConfig
  if "visual.layer1.0.conv1.weight" in shapes:
    vision = _resnet(shapes, head_width or _HEAD_WIDTH, where)
  else:
    vision = _vit(shapes, head_width, hidden_act, where, notes)
  config = ClipConfig(text, vision, embedding, tuple(notes))
  _check_agreement(config, model, where)
  return config


def parameter_shapes(config: ClipConfig) -> dict[str, Any]:
  """The shape of each parameter, as a tree, without computing any.

  Raises:
    ValueError, TypeError, ZeroDivisionError: sizes that make no tower.
  """
  text, vision, embedding = config.text_config, config.vision_config, config.projection_dim
  width, size = text.hidden_size, vision.image_size
  tree: dict[str, Any] = {
    "logit_scale": (),
    "text_model": {
      "embeddings": {
        "token_embedding": {"embedding": (text.vocab_size, width)},
        "position_embedding": {"embedding": (text.max_position_embeddings, width)},
      },
      "encoder": _shapes_of(Encoder(text), (1, 1, width)),
      "final_layer_norm": {"scale": (width,), "bias": (width,)},
    },
    "text_projection": {"kernel": (width, embedding)},
  }
  if isinstance(vision, ResNetConfig):
    return tree | {"vision_model": _shapes_of(ModifiedResNet(vision), (1, size, size, 3))}
  return tree | {
    "vision_model": _shapes_of(VisionTransformer(vision), (1, size, size, 3)),
    "visual_projection": {"kernel": (vision.hidden_size, embedding)},
  }


def _shapes_of(module: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
  """Shapes of a module's parameters, for an input of that shape."""
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.tree.map(jnp.shape, jax.eval_shape(module.init, jax.random.key(0), inputs)["params"])


def _shape(shapes: Shapes, name: str, n_axes: int, where: str) -> tuple[int, ...]:
  if name not in shapes:
    some = ", ".join(sorted(shapes)[:5])
    raise ClipError(
      f"{where}: no {name}, expected a CLIP in OpenAI's or open_clip's layout (found"
      f" {len(shapes)} tensors: {some}, ..)"
    )
  shape = shapes[name]
  if len(shape) != n_axes or 0 in shape:
    raise ClipError(f"{where}: {name}: got shape {list(shape)}, expected {n_axes} axes")
  return shape


def _count(shapes: Shapes, name: str) -> int:
  """How many tensors of a name with {} for a number there are, from 0 on."""
  return next(i for i in itertools.count() if name.format(i) not in shapes)


def _transformer(shapes: Shapes, prefix: str, width: int, where: str) -> dict[str, int]:
  """Sizes of either tower's transformer, under HuggingFace's names."""
  layers = _count(shapes, prefix + ".resblocks.{}.ln_1.weight")
  mlp, _ = _shape(shapes, f"{prefix}.resblocks.0.mlp.c_fc.weight", 2, where)
  return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}


def _vit(
  shapes: Shapes, head_width: int | None, hidden_act: str, where: str, notes: list[str]
) -> CLIPVisionConfig:
  width, _, patch, _ = _shape(shapes, "visual.conv1.weight", 4, where)
  n_positions, _ = _shape(shapes, "visual.positional_embedding", 2, where)
  side = math.isqrt(n_positions - 1)
  if side**2 != n_positions - 1 or not side:
    raise ClipError(
      f"{where}: visual.positional_embedding: got {n_positions} rows, expected one for the class"
      " and a square number of patches"
    )
  if head_width is None:
    head_width = _WIDE_HEADS.get(width, _HEAD_WIDTH)
    if head_width != _HEAD_WIDTH:
      notes.append(f"image heads {head_width} wide, as in open_clip's towers of width {width}")
  return CLIPVisionConfig(
    **_transformer(shapes, "visual.transformer", width, where),
    num_attention_heads=_heads(width, head_width, "image", where),
    image_size=side * patch,
    patch_size=patch,
    hidden_act=hidden_act,
  )


def _resnet(shapes: Shapes, head_width: int, where: str) -> ResNetConfig:
  names = (f"visual.layer{stage}.{{}}.conv1.weight" for stage in range(1, 5))
  width, *_ = _shape(shapes, "visual.layer1.0.conv1.weight", 4, where)
  n_positions, channels = _shape(shapes, "visual.attnpool.positional_embedding", 2, where)
  embedding, _ = _shape(shapes, "visual.attnpool.c_proj.weight", 2, where)
  return ResNetConfig(
    layers=tuple(_count(shapes, name) for name in names),
    width=width,
    num_attention_heads=_heads(channels, head_width, "image", where),
    # The stem and three of the stages halve it: 32 pixels a position.
    image_size=32 * math.isqrt(max(n_positions - 1, 0)),
    projection_dim=embedding,
  )


def _heads(width: int, head_width: int, tower: str, where: str) -> int:
  if width % head_width:
    raise ClipError(
      f"{where}: the {tower} tower's width: got {width}, expected a multiple of its heads' width"
      f" {head_width} (open_clip_config.json beside the weights can set another)"
    )
  return width // head_width


def _activation(shapes: Shapes, activation: str, model: Mapping[str, Any]) -> tuple[str, str]:
  """The MLPs' activation: requested, from open_clip_config.json, or assumed; and a note on it."""
  if activation != "auto":
    return activation, f"{activation} by config.clip.activation"
  if model:
    found = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return found, f"{found} by open_clip_config.json"
  if any(name in shapes for name in OPENAI_FACTS):
    return "quick_gelu", "quick_gelu, as in all of OpenAI's own checkpoints"
  width = shapes.get("visual.conv1.weight", (0,))[0]
  found, why = "quick_gelu", "as in OpenAI's CLIPs; most that open_clip trained have gelu"
  if width > _WIDEST_OF_OPENAI:
    found, why = "gelu", f"OpenAI has no image tower of width {width}"
  remedy = "set config.clip.activation, or put an open_clip_config.json beside the weights"
  return found, f"{found} ASSUMED, {why}; {remedy}"


def _model_settings(open_clip: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns `model_cfg`, after checking that the towers here implement all of it."""
  where = f"{where}: open_clip_config.json"
  model = open_clip.get("model_cfg") if isinstance(open_clip, Mapping) else None
  parts: dict[str, Any] = {"model_cfg": model}
  if isinstance(model, Mapping):
    parts |= {part: model.get(part) for part in ("vision_cfg", "text_cfg")}
  for part, items in parts.items():
    if not isinstance(items, Mapping):
      raise ClipError(f"{where}: no {part}, expected model_cfg with vision_cfg and text_cfg")
    for item, value in items.items():
      known = item in _KNOWN_ITEMS[part] | _TRAINING_ITEMS or not value
      if not known and value not in _HARMLESS_ITEMS.get((part, item), ()):
        raise ClipError(f"{where}: {part}.{item}: got {value!r}, expected a CLIP without it")
  for part, item in (("vision_cfg", "head_width"), ("text_cfg", "heads")):
    value = parts[part].get(item)
    if value is not None and (type(value) is not int or value < 1):
      raise ClipError(f"{where}: {part}.{item}: got {value!r}, expected an integer from 1")
  return dict(parts["model_cfg"])


def _check_agreement(config: ClipConfig, model: Mapping[str, Any], where: str) -> None:
  """Compares open_clip_config.json with the shapes."""
  text, vision = config.text_config, config.vision_config
  sizes: dict[str, Any] = {"image_size": vision.image_size}
  if isinstance(vision, ResNetConfig):
    sizes |= {"width": vision.width, "layers": list(vision.layers)}
  else:
    sizes |= {"width": vision.hidden_size, "layers": vision.num_hidden_layers}
    sizes["patch_size"] = vision.patch_size
  text_sizes = {"width": text.hidden_size, "layers": text.num_hidden_layers}
  text_sizes |= {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size}
  found = {"model_cfg": {"embed_dim": config.projection_dim}}
  for part, items in (found | {"text_cfg": text_sizes, "vision_cfg": sizes}).items():
    for item, value in items.items():
      stored = (model if part == "model_cfg" else model.get(part, {})).get(item, value)
      if stored != value:
        file = f"{where}: open_clip_config.json"
        raise ClipError(f"{file}: {part}.{item}: got {stored!r}, expected {value!r} by the weights")
