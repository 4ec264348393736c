"""A class for every pixel under prompts side by side: IoU, label images, pictures.

Without regions the classes of patches, by a training-free recipe; with regions the classes of
crops and of a network's embeddings, added up over the regions of a pixel. All processes work on
each block of images together, and the first writes. A restart resumes after the last block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.config import Settings
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import inputs
from pomp_jax.files.paths import Path
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import waiting
from pomp_jax.report.labels import counted, prompt_labels
from pomp_jax.rooms.regions.blocks import Blocks, Comparison, check_prompts, start
from pomp_jax.rooms.regions.image_sets import PixelSet, open_pixel_set
from pomp_jax.rooms.regions.label_images import IGNORED, read_values, write_labels
from pomp_jax.rooms.regions.pixel_metrics import PixelTally
from pomp_jax.rooms.regions.plots import segmentation_sheet
from pomp_jax.rooms.regions.region_scorer import check_patches, open_label_maps
from pomp_jax.rooms.regions.region_sources import check_region_source
from pomp_jax.rooms.regions.segmentation import PixelMap

# Images between two saves.
_BLOCK = 16
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


def check(config: Settings, workdir: str) -> None:
  """Opens images, labels, regions and prompts; writes nothing. InputError: one line."""
  RunFolder(workdir).check(config.job)
  pixels = open_pixel_set(config.segment)
  check_prompts(config, pixels.classes)
  if config.regions.source == "none":
    check_patches(config.segment, inputs.clip_config(config.clip.model))
  with waiting("reading all labels"):
    pixels.check()
  check_region_source(config, "segment", pixels.images(_BLOCK))


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Segments the images that are missing, and sums up: returns what `results.json` holds.

  Processes other than the first may return an empty dict.

  Raises:
    InputError: an image or its regions can't be read; a network with another CLIP inside.
  """
  folder, pixels = RunFolder(workdir), open_pixel_set(config.segment)
  ours = Comparison(config, pixels.classes, pixels.keys, pixels.files, _VERSION)
  if (finished := folder.finished(key=ours.key)) is not None:
    return finished
  find = open_label_maps(
    config, ours.encoder, pixels.images(_BLOCK), pixels.classes, ours.matrices()
  )
  store = start(folder, config, ours.key)
  blocks = Blocks(len(pixels.keys), _BLOCK, store)
  blocks.run(find, _LabelMaps(config, folder, pixels, len(ours.prompts)), "segmentation")
  if not hosts.is_first():
    return {}
  counts_Px3xC = sum(piece.arrays["counts"] for piece in blocks.pieces())
  tallies = [PixelTally(len(pixels.classes), counts_3xC) for counts_3xC in counts_Px3xC]
  figures = {}
  for named, tally in zip(ours.prompts, tallies, strict=True):
    iou_C, accuracy_C = tally.per_class()
    per_class = {"iou": iou_C, "accuracy": accuracy_C}
    figures[named.label] = {**tally.figures(ours.groups), "per_class": per_class}
  results = {
    "recipe": config.segment.recipe if config.regions.source == "none" else None,
    "prompts": [
      {"label": named.label, "step": named.step, "labels": f"labels/{number}"}
      for number, named in enumerate(ours.prompts)
    ],
    "images": len(pixels.keys),
    "pixels": tallies[0].counts[0],
    "figures": figures,
  }
  return ours.write(folder, store, results, lambda stored: _draw(folder, pixels, stored))


class _LabelMaps:
  """Sink: pixel counts under each prompt, and label images."""

  def __init__(self, config: Settings, folder: RunFolder, pixels: PixelSet, n_prompts: int):
    self._folder, self._pixels = folder, pixels
    n_images = len(pixels.keys)
    self._written = range(n_images) if config.segment.output else spread_evenly(_SHOWN, n_images)
    self._tallies = [PixelTally(len(pixels.classes)) for _ in range(n_prompts)]

  def take(self, row: int, found: Sequence[PixelMap]) -> None:
    labels_HxW = self._pixels.labels(row)
    for number, (tally, one) in enumerate(zip(self._tallies, found, strict=True)):
      tally.add(labels_HxW, one.labels_HxW)
      if row in self._written:
        path = _labels_path(self._folder, self._pixels, row, number)
        with writing(path):
          path.parent.mkdir(parents=True, exist_ok=True)
          write_labels(path, one.labels_HxW, len(self._pixels.classes))

  def piece(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    counts = np.stack([tally.counts for tally in self._tallies])
    for tally in self._tallies:
      tally.counts[:] = 0
    return {}, {"counts": counts}


def _labels_path(folder: RunFolder, pixels: PixelSet, index: int, prompt: int) -> Path:
  return folder.path / "labels" / str(prompt) / f"{pixels.keys[index]}.png"


def _draw(folder: RunFolder, pixels: PixelSet, results: Mapping[str, Any]) -> None:
  """Draws some of the images, evenly over all, with their label maps."""
  shown = spread_evenly(_SHOWN, results["images"]).tolist()
  truth = [pixels.labels(index) for index in shown]
  titles = ["truth"] if any((labels != IGNORED).any() for labels in truth) else []
  maps = [[labels] if titles else [] for labels in truth]
  labels = prompt_labels([prompt["label"] for prompt in results["prompts"]])
  for number, label in enumerate(labels):
    titles.append(label)
    for index, row in zip(shown, maps, strict=True):
      map_HxW = read_values(_labels_path(folder, pixels, index, number)).astype(np.int32)
      row.append(np.where(map_HxW < len(pixels.classes), map_HxW, IGNORED))
  segmentation_sheet(
    folder.plots / "segmentation.png",
    [pixels.image(index) for index in shown],
    maps,
    titles,
    pixels.classes.names,
    f"{len(shown)} of {counted(results['images'], 'image')},"
    f" {counted(len(pixels.classes), 'class')}",
  )
