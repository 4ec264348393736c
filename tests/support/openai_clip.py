"""Small CLIPs of open_clip with random weights, and their published file formats."""

import json
import pathlib

import numpy as np
import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
import torch

from tests.support.clips import MERGES, randomise

TEXTS = [
  "a photo of the cat.",
  "dog",
  "star of the star",
  "naïve, 12 o'clock!",
  "x y z",
]

VIT = {"layers": 2, "width": 128, "patch_size": 8, "image_size": 32}
RESNET = {"layers": (1, 2, 1, 1), "width": 8, "image_size": 64}
_TEXT = {"context_length": 32, "width": 64, "heads": 1, "layers": 2}
_TEXT["vocab_size"] = 2 * 256 + len(MERGES) + 2


def small_open_clip(
  vision: dict, quick_gelu: bool = True, **text: int
) -> open_clip.CLIP:
  """Builds a model in evaluation mode without weights of exactly 0 or 1."""
  towers = CLIPVisionCfg(**vision), CLIPTextCfg(**_TEXT | text)
  return randomise(open_clip.CLIP(24, *towers, quick_gelu=quick_gelu)).eval()


def write_merges(folder: pathlib.Path) -> None:
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")


def write_settings(
  folder: pathlib.Path, vision: dict, quick_gelu: bool, **changes
) -> None:
  """Writes `open_clip_config.json`; `changes` by part__item."""
  model = {"embed_dim": 24, "vision_cfg": dict(vision), "text_cfg": dict(_TEXT)}
  if quick_gelu:
    model["quick_gelu"] = True
  for place, value in changes.items():
    part, _, item = place.partition("__")
    (model if part == "model_cfg" else model[part])[item] = value
  settings = {
    "model_cfg": model,
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3},
  }
  (folder / "open_clip_config.json").write_text(json.dumps(settings))


def torch_image_features(
  model: open_clip.CLIP, images: np.ndarray, mean, std
) -> np.ndarray:
  """Encodes uint8 images, channels last, normalised by mean and std."""
  pixels = (images / 255 - np.array(mean)) / np.array(std)
  with torch.no_grad():
    return model.encode_image(
      torch.tensor(pixels.transpose(0, 3, 1, 2)).float()
    ).numpy()


def torch_text_features(model: open_clip.CLIP, rows: list[list[int]]) -> np.ndarray:
  """Encodes token ids with SOS and EOT, padded with zeros as open_clip does."""
  padded = np.zeros((len(rows), _TEXT["context_length"]), np.int64)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  with torch.no_grad():
    return model.encode_text(torch.tensor(padded)).numpy()
