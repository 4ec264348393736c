"""Regions in torch: unit features of crops of masks, and of texts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPModel

from pomp_jax.clip.load import Clip
from tests.support.clips import pooled


def crop_feature(
  encode: Callable[[torch.Tensor], torch.Tensor], clip: Clip, image: np.ndarray, mask: np.ndarray
) -> torch.Tensor:
  """ZSSeg's crop of a mask [H,W] (not empty) out of an image [H,W,3], and its unit feature [E].

  Args:
    encode: image tower in torch.
    clip: the CLIP, for its size and normalisation of images.
    image: uint8.
    mask: bool.
  """
  mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
  pixels = torch.tensor(image[box].transpose(2, 0, 1)) / 255
  pixels = torch.where(torch.tensor(mask[box]), pixels, mean)
  size = (clip.image_size,) * 2
  crop = functional.interpolate(pixels[None].float(), size, mode="bicubic")
  with torch.no_grad():
    return functional.normalize(encode((crop - mean) / std))[0]


def image_tower(model: CLIPModel) -> Callable[[torch.Tensor], torch.Tensor]:
  """The image tower of a CLIP of transformers."""
  return lambda pixels: pooled(model.get_image_features(pixels))


def text_features(model: CLIPModel, clip: Clip, texts: Sequence[str]) -> torch.Tensor:
  """Unit features [N,E] of whole texts."""
  tokens = clip.tokenizer(list(texts), return_tensors="pt", padding=True)
  with torch.no_grad():
    return functional.normalize(pooled(model.get_text_features(**tokens)))
