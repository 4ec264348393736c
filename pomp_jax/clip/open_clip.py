"""CLIPs by open_clip's names, such as `open_clip:ViT-H-14-378-quickgelu/dfn5b`.

`open_clip.json` has the tables of open_clip_torch 3.3.0 (MIT licence, see README.md in
this folder). They list each model's configuration and tags. For each tag they give the
repository on the hub, the preprocessing, and whether the weights were trained with
QuickGELU. `open_clip:MODEL/TAG:PATH` reads the files in PATH instead of the repository.
"""

from collections.abc import Mapping
import functools
import json
import pathlib
from typing import Any, NamedTuple

from pomp_jax.clip.architecture import ClipConfig, ClipError
from pomp_jax.clip.image_towers import (
  MODELS,
  TIMM_ITEMS,
  ImageTowerConfig,
  NoImageTower,
  family_of,
)
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.errors import InputError

PREFIX = "open_clip:"
HUB_PREFIX = "hf-hub:"
CONFIG = "open_clip_config.json"
_TABLES = pathlib.Path(__file__).with_name("open_clip.json")

# `_KNOWN_ITEMS` of open_clip_config.json are checked or read. `_HARMLESS_ITEMS` may
# have these values, which change nothing here or are read elsewhere. Any other item
# that is set would change what the weights compute.
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
# Items that no tower here implements, and how a user would describe such a CLIP.
_OTHER_CLIPS = {
  ("model_cfg", "multimodal_cfg"): "a CoCa, which has a decoder of captions",
  ("text_cfg", "hf_model_name"): "its text tower is the language model {}",
  ("text_cfg", "proj_type"): "its text tower has no projection",
}
_TRAINING_ITEMS = {"patch_dropout", "init_logit_scale", "init_logit_bias"}


class NamedClip(NamedTuple):
  """Where a CLIP's files are, and what open_clip's tables say of the CLIP."""

  source: str  # repository on the hub, or a path
  file: str = ""  # name of the file of weights in the source; empty: the usual one
  # content of open_clip_config.json, if the tables have it
  settings: dict[str, Any] | None = None


@functools.cache
def tables() -> dict[str, Any]:
  """Reads the tables: by model name, its `model_cfg`, and its `tags` by name."""
  return json.loads(_TABLES.read_text())


def named_clip(source: str) -> NamedClip:
  """Resolves a name of open_clip or of the hub; any other source stays as it is.

  Args:
    source: `open_clip:MODEL/TAG`, `open_clip:MODEL/TAG:PATH`, `hf-hub:ID`, a path or a
      hub id.

  Raises:
    InputError: open_clip has no such model or tag; the message lists what is accepted.
  """
  if not source.startswith(PREFIX):
    return NamedClip(source.removeprefix(HUB_PREFIX))
  name, _, path = source.removeprefix(PREFIX).partition(":")
  model, _, tag = name.partition("/")
  row = tables().get(model)
  if row is None:
    raise InputError(f"{PREFIX}MODEL/TAG with one of {', '.join(tables())}")
  if tag not in row["tags"]:
    known_tags = ", ".join(f"{model}/{known}" for known in row["tags"])
    raise InputError(f"{PREFIX}MODEL/TAG with one of {known_tags}")

  facts = row["tags"][tag]
  model_cfg = dict(row["model_cfg"])
  # The tag may say QuickGELU though the model does not. open_clip only warns of this;
  # the weights need QuickGELU.
  model_cfg["quick_gelu"] = bool(model_cfg.get("quick_gelu") or facts.get("quick_gelu"))
  settings = {"model_cfg": model_cfg, "preprocess_cfg": facts}
  if path:
    return NamedClip(path, settings=settings)
  # "OWNER/REPOSITORY", or "OWNER/REPOSITORY/FILE": `file` has no item or one.
  owner, repository, *file = facts["hub"].split("/", 2)
  return NamedClip(f"{owner}/{repository}", "".join(file), settings)


def model_settings(
  open_clip: Any, where: str, image_tower: bool = True
) -> dict[str, Any]:
  """Checks an open_clip_config.json, and returns its `model_cfg`.

  Args:
    open_clip: content of the file.
    where: name of the CLIP, for messages.
    image_tower: whether the image tower is read too. If not, only the text tower has
      to be implemented here.

  Raises:
    ClipError: the content is no model's, or no tower here implements the model.
  """
  config_file = f"{where}: {CONFIG}"
  model = _checked_model(open_clip, config_file)
  reasons = unread(model, image_tower)
  if reasons:
    why = " and ".join(reasons)
    if not unread(model, image_tower=False):
      why += "; its text tower alone is, with clip.image_tower=False"
    raise ClipError(
      f"{where}: this CLIP is not read: {why} (docs/reference/clips.md lists those that"
      " are)"
    )
  _check_positive(model, "vision_cfg", "head_width", config_file)
  _check_positive(model, "text_cfg", "heads", config_file)
  if image_tower:
    try:
      # Only for its checks, which don't depend on the width.
      family_of(model["vision_cfg"], 0)
    except ValueError as error:
      raise ClipError(f"{config_file}: vision_cfg.{error}") from error
  return dict(model)


def _checked_model(open_clip: Any, config_file: str) -> Mapping[str, Any]:
  """Returns `model_cfg`; ClipError if it or one of its two parts is not a table."""
  model = None
  if isinstance(open_clip, Mapping):
    model = open_clip.get("model_cfg")
  if not isinstance(model, Mapping):
    absent = "model_cfg"
  elif not isinstance(model.get("vision_cfg"), Mapping):
    absent = "vision_cfg"
  elif not isinstance(model.get("text_cfg"), Mapping):
    absent = "text_cfg"
  else:
    return model
  raise ClipError(
    f"{config_file}: no {absent}, expected model_cfg with vision_cfg and text_cfg"
  )


