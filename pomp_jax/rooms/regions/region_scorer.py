"""Scores and detections of regions, as `config.regions` and `config.detect` describe them.

Shapes: R regions of an image, C classes.
"""

from collections.abc import Iterator, Sequence
import itertools
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from pomp_jax.config import Settings
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.class_matrix import ClassMatrix
from pomp_jax.rooms.regions import fields as fields
from pomp_jax.rooms.regions.box_metrics import Detections
from pomp_jax.rooms.regions.boxes import boxes_of_masks, select_detections
from pomp_jax.rooms.regions.files import Regions
from pomp_jax.rooms.regions.masks import hard_masks, run_lengths_of
from pomp_jax.rooms.regions.opened import (
  fusion_of,
  needs_crops,
  open_region_encoder,
  shares_of,
  trained_classes,
)
from pomp_jax.rooms.regions.region_scores import region_scores
from pomp_jax.rooms.regions.region_sources import Images, open_region_source
from pomp_jax.rooms.regions.resize import resized_image

# Masks of images whose crops are made together: one image, and more up to this.
_MASK_BYTES = 2**28


class Scored(NamedTuple):
  """An image with its regions and their scores."""

  row: int  # number of the image
  image: UInt8[np.ndarray, "_ _ 3"] | None  # None where no crops are made
  regions: Regions
  scores: Sequence[Float[np.ndarray, "R C"]] = ()  # by each of `shares_of` under each class matrix


class RegionScorer:
  """Finds the regions of images and scores them; crops are made once for all prompts."""

  def __init__(
    self,
    config: Settings,
    encoder: Encoder,
    images: Images,
    classes: ClassSplit,
    matrices: Sequence[ClassMatrix],
    *,
    logit_scale: float,
    tight: bool = False,
  ):
    """Opens the regions of `config.regions`; compiles on first use.

    Args:
      config: the config.
      encoder: the CLIP.
      images: images.
      classes: names and halves of the classes.
      matrices: the classes under each prompt.
      logit_scale: factor on the cosines of crops; 0: CLIP's.
      tight: whether crops with context are of the boxes of the masks, not of the regions' own.

    Raises:
      InputError: an unusable file of regions or network.
    """
    settings = config.regions
    self._settings, self._images, self._matrices = settings, images, matrices
    self._source = open_region_source(config, encoder, images)
    self._crops = open_region_encoder(settings, encoder) if needs_crops(settings) else None
    self._by_masks = tight or settings.crop == "masked"
    self._fused = {
      "logit_scale": logit_scale or encoder.clip.logit_scale,
      "fusion": fusion_of(settings),
      "trained_C": trained_classes(self._source.header, classes),
      "objectness": settings.objectness,
    }

  def scored(self, block: Sequence[int]) -> Iterator[Scored]:
    """Yields each image of a block with the scores of its regions.

    Raises:
      InputError: an image or its regions can't be read, or masks are missing that are cropped.
    """
    part: list[Scored] = []
    n_bytes = 0
    for row, regions in zip(block, self._source.regions(block), strict=True):
      image = None if self._crops is None else self._images.pixels(row)
      part.append(Scored(row, image, regions))
      if image is not None:
        n_bytes += len(regions.boxes) * image[..., 0].size
      if n_bytes > _MASK_BYTES:
        yield from self._of_part(part)
        part, n_bytes = [], 0
    yield from self._of_part(part)

  def _of_part(self, part: Sequence[Scored]) -> Iterator[Scored]:
    features: Sequence[np.ndarray | None] = [None] * len(part)
    if self._crops is not None and part:
      images, boxes, masks = zip(*map(self._cropped, part), strict=True)
      masked = self._settings.crop == "masked"
      features = self._crops.features(images, boxes, masks if masked else None)
    for one, clip_RxE in zip(part, features, strict=True):
      yield one._replace(
        scores=[
          region_scores(
            one.regions,
            self._source.header if share.network else None,
            clip_RxE if share.clip else None,
            matrix,
            **self._fused,
          )
          for matrix, share in itertools.product(self._matrices, shares_of(self._settings))
        ]
      )

  def _cropped(self, one: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image at the size of `regions.size`; boxes, and masks if they are cropped, in its pixels."""
    assert one.image is not None
    image = resized_image(one.image, self._settings.size)
    height, width = image.shape[:2]
    if not self._by_masks:
      old_height, old_width = one.image.shape[:2]
      factors = np.float32([width / old_width, height / old_height] * 2)
      return image, one.regions.boxes * factors, None
    soft = one.regions.drawn(f"image {self._images.keys[one.row]}")
    hard = hard_masks(soft, height, width, self._settings.mask_threshold)
    if self._settings.crop != "masked":
      return image, boxes_of_masks(hard), None
    masks = np.array(list(hard), bool).reshape(-1, height, width)
    return image, boxes_of_masks(masks), masks


def detections_of(
  regions: Regions,
  scores_RxC: Float[np.ndarray, "R C"],
  sides: tuple[int, ...],
  *,
  detect: fields.Detect,
  mask_threshold: float,
  most: int,
) -> Detections:
  """Selects the detections of an image, with their masks of these sides if the regions have some.

  A pixel of a soft mask is inside above the threshold. `most` counts where `detect.top` is 0.
  """
  found = select_detections(
    regions.boxes,
    scores_RxC,
    min_score=detect.min_score,
    max_iou=detect.nms,
    top=detect.top or most,
  )
  masks = None
  if regions.masks is not None:
    # Each region once, though it may be detected as several classes.
    used, own = np.unique(found.regions, return_inverse=True)
    hard = hard_masks(regions.masks[used], *sides, mask_threshold)
    encoded = [run_lengths_of(mask_HxW) for mask_HxW in hard]
    masks = [encoded[number] for number in own]
  boxes, classes = regions.boxes[found.regions], found.classes.astype(np.int32)
  return Detections(boxes, found.scores.astype(np.float32), classes, masks)
