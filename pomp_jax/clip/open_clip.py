"""CLIPs by open_clip's names, such as `open_clip:ViT-H-14-378-quickgelu/dfn5b`.

`open_clip.json` has the tables of open_clip_torch 3.3.0 (MIT licence, README.md beside
it): each model's configuration, and of each of its tags the repository on the hub, the
preprocessing, and whether the weights were trained with QuickGELU. A second colon puts
files of one's own in the repository's place: `open_clip:MODEL/TAG:PATH`.
"""

from collections.abc import Mapping
import functools
import json
import pathlib
from typing import Any, NamedTuple

from pomp_jax.clip.architecture import ClipConfig, ClipError
from pomp_jax.clip.families import (
  MODELS,
  TIMM_ITEMS,
  ImageTowerConfig,
  NoImageTower,
  family_of,
)
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.errors import InputError

PREFIX, HUB_PREFIX, CONFIG = "open_clip:", "hf-hub:", "open_clip_config.json"
_TABLES = pathlib.Path(__file__).with_name("open_clip.json")

# Items of open_clip_config.json that are checked or read, and values that are the
# default here. Any other item that is set would change what the same weights compute.
_KNOWN_ITEMS = {
  "model_cfg": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"},
  "vision_cfg": {
    "image_size",
    "layers",
    "width",
    "patch_size",
    "head_width",
    "mlp_ratio",
  }
  | TIMM_ITEMS,
  "text_cfg": {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "eos_id",
  }
  | {"no_causal_mask", "proj_bias", "hf_tokenizer_name", "tokenizer_kwargs"},
}
_HARMLESS_ITEMS = {
  ("vision_cfg", "pool_type"): ("tok", "avg"),
  ("vision_cfg", "no_ln_pre"): (True,),
  ("vision_cfg", "final_ln_after_pool"): (True,),
  ("vision_cfg", "pos_embed_type"): ("learnable",),
  ("text_cfg", "pool_type"): ("argmax", "eos", "last"),
  ("text_cfg", "proj_type"): ("linear",),
  ("text_cfg", "norm_kwargs"): ({"eps": 1e-6},),
  ("text_cfg", "act_kwargs"): ({"approximate": "tanh"},),
}
# What a user calls a CLIP with such an item.
_OTHER_CLIPS = {
  ("model_cfg", "multimodal_cfg"): "a CoCa, which has a decoder of captions",
  ("text_cfg", "hf_model_name"): "its text tower is the language model {}",
  ("text_cfg", "proj_type"): "its text tower has no projection",
}
_TRAINING_ITEMS = {"patch_dropout", "init_logit_scale", "init_logit_bias"}


class NamedClip(NamedTuple):
  """Files of a CLIP, and what the tables say of them."""

  source: str  # repository on the hub, or a path
  file: str = ""  # file of the weights in it; empty: the usual one
  # content of open_clip_config.json, if it is known
  settings: dict[str, Any] | None = None


@functools.cache
def tables() -> dict[str, Any]:
  """Models by name: `model_cfg`, and `tags` by name."""
  return json.loads(_TABLES.read_text())


def named_clip(source: str) -> NamedClip:
  """Resolves a name of open_clip or of the hub; any other source stays as it is.

  InputError: a model or a tag that open_clip does not have; the message is what is
  accepted.
  """
  if not source.startswith(PREFIX):
    return NamedClip(source.removeprefix(HUB_PREFIX))
  name, _, path = source.removeprefix(PREFIX).partition(":")
  model, _, tag = name.partition("/")
  row = tables().get(model)
  if row is None or tag not in row["tags"]:
    known = [f"{model}/{one}" for one in row["tags"]] if row else list(tables())
    raise InputError(f"{PREFIX}MODEL/TAG with one of {', '.join(known)}")
  facts = row["tags"][tag]
  owner, repository, file = (*facts["hub"].split("/", 2), "")[:3]
  # open_clip only warns where the tag says QuickGELU and the model's name does not.
  quick = bool(row["model_cfg"].get("quick_gelu") or facts.get("quick_gelu"))
  settings = {
    "model_cfg": row["model_cfg"] | {"quick_gelu": quick},
    "preprocess_cfg": facts,
  }
  return NamedClip(path or f"{owner}/{repository}", "" if path else file, settings)


