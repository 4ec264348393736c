"""Regions of images with their class scores under each prompt, and label maps of them.

Shapes: R regions of an image, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.report.labels import prompt_labels
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.crop_features import RegionEncoder
from pomp_jax.rooms.regions.dense import PixelMap
from pomp_jax.rooms.regions.fusion import region_scores, trained_classes
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.masks import boxes_of_masks, hard_masks, resized_image
from pomp_jax.rooms.regions.region_folder import Regions
from pomp_jax.rooms.regions.region_sources import RegionSource, needs_crops

# Masks of images whose crops are made together: one image, and more up to this.
_MASK_BYTES = 2**28
# `shares_of` under `regions.alone`.
_SHARES = {", fused": (True, True), ", network alone": (True, False), ", CLIP alone": (False, True)}


class Scored(NamedTuple):
  """Regions of an image with their scores."""

  regions: Regions
  scores: Sequence[Float[np.ndarray, "R C"]]  # by each of `shares_of` under each class matrix


class RegionScorer:
  """Scores the regions of images; crops are made once for all prompts."""

  def __init__(
    self,
    regions: fields.Regions,
    source: RegionSource,
    encoder: Encoder,
    classes: ClassSplit,
    matrices: Sequence[ClassMatrix],
    *,
    logit_scale: float,
    tight: bool = False,
    crops: RegionEncoder | None = None,
  ):
    """Compiles on first use; takes `crops` that are open already.

    `matrices` are the classes under each prompt, `logit_scale` the factor on the cosines of crops
    (0: CLIP's). With `tight` crops with context are of the masks' boxes, not of the regions' own.
    """
    self._settings, self._source, self._matrices = regions, source, matrices
    if crops is None and needs_crops(regions):
      crops = RegionEncoder(encoder, regions)
    self._crops = crops
    self._by_masks = tight or regions.crop == "masked"
    self._fused: dict[str, Any] = {
      "logit_scale": logit_scale or encoder.clip.logit_scale,
      "fusion": regions,
      "trained_C": trained_classes(source.header, classes),
    }

  def scored(self, block: Sequence[int]) -> Iterator[tuple[int, Scored]]:
    """Yields the number of each image of a block, and the scores of its regions."""
    part: list[tuple[int, np.ndarray | None, Regions]] = []
    n_bytes = 0
    for row, regions in zip(block, self._source.find(block), strict=True):
      image = None if self._crops is None else self._source.images.pixels(row)
      part.append((row, image, regions))
      if image is not None:
        n_bytes += len(regions.boxes) * image[..., 0].size
      if n_bytes > _MASK_BYTES:
        yield from self._of_part(part)
        part, n_bytes = [], 0
    yield from self._of_part(part)

  def label_maps(self, block: Sequence[int]) -> Iterator[tuple[int, list[PixelMap]]]:
    """Yields the number of each image of a block, and its label map under each prompt."""
    images = self._source.images
    for row, (regions, scores) in self.scored(block):
      masks = regions.drawn(f"image {images.keys[row]}")
      maps = label_maps_of_regions(scores, masks, *images.shape(row))
      yield row, [PixelMap(labels_HxW) for labels_HxW in maps]

  def _of_part(self, part: Sequence[tuple]) -> Iterator[tuple[int, Scored]]:
    features: Sequence[np.ndarray | None] = [None] * len(part)
    if self._crops is not None and part:
      images, boxes, masks = zip(*itertools.starmap(self._cropped, part), strict=True)
      masked = self._settings.crop == "masked"
      features = self._crops.features(images, boxes, masks if masked else None)
    header, shares = self._source.header, shares_of(self._settings.alone).values()
    for (row, _, regions), clip_RxE in zip(part, features, strict=True):
      pairs = [(header if net else None, clip_RxE if clip else None) for net, clip in shares]
      scores = [
        region_scores(regions, own, clip_R, matrix, **self._fused)
        for matrix, (own, clip_R) in itertools.product(self._matrices, pairs)
      ]
      yield row, Scored(regions, scores)

  def _cropped(self, row: int, pixels: np.ndarray, regions: Regions) -> tuple:
    """Image at the size of `regions.size`; boxes, and masks if they are cropped, in its pixels."""
    image = resized_image(pixels, self._settings.size)
    height, width = image.shape[:2]
    if not self._by_masks:
      old_height, old_width = pixels.shape[:2]
      factors = np.array([width / old_width, height / old_height] * 2, np.float32)
      return image, regions.boxes * factors, None
    soft = regions.drawn(f"image {self._source.images.keys[row]}")
    hard = hard_masks(soft, height, width, self._settings.mask_threshold)
    if self._settings.crop != "masked":
      return image, boxes_of_masks(hard), None
    masks = np.array(list(hard), bool).reshape(-1, height, width)
    return image, boxes_of_masks(masks), masks


def shares_of(alone: bool) -> Mapping[str, tuple[bool, bool]]:
  """Ends of the labels of a prompt -> whether the network's scores count, and CLIP's crops'."""
  return _SHARES if alone else {"": (True, True)}


def short_labels(labels: Sequence[str]) -> list[str]:
  """Short labels of prompts, each with its end of `shares_of`, if it has one."""
  ends = [next(filter(label.endswith, _SHARES), "") for label in labels]
  prompts = [label.removesuffix(end) for label, end in zip(labels, ends, strict=True)]
  return [label + end for label, end in zip(prompt_labels(prompts), ends, strict=True)]


def compared(alone: bool, prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """Prompts with the labels of their results: each prompt under all `shares_of`, in their order."""
  pairs = itertools.product(prompts, shares_of(alone))
  return [named._replace(label=named.label + end) for named, end in pairs]
