"""Regions in torch: crops of masks under CLIP, and class features of texts."""

from collections.abc import Sequence
import os

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPModel

from pomp_jax.clip import load_clip
from tests.support.clips import pooled


def crop_feature(
  model: CLIPModel, clip: str | os.PathLike, image: np.ndarray, mask: np.ndarray
) -> torch.Tensor:
  """ZSSeg's crop of a mask [H,W] (not empty) out of an image [H,W,3], and its unit feature [E].

  Args:
    model: the CLIP in torch.
    clip: its folder.
    image: uint8.
    mask: bool.
  """
  settings = load_clip(str(clip))
  mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
  pixels = torch.tensor(image[box].transpose(2, 0, 1)) / 255
  pixels = torch.where(torch.tensor(mask[box]), pixels, mean)
  size = (settings.image_size,) * 2
  crop = functional.interpolate(pixels[None].float(), size, mode="bicubic")
  with torch.no_grad():
    return functional.normalize(pooled(model.get_image_features((crop - mean) / std)))[0]


def text_features(model: CLIPModel, clip: str | os.PathLike, texts: Sequence[str]) -> torch.Tensor:
  """Unit features [N,E] of whole texts."""
  tokens = load_clip(str(clip)).tokenizer(list(texts), return_tensors="pt", padding=True)
  with torch.no_grad():
    return functional.normalize(pooled(model.get_text_features(**tokens)))