def _check_positive(
  model: Mapping[str, Any], part: str, item: str, config_file: str
) -> None:
  """Raises ClipError if an item is present, but is not an integer from 1."""
  value = model[part].get(item)
  # Compare the type: isinstance would accept True as an int.
  if value is not None and (type(value) is not int or value < 1):
    raise ClipError(
      f"{config_file}: {part}.{item}: got {value!r}, expected an integer from 1"
    )


def unread(model: Mapping[str, Any], image_tower: bool = True) -> list[str]:
  """Returns why no towers here implement a model, for a user; empty if they do.

  Args:
    model: `model_cfg` of an open_clip_config.json, with `vision_cfg` and `text_cfg`.
    image_tower: whether the image tower is read too.

  Returns:
    One reason for the whole CLIP, or at most one for each tower, the image tower's
    first.
  """
  model_reasons = _other_items("model_cfg", model)
  if model_reasons:
    return model_reasons[:1]
  text_reasons = _unread_text(model["text_cfg"])
  if not image_tower:
    return text_reasons[:1]
  image_reasons = []
  timm_name = model["vision_cfg"].get("timm_model_name")
  if timm_name is not None and timm_name not in MODELS:
    image_reasons.append(f"its image tower is timm's {timm_name}")
  image_reasons += _other_items("vision_cfg", model["vision_cfg"])
  return image_reasons[:1] + text_reasons[:1]


def _unread_text(text: Mapping[str, Any]) -> list[str]:
  """Reasons why no tower here implements a `text_cfg`, the most telling first."""
  reasons = _other_items("text_cfg", text)
  pool = text.get("pool_type", "argmax")
  if text.get("no_causal_mask"):
    if pool != "last":
      reasons.append(
        "its text tower attends to all positions, but has its feature at EOT"
      )
    return reasons
  # open_clip also calls EOT's position "eos" if a CLIP has a tokenizer of its own.
  pools: tuple[str, ...] = ("argmax",)
  if text.get("hf_tokenizer_name"):
    pools = ("eos", "argmax")
  if pool not in pools:
    reasons.append(f"text_cfg.pool_type: got {pool!r}, expected {' or '.join(pools)}")
  return reasons


def _other_items(part: str, items: Mapping[str, Any]) -> list[str]:
  """Reasons for items that would change what the weights compute, most telling first.

  Args:
    part: `model_cfg`, `vision_cfg` or `text_cfg`.
    items: items of this part.
  """
  known_items = _KNOWN_ITEMS[part] | _TRAINING_ITEMS
  in_words = []  # reasons that describe the CLIP
  by_item = []  # reasons that only name the item
  for item, value in items.items():
    is_harmless = value in _HARMLESS_ITEMS.get((part, item), ())
    if item in known_items or not value or is_harmless:
      continue
    if (part, item) in _OTHER_CLIPS:
      in_words.append(_OTHER_CLIPS[part, item].format(value))
      continue
    shown = "a table"
    if isinstance(value, str | int | float):
      shown = repr(value)
    by_item.append(f"{part}.{item}: got {shown}, expected a CLIP without it")
  return in_words + by_item


def check_agreement(config: ClipConfig, model: Mapping[str, Any], where: str) -> None:
  """Compares open_clip_config.json with the shapes of the weights.

  Args:
    config: sizes that the shapes of the weights give.
    model: `model_cfg` of open_clip_config.json.
    where: name of the CLIP, for messages.

  Raises:
    ClipError: the file contradicts the weights.
  """
  text = config.text_config
  text_sizes = {
    "width": text.hidden_size,
    "layers": text.num_hidden_layers,
    "context_length": text.max_position_embeddings,
    "vocab_size": text.vocab_size,
  }
  vision_sizes = _vision_sizes(config.vision_config)
  _check_items("model_cfg", model, {"embed_dim": config.projection_dim}, where)
  _check_items("text_cfg", model.get("text_cfg", {}), text_sizes, where)
  _check_items("vision_cfg", model.get("vision_cfg", {}), vision_sizes, where)


def _vision_sizes(vision: Any) -> dict[str, Any]:
  """Sizes of an image tower, under the names that open_clip's `vision_cfg` has."""
  if isinstance(vision, NoImageTower):
    return {}
  sizes: dict[str, Any] = {"image_size": vision.image_size}
  if isinstance(vision, ResNetConfig):
    sizes["width"] = vision.width
    sizes["layers"] = list(vision.layers)
  elif not isinstance(vision, ImageTowerConfig):  # a family's tensors tell
    sizes["width"] = vision.hidden_size
    sizes["layers"] = vision.num_hidden_layers
    sizes["patch_size"] = vision.patch_size
  return sizes


def _check_items(
  part: str, settings: Mapping[str, Any], sizes: Mapping[str, Any], where: str
) -> None:
  """Raises ClipError for the first item of a part that contradicts a size.

  Args:
    part: name of the part, for messages.
    settings: items of open_clip_config.json, which may lack some.
    sizes: values that the weights give to the items.
    where: name of the CLIP, for messages.
  """
  for item, size in sizes.items():
    value = settings.get(item, size)
    if value != size:
      raise ClipError(
        f"{where}: {CONFIG}: {part}.{item}: got {value!r}, expected {size!r} by the"
        " weights"
      )
