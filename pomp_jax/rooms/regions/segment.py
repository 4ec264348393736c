"""A class for every pixel under prompts side by side: IoU, label images, pictures.

Without regions the classes of patches, by a training-free recipe; with regions the
classes of crops and of a network's embeddings, added up over the regions of a pixel.
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

# Images between two saves.
_BLOCK = 16
# Images in the plot.
_SHOWN = 6
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"


def check(config: SegmentConfig, workdir: str) -> None:
  """Opens images, labels, regions and prompts; writes nothing. InputError: one line."""
  segment, propose, clip_model = config.segment, config.propose, config.clip.model
  images = open_pixel_set(segment)
  check_prompts(segment, propose, images.classes.synonyms, clip_model)
  if config.regions.source == "none":
    check_patches(segment, opening.clip_config(clip_model))
  with waiting("reading all labels"):
    for index in range(len(images.keys) if segment.source == "folder" else 0):
      images.labels(index)
  check_region_source(config.regions, propose, clip_model, images, "segment")


def run(config: SegmentConfig, workdir: str) -> dict[str, Any]:
  """Segments the images that are missing, and sums up: returns what `results.json`
  holds.

  Processes other than the first may return an empty dict.
  """
  folder, images = RunFolder(workdir), open_pixel_set(config.segment)
  regions, segment, propose, clip = (
    config.regions,
    config.segment,
    config.propose,
    config.clip,
  )
  encoder = opening.open_encoder(
    clip, config.mesh.class_size, config.data.feature_store
  )
  ours = Comparison(_VERSION, encoder, images, segment, regions, propose, clip)
  if (finished := folder.finished(key=ours.key)) is not None:
    return finished
  matrices, n_images = ours.matrices(), len(images.keys)
  if regions.source == "none":
    find = DenseSegmenter(encoder, segment, dtype=clip.dtype).finder(
      images.pixels, matrices
    )
  else:
    source = open_region_source(regions, propose, clip, encoder, images)
    scale = segment.logit_scale
    find = RegionScorer(
      regions, source, encoder, images.classes, matrices, logit_scale=scale, tight=True
    ).label_maps
  written = range(n_images) if segment.output else spread_evenly(_SHOWN, n_images)

  def take(found: Iterator[tuple[int, list[PixelMap]]]) -> Taken:
    """Counts pixels under each prompt, and writes label images."""
    tallies, files = [PixelTally(len(images.classes)) for _ in ours.prompts], {}
    for index, maps in found:
      labels_HxW = images.labels(index)
      for number, (tally, one) in enumerate(zip(tallies, maps, strict=True)):
        tally.add(labels_HxW, one.labels_HxW)
        if index in written:
          name = _labels_name(images, index, number)
          path = folder.path / name
          with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files[name] = write_labels(path, one.labels_HxW, len(images.classes))
    return Taken(
      arrays={"counts": np.stack([tally.counts for tally in tallies])}, files=files
    )

  blocks = Blocks(folder, config.to_dict(), ours.key, n_images, _BLOCK)
  blocks.run(find, take, "segmentation")
  if not hosts.is_first():
    return {}
  counts_Px3xC = np.sum([piece.arrays["counts"] for piece in blocks.pieces()], axis=0)
  tallies = [PixelTally(len(images.classes), counts_3xC) for counts_3xC in counts_Px3xC]
  figures = {}
  for named, tally in zip(ours.prompts, tallies, strict=True):
    iou_C, accuracy_C = tally.per_class()
    per_class = {"iou": iou_C, "accuracy": accuracy_C}
    figures[named.label] = {**tally.figures(ours.groups), "per_class": per_class}
  results = {
    "recipe": segment.recipe if regions.source == "none" else None,
    "prompts": [
      {"label": named.label, "step": named.step, "labels": f"labels/{number}"}
      for number, named in enumerate(ours.prompts)
    ],
    "images": n_images,
    "pixels": tallies[0].counts[0],
    "figures": figures,
  }
  return ours.write(blocks, results, lambda results: _draw(folder, images, results))


def _labels_name(images: PixelSet, index: int, prompt: int) -> str:
  """Path of a label image in the run's folder."""
  return f"labels/{prompt}/{images.keys[index]}.png"


def _draw(folder: RunFolder, images: PixelSet, results: Mapping[str, Any]) -> None:
  """Draws some of the images, evenly over all, with their label maps."""
  shown = spread_evenly(_SHOWN, results["images"]).tolist()
  truth = [images.labels(index) for index in shown]
  titles = ["truth"] if any((labels != IGNORED).any() for labels in truth) else []
  maps = [[labels] if titles else [] for labels in truth]
  labels = short_labels([prompt["label"] for prompt in results["prompts"]])
  for number, label in enumerate(labels):
    titles.append(label)
    for index, row in zip(shown, maps, strict=True):
      path = folder.path / _labels_name(images, index, number)
      map_HxW = read_values(path).astype(np.int32)
      row.append(np.where(map_HxW < len(images.classes), map_HxW, IGNORED))
  segmentation_sheet(
    folder.plots / "segmentation.png",
    [images.pixels(index) for index in shown],
    maps,
    titles,
    images.classes.names,
    f"{len(shown)} of {counted(results['images'], 'image')},"
    f" {counted(len(images.classes), 'class')}",
  )
