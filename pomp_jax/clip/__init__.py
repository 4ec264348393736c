"""The frozen backbone: load a CLIP, tokenize, and turn prompts and images into features.

Names are imported when first asked for: `clip.packed` alone runs where transformers is missing.
"""

import importlib
from typing import Any

_MODULE_OF = {
  "Clip": "load",
  "ClipError": "architecture",
  "TextTower": "text",
  "TokenizeError": "tokens",
  "image_tower": "vision",
  "load_clip": "load",
  "text_tower": "text",
  "tokenize": "tokens",
}


def __getattr__(name: str) -> Any:
  if name not in _MODULE_OF:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
