"""A CLIP of a published architecture with random weights, for measurements of cost."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any
import zlib

import jax
from jaxtyping import Int32
import numpy as np
from transformers import CLIPTextConfig, CLIPVisionConfig

from pomp_jax.clip.architecture import ClipConfig, parameter_shapes
from pomp_jax.clip.families import NoImageTower
from pomp_jax.clip.load import Clip
from pomp_jax.clip.open_clip import PREFIX, named_clip, tables
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import SYNTHETIC_CLIP
from pomp_jax.data.class_lists import SYNSETS, read_table

_BOS, _EOT = 49406, 49407
# By hub id, or by the usual name of the file: open_clip's name of the model.
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
  """Whether there is an architecture of this name: one of SYNTHETIC_CLIPS, or a ViT of
  open_clip's.

  Other image towers are measured with their weights.
  """
  model, _, tag = name.removeprefix(PREFIX).partition("/")
  row = tables().get(model) if name.startswith(PREFIX) else None
  if row and "width" in row["model_cfg"]["text_cfg"]:  # not those of transformers
    is_vit = isinstance(
      open_clips_config(row["model_cfg"]).vision_config, CLIPVisionConfig
    )
    return is_vit and tag in row["tags"]
  return name in _MODELS


class SyntheticTokenizer:
  """About the right number of tokens, with meaningless ids; estimated from a text's
  letters."""

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
    count = self._counts.get(text)
    # In ImageNet-21K's names a word of up to seven letters is one or two tokens.
    count = count - 1 if count else 1 + sum(1 + len(word) // 7 for word in text.split())
    return [zlib.crc32(f"{i} {text}".encode()) % (_BOS - 1) for i in range(count)]


def open_clips_config(settings: Mapping[str, Any]) -> ClipConfig:
  """The architecture of open_clip's `model_cfg`, without image towers of timm and
  SigLIP."""
  vision, text, embedding = (
    settings[key] for key in ("vision_cfg", "text_cfg", "embed_dim")
  )
  activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"

  def transformer(
    width: int, layers: int, heads: int, ratio: Any = 4
  ) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": int(width * ratio)}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "hidden_act": activation}

  sizes = transformer(
    text["width"], text["layers"], text["heads"], text.get("mlp_ratio", 4)
  )
  sizes |= {
    "vocab_size": text["vocab_size"],
    "max_position_embeddings": text["context_length"],
  }
  sizes |= {"bos_token_id": _BOS, "eos_token_id": _EOT, "projection_dim": embedding}
  own = CLIPTextConfig(**sizes, bidirectional=bool(text.get("no_causal_mask")))
  if "timm_model_name" in vision or vision.get("no_ln_pre"):
    return ClipConfig(own, NoImageTower(), embedding)
  width, size, layers = vision["width"], vision["image_size"], vision["layers"]
  if isinstance(layers, list):
    resnet = ResNetConfig(tuple(layers), width, width // 2, size, embedding)
    return ClipConfig(own, resnet, embedding)
  heads = width // vision.get("head_width", 64)
  sizes = transformer(width, layers, heads, vision.get("mlp_ratio", 4))
  tower = CLIPVisionConfig(**sizes, image_size=size, patch_size=vision["patch_size"])
  return ClipConfig(own, tower, embedding)


def synthetic_config(name: str) -> ClipConfig:
  """Returns the architecture of a name that `is_synthetic`."""
  row = (
    named_clip(name).settings if name.startswith(PREFIX) else tables()[_MODELS[name]]
  )
  return open_clips_config((row or {})["model_cfg"])


def config_and_tokenizer(model: str) -> tuple[ClipConfig, SyntheticTokenizer]:
  """Sizes and tokenizer of `clip.model=synthetic:NAME`, with a NAME that
  `is_synthetic`."""
  # Of the names of ImageNet-21K under CLIP's own tokenizer, which is not available.
  words_N = read_table(SYNSETS)[1]
  counts = {
    f"{w.split(', ')[0]}.": int(n)
    for w, n in zip(words_N, token_lengths(), strict=True)
  }
  return synthetic_config(model.removeprefix(SYNTHETIC_CLIP)), SyntheticTokenizer(
    counts
  )


@functools.cache
def token_lengths() -> Int32[np.ndarray, " N"]:
  """Tokens of the names of ImageNet-21K's classes with a full stop and EOT."""
  return np.array(read_table(SYNSETS)[2], np.int32)


def open_clip(model: str) -> Clip:
  """Builds the CLIP of `config_and_tokenizer` with random weights.

  Its name is the whole one, so that no prompt or figure of random weights passes for
  the model's.
  """
  config, tokenizer = config_and_tokenizer(model)
  params = random_params(parameter_shapes(config), seed=0)
  params["logit_scale"] = np.float32(np.log(100))
  return Clip(model, config, params, tokenizer)


def random_params(shapes: dict[str, Any], seed: int) -> dict[str, Any]:
  """Draws parameters of FlaxCLIP's tree, float32 on the host, by the tree of their
  shapes."""
  rng = np.random.default_rng(seed)

  def draw(path, shape) -> np.ndarray:
    kind = path[-1].key
    if kind in ("bias", "mean", "scale", "var"):
      return np.full(shape, kind in ("scale", "var"), np.float32)
    # Kernels preserve the variance of their inputs; embeddings have CLIP's deviation.
    flat = kind == "embedding" or len(shape) < 2
    spread = np.float32(0.02 if flat else np.prod(shape[:-1]) ** -0.5)
    return spread * rng.standard_normal(shape, np.float32)

  return jax.tree_util.tree_map_with_path(
    draw, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
