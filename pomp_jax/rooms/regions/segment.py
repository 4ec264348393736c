"""Finds a class for every pixel and compares prompts: IoU, label images, pictures.

Without regions a training-free recipe classifies patches. With regions the scores of
crops and of a network's embeddings are added up over the regions of a pixel.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import waiting
from pomp_jax.report.labels import counted
from pomp_jax.rooms.regions.blocks import Blocks, Comparison, Taken, check_prompts
from pomp_jax.rooms.regions.dense import DenseSegmenter, PixelMap, check_patches
from pomp_jax.rooms.regions.fields import SegmentConfig
from pomp_jax.rooms.regions.image_sets import PixelSet, open_pixel_set
from pomp_jax.rooms.regions.label_images import IGNORED, read_values, write_labels
from pomp_jax.rooms.regions.pixel_metrics import PixelTally
from pomp_jax.rooms.regions.plots import segmentation_sheet
from pomp_jax.rooms.regions.region_scorer import RegionScorer, short_labels
from pomp_jax.rooms.regions.region_sources import (
  check_region_source,
  open_region_source,
)

# Number of images between two saves.
_BLOCK = 16
# Number of images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


def check(config: SegmentConfig, workdir: str) -> None:
  """Opens images, labels, regions and prompts; writes nothing.

  Raises:
    InputError: an image, a label image, regions or a prompt is unusable.
  """
  segment = config.segment
  clip_model = config.clip.model
  images = open_pixel_set(segment)
  check_prompts(segment, config.propose, images.classes.synonyms, clip_model)
  if config.regions.source == "none":
    check_patches(segment, opening.clip_config(clip_model))
  if segment.source == "folder":
    with waiting("reading all labels"):
      for index in range(len(images.keys)):
        images.labels(index)
  check_region_source(config.regions, config.propose, clip_model, images, "segment")


def run(config: SegmentConfig, workdir: str) -> dict[str, Any]:
  """Segments the images that no earlier start has segmented, and sums up all counts.

  Returns:
    Content of `results.json`. Processes other than the first may return an empty dict.
  """
  folder = RunFolder(workdir)
  images = open_pixel_set(config.segment)
  regions = config.regions
  segment = config.segment
  propose = config.propose
  clip = config.clip
  encoder = opening.open_encoder(
    clip, config.mesh.class_size, config.data.feature_store
  )
  comparison = Comparison(_VERSION, encoder, images, segment, regions, propose, clip)
  finished = folder.finished(key=comparison.key)
  if finished is not None:
    return finished
  matrices = comparison.matrices()
  if regions.source == "none":
    segmenter = DenseSegmenter(encoder, segment, dtype=clip.dtype)
    find = segmenter.finder(images.pixels, matrices)
  else:
    scorer = RegionScorer(
      regions,
      open_region_source(regions, propose, clip, encoder, images),
      encoder,
      images.classes,
      matrices,
      logit_scale=segment.logit_scale,
      tight=True,
    )
    find = scorer.label_maps
  n_images = len(images.keys)
  n_classes = len(images.classes)
  # Without `segment.output` write label images only for `_draw`, which reads them.
  written = range(n_images) if segment.output else spread_evenly(_SHOWN, n_images)

  def take(label_maps: Iterator[tuple[int, list[PixelMap]]]) -> Taken:
    """Counts pixels under each prompt, and writes label images."""
    tallies = [PixelTally(n_classes) for _ in comparison.prompts]
    files = {}
    for index, maps in label_maps:
      labels_HxW = images.labels(index)
      for number, (tally, pixels) in enumerate(zip(tallies, maps, strict=True)):
        tally.add(labels_HxW, pixels.labels_HxW)
        if index in written:
          name = _labels_name(images, index, number)
          path = folder.path / name
          with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files[name] = write_labels(path, pixels.labels_HxW, n_classes)
    counts_Px3xC = np.stack([tally.counts for tally in tallies])
    return Taken(arrays={"counts": counts_Px3xC}, files=files)

  blocks = Blocks(folder, config.to_dict(), comparison.key, n_images, _BLOCK)
  blocks.run(find, take, "segmentation")
  if not hosts.is_first():
    return {}
  counts_Px3xC = np.sum([piece.arrays["counts"] for piece in blocks.pieces()], axis=0)
  prompts = []
  figures = {}
  for number, named in enumerate(comparison.prompts):
    prompts.append(
      {"label": named.label, "step": named.step, "labels": f"labels/{number}"}
    )
    tally = PixelTally(n_classes, counts_Px3xC[number])
    iou_C, accuracy_C = tally.per_class()
    figures[named.label] = {
      **tally.figures(comparison.groups),
      "per_class": {"iou": iou_C, "accuracy": accuracy_C},
    }
  results = {
    "recipe": segment.recipe if regions.source == "none" else None,
    "prompts": prompts,
    "images": n_images,
    # Pixels of each class in the truth, the same under all prompts.
    "pixels": counts_Px3xC[0, 0],
    "figures": figures,
  }
  return comparison.write(
    blocks, results, lambda results: _draw(folder, images, results)
  )


def _labels_name(images: PixelSet, index: int, prompt: int) -> str:
  """Path of a label image in the run's folder."""
  return f"labels/{prompt}/{images.keys[index]}.png"


def _draw(folder: RunFolder, images: PixelSet, results: Mapping[str, Any]) -> None:
  """Draws some of the images, evenly over all, with their label maps."""
  indices = spread_evenly(_SHOWN, results["images"]).tolist()
  truth = [images.labels(index) for index in indices]
  titles = []
  maps: list[list[np.ndarray]] = [[] for _ in indices]
  # Without label images there is no truth to draw.
  if any((labels_HxW != IGNORED).any() for labels_HxW in truth):
    titles.append("truth")
    maps = [[labels_HxW] for labels_HxW in truth]
  labels_of_prompts = [prompt["label"] for prompt in results["prompts"]]
  for number, label in enumerate(short_labels(labels_of_prompts)):
    titles.append(label)
    for index, maps_of_image in zip(indices, maps, strict=True):
      path = folder.path / _labels_name(images, index, number)
      # `write_labels` has written IGNORED as the largest value of the type.
      values_HxW = read_values(path).astype(np.int32)
      is_class_HxW = values_HxW < len(images.classes)
      maps_of_image.append(np.where(is_class_HxW, values_HxW, IGNORED))
  n_images = counted(results["images"], "image")
  n_classes = counted(len(images.classes), "class")
  segmentation_sheet(
    folder.plots / "segmentation.png",
    images=[images.pixels(index) for index in indices],
    maps=maps,
    titles=titles,
    names=images.classes.names,
    title=f"{len(indices)} of {n_images}, {n_classes}",
  )
