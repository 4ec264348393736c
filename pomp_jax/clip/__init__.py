"""The frozen backbone: load a CLIP, tokenize, and turn prompts and images into features."""

from pomp_jax.clip.load import Clip, ClipError, load_clip
from pomp_jax.clip.text import TextTower, encode_texts, text_tower
from pomp_jax.clip.tokens import TokenizeError, tokenize
from pomp_jax.clip.vision import image_tower

__all__ = [
  "Clip",
  "ClipError",
  "TextTower",
  "TokenizeError",
  "encode_texts",
  "image_tower",
  "load_clip",
  "text_tower",
  "tokenize",
]