def model_settings(
  open_clip: Any, where: str, image_tower: bool = True
) -> dict[str, Any]:
  """Returns `model_cfg` of an open_clip_config.json; ClipError if no tower here
  implements it.

  Without `image_tower` the text tower alone has to be one of here.

  Args:
    open_clip: content of an open_clip_config.json.
    where: name of the CLIP, for messages.
    image_tower: whether the image tower is read too.
  """
  source, where = where, f"{where}: {CONFIG}"
  model = open_clip.get("model_cfg") if isinstance(open_clip, Mapping) else None
  parts: dict[str, Any] = {"model_cfg": model}
  if isinstance(model, Mapping):
    parts |= {part: model.get(part) for part in ("vision_cfg", "text_cfg")}
  for part, items in parts.items():
    if not isinstance(items, Mapping):
      raise ClipError(
        f"{where}: no {part}, expected model_cfg with vision_cfg and text_cfg"
      )
  reasons = unread(parts["model_cfg"], image_tower)
  if reasons:
    why = " and ".join(reasons)
    if not unread(parts["model_cfg"], image_tower=False):
      why += "; its text tower alone is, with clip.image_tower=False"
    raise ClipError(
      f"{source}: this CLIP is not read: {why} (docs/reference/clips.md lists those that are)"
    )
  for part, item in (("vision_cfg", "head_width"), ("text_cfg", "heads")):
    value = parts[part].get(item)
    if value is not None and (type(value) is not int or value < 1):
      raise ClipError(
        f"{where}: {part}.{item}: got {value!r}, expected an integer from 1"
      )
  try:
    if image_tower:
      family_of(parts["vision_cfg"], 0)
  except ValueError as error:
    raise ClipError(f"{where}: vision_cfg.{error}") from error
  return dict(parts["model_cfg"])


def unread(model: Mapping[str, Any], image_tower: bool = True) -> list[str]:
  """Returns why no towers here implement a `model_cfg`, in its user's words; empty if
  they do.

  One reason for the whole CLIP, or one for each of its towers; the image tower's only
  if it is read. `model` has `vision_cfg` and `text_cfg`.
  """
  vision, text = model["vision_cfg"], model["text_cfg"]
  of_model = _other_items("model_cfg", model)
  if of_model:
    return of_model[:1]
  of_text = _other_items("text_cfg", text)
  pools = ("eos", "argmax") if text.get("hf_tokenizer_name") else ("argmax",)
  pool = text.get("pool_type", "argmax")
  if text.get("no_causal_mask") and pool != "last":
    of_text.append(
      "its text tower attends to all positions, but has its feature at EOT"
    )
  elif not text.get("no_causal_mask") and pool not in pools:
    of_text.append(f"text_cfg.pool_type: got {pool!r}, expected {' or '.join(pools)}")
  if not image_tower:
    return of_text[:1]
  of_image = []
  name = vision.get("timm_model_name")
  if name is not None and name not in MODELS:
    of_image.append(f"its image tower is timm's {name}")
  of_image += _other_items("vision_cfg", vision)
  return of_image[:1] + of_text[:1]


def _other_items(part: str, items: Mapping[str, Any]) -> list[str]:
  """Items that would change what the weights compute, those that say most first."""
  named, others = [], []
  for item, value in items.items():
    known = item in _KNOWN_ITEMS[part] | _TRAINING_ITEMS or not value
    if known or value in _HARMLESS_ITEMS.get((part, item), ()):
      continue
    if (part, item) in _OTHER_CLIPS:
      named.append(_OTHER_CLIPS[part, item].format(value))
    else:
      value = repr(value) if isinstance(value, str | int | float) else "a table"
      others.append(f"{part}.{item}: got {value}, expected a CLIP without it")
  return named + others


def check_agreement(config: ClipConfig, model: Mapping[str, Any], where: str) -> None:
  """Compares open_clip_config.json with the shapes.

  Args:
    config: sizes that the shapes of the weights give.
    model: `model_cfg` of open_clip_config.json.
    where: name of the CLIP, for messages.

  Raises:
    ClipError: they differ.
  """
  text, vision = config.text_config, config.vision_config
  of_vision: dict[str, Any] = {"image_size": vision.image_size}
  if isinstance(vision, NoImageTower):
    of_vision = {}
  elif isinstance(vision, ResNetConfig):
    of_vision |= {"width": vision.width, "layers": list(vision.layers)}
  elif not isinstance(vision, ImageTowerConfig):
    of_vision |= {"width": vision.hidden_size, "layers": vision.num_hidden_layers}
    of_vision["patch_size"] = vision.patch_size
  of_text = {"width": text.hidden_size, "layers": text.num_hidden_layers}
  of_text |= {
    "context_length": text.max_position_embeddings,
    "vocab_size": text.vocab_size,
  }
  sizes = {"model_cfg": {"embed_dim": config.projection_dim}, "text_cfg": of_text}
  for part, items in (sizes | {"vision_cfg": of_vision}).items():
    settings = model if part == "model_cfg" else model.get(part, {})
    for item, value in items.items():
      if (stored := settings.get(item, value)) != value:
        found = f"{part}.{item}: got {stored!r}, expected {value!r} by the weights"
        raise ClipError(f"{where}: {CONFIG}: {found}")
