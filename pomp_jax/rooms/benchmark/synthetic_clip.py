"""Builds CLIPs of published architectures with random weights, to measure costs."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any
import zlib

import jax
from jaxtyping import Int32
import numpy as np
from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.image_towers import NoImageTower
from pomp_jax.clip.load import Clip
from pomp_jax.clip.open_clip import PREFIX, named_clip, tables
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import SYNTHETIC_CLIP
from pomp_jax.data.class_lists import SYNSETS, read_table

# Ids of CLIP's own vocabulary.
_BOS = 49406
_EOT = 49407
# open_clip's names of the models, by hub id or by the usual name of the file.
_MODELS = {
  "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
  "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
  "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
  "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
  "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "ViT-H-14",
  "RN50.safetensors": "RN50-quickgelu",
  "RN101.safetensors": "RN101-quickgelu",
}
SYNTHETIC_CLIPS = (*_MODELS, f"{PREFIX}MODEL/TAG")


def is_synthetic(name: str) -> bool:
  """Whether a CLIP of this name can have random weights.

  The CLIPs of SYNTHETIC_CLIPS and open_clip's ViTs can. CLIPs with other image towers
  are measured with their own weights.
  """
  if not name.startswith(PREFIX):
    return name in _MODELS
  model, _, tag = name.removeprefix(PREFIX).partition("/")
  row = tables().get(model)
  if not row or "width" not in row["model_cfg"]["text_cfg"]:
    return False  # unknown model, or a text tower of the library transformers
  tower = open_clips_config(row["model_cfg"]).vision_config
  return isinstance(tower, CLIPVisionConfig) and tag in row["tags"]


class SyntheticTokenizer:
  """Estimates a text's number of tokens from its letters; the ids mean nothing."""

  bos_token_id = _BOS

  def __init__(self, token_counts: Mapping[str, int]):
    """Takes the known numbers of tokens, EOT included, by text."""
    self._counts = token_counts

  def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict:
    """Returns {"input_ids": rows} with SOS and EOT, as HuggingFace's tokenizers."""
    return {"input_ids": [[_BOS, *self._ids(text), _EOT] for text in texts]}

  def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
    return [f"token {i}" for i in ids]

  def _ids(self, text: str) -> list[int]:
    # In ImageNet-21K's names a word of up to seven letters is one or two tokens.
    n_tokens = 1 + sum(1 + len(word) // 7 for word in text.split())
    if known := self._counts.get(text):
      n_tokens = known - 1  # without EOT
    # Take ids from a checksum, so that equal texts have equal ids on every machine.
    return [zlib.crc32(f"{i} {text}".encode()) % (_BOS - 1) for i in range(n_tokens)]


def open_clips_config(settings: Mapping[str, Any]) -> ClipConfig:
  """Builds the architecture of open_clip's `model_cfg`.

  Image towers of timm and SigLIP become `NoImageTower`.
  """
  vision = settings["vision_cfg"]
  embedding = settings["embed_dim"]
  activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
  text_config = _text_config(settings["text_cfg"], embedding, activation)
  if "timm_model_name" in vision or vision.get("no_ln_pre"):
    return ClipConfig(text_config, NoImageTower(), embedding)
  if isinstance(vision["layers"], list):
    resnet = ResNetConfig(
      tuple(vision["layers"]),
      vision["width"],
      vision["width"] // 2,
      vision["image_size"],
      embedding,
    )
    return ClipConfig(text_config, resnet, embedding)
  width = vision["width"]
  vit = CLIPVisionConfig(
    hidden_size=width,
    intermediate_size=int(width * vision.get("mlp_ratio", 4)),
    num_hidden_layers=vision["layers"],
    num_attention_heads=width // vision.get("head_width", 64),
    hidden_act=activation,
    image_size=vision["image_size"],
    patch_size=vision["patch_size"],
  )
  return ClipConfig(text_config, vit, embedding)


def _text_config(
  text: Mapping[str, Any], embedding: int, activation: str
) -> CLIPTextConfig:
  """Converts open_clip's `text_cfg` to HuggingFace's config."""
  width = text["width"]
  return CLIPTextConfig(
    hidden_size=width,
    intermediate_size=int(width * text.get("mlp_ratio", 4)),
    num_hidden_layers=text["layers"],
    num_attention_heads=text["heads"],
    hidden_act=activation,
    vocab_size=text["vocab_size"],
    max_position_embeddings=text["context_length"],
    bos_token_id=_BOS,
    eos_token_id=_EOT,
    projection_dim=embedding,
    bidirectional=bool(text.get("no_causal_mask")),
  )


def synthetic_config(name: str) -> ClipConfig:
  """Returns the architecture of a name that `is_synthetic` accepts."""
  if name in _MODELS:
    return open_clips_config(tables()[_MODELS[name]]["model_cfg"])
  settings = named_clip(name).settings or {}
  return open_clips_config(settings["model_cfg"])


def config_and_tokenizer(model: str) -> tuple[ClipConfig, SyntheticTokenizer]:
  """Returns sizes and tokenizer of `clip.model=synthetic:NAME`.

  NAME is a name that `is_synthetic` accepts.
  """
  # CLIP's own tokenizer is not available, but its counts for ImageNet-21K's names are.
  words_N = read_table(SYNSETS)[1]
  counts = {}
  for words, n_tokens in zip(words_N, token_lengths(), strict=True):
    first_word = words.split(", ")[0]
    counts[f"{first_word}."] = int(n_tokens)
  config = synthetic_config(model.removeprefix(SYNTHETIC_CLIP))
  return config, SyntheticTokenizer(counts)


@functools.cache
def token_lengths() -> Int32[np.ndarray, " N"]:
  """Token counts of ImageNet-21K's class names, each with a full stop and EOT."""
  return np.array(read_table(SYNSETS)[2], np.int32)


def open_clip(model: str) -> Clip:
  """Builds the CLIP of `config_and_tokenizer` with random weights.

  The name of the CLIP keeps the prefix `synthetic:`, so that no prompt or figure of
  random weights is mistaken for one of the real model.
  """
  config, tokenizer = config_and_tokenizer(model)
  params = random_params(parameter_shapes(config), seed=0)
  params["logit_scale"] = np.float32(np.log(100))
  return Clip(model, config, params, tokenizer)


def random_params(shapes: dict[str, Any], seed: int) -> dict[str, Any]:
  """Draws float32 parameters of FlaxCLIP's tree, given the tree of their shapes."""
  rng = np.random.default_rng(seed)

  def draw(path: jax.tree_util.KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    kind = path[-1].key
    if kind in ("bias", "mean"):
      return np.zeros(shape, np.float32)
    if kind in ("scale", "var"):
      return np.ones(shape, np.float32)
    deviation = 0.02  # of CLIP's own embeddings
    if kind != "embedding" and len(shape) > 1:
      deviation = np.prod(shape[:-1]) ** -0.5  # preserves the variance of the inputs
    # asarray: for the shape () NumPy's product is a scalar, not an array.
    return np.asarray(np.float32(deviation) * rng.standard_normal(shape, np.float32))

  return jax.tree_util.tree_map_with_path(
    draw, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
