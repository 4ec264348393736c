"""Regions and windows per second at ViT-B/16's sizes with random weights, beside torch's.

  python -m pomp_jax.benchmark.regions [--seconds=60] [--regions=8]

One process, interleaved. Masked crops of one image: made alone, and with CLIP's features. Windows:
dense features of the recipe `naclip`, beside CLIP's own forward pass in torch.
"""

import argparse
from collections.abc import Callable
import importlib

import jax
import numpy as np

from pomp_jax.benchmark.images import print_rates
from pomp_jax.clip import RECIPES, Clip, dense_tower
from pomp_jax.clip.synthetic import synthetic_clip
from pomp_jax.data.synthetic import natural_image
from pomp_jax.encoder import Encoder
from pomp_jax.regions.boxes import boxes_of_masks
from pomp_jax.regions.crops import CropSettings
from pomp_jax.regions.features import RegionEncoder

_MEAN = 127.0


def main() -> None:
  """Prints the rates."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=60, help="seconds of each measurement")
  parser.add_argument("--regions", type=int, default=8, help="regions, and windows, at a time")
  arguments = parser.parse_args()
  clip = synthetic_clip("openai/clip-vit-base-patch16", {})
  image = np.array(natural_image(0, 480, 640))
  masks = _masks(arguments.regions, *image.shape[:2])
  windows = np.stack([image[:224, 32 * n : 32 * n + 224] for n in range(arguments.regions)])
  print(f"{clip.name}, image of 640 x 480, {arguments.regions} at a time; medians, per second")
  ours, torch = _ours(clip, image, masks, windows), _torch(clip, image, masks, windows)
  for name, program in ours.items():
    print_rates(name, {"ours": program, "torch": torch[name]}, arguments.seconds)


def _masks(n_regions: int, height: int, width: int) -> np.ndarray:
  """Ellipses of 60 to 400 pixels, [R,H,W]."""
  rng = np.random.default_rng(0)
  y, x = np.ogrid[:height, :width]
  masks = []
  for _ in range(n_regions):
    a, b = rng.uniform(30, 200, 2)
    masks.append(
      ((y - rng.uniform(0, height)) / a) ** 2 + ((x - rng.uniform(0, width)) / b) ** 2 < 1
    )
  return np.stack(masks)


def _ours(clip: Clip, image, masks, windows) -> dict[str, Callable[[], int]]:
  encoder, boxes = Encoder(clip), boxes_of_masks(masks)
  settings = CropSettings(clip.image_size, (_MEAN,) * 3)
  regions = RegionEncoder(encoder, settings, chunk=len(masks), n_images=1)
  tower = jax.jit(dense_tower(clip, RECIPES["naclip"]))

  def crops():
    jax.block_until_ready([crops for _, crops in regions.crops([image], [boxes], [masks])])
    return len(masks)

  def features():
    regions.features([image], [boxes], [masks])
    return len(masks)

  def dense():
    jax.block_until_ready(tower(encoder.vision_params, windows))
    return len(windows)

  return {"crops": crops, "crops, features": features, "windows": dense}


def _torch(clip: Clip, image, masks, windows) -> dict[str, Callable[[], int]]:
  """ZSSeg's crops one by one and CLIP in a batch; the same sizes with other random weights."""
  torch = importlib.import_module("torch")
  config = clip.config.vision_config
  model = importlib.import_module("transformers").CLIPVisionModelWithProjection(config).eval()
  pixels = torch.as_tensor(image).permute(2, 0, 1).float()
  inside = torch.as_tensor(masks).float()
  parts = torch.as_tensor(windows).permute(0, 3, 1, 2).float()
  boxes = boxes_of_masks(masks).astype(int).tolist()

  def cut():
    found = []
    for mask, (x0, y0, x1, y1) in zip(inside, boxes, strict=True):
      part = mask[y0:y1, x0:x1]
      filled = pixels[:, y0:y1, x0:x1] * part + _MEAN * (1 - part)
      size = (clip.image_size, clip.image_size)
      found.append(torch.nn.functional.interpolate(filled[None], size=size, mode="bicubic"))
    return torch.cat(found)

  def encode(images):
    with torch.no_grad():
      return model(images / 127 - 1).image_embeds

  def crops():
    return len(cut())

  return {
    "crops": crops,
    "crops, features": lambda: len(encode(cut())),
    "windows": lambda: len(encode(parts)),
  }


if __name__ == "__main__":
  main()
