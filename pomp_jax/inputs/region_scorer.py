"""Scores and detections of regions, as `config.regions` and `config.detect` describe them.

Shapes: R regions of an image, C classes.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from pomp_jax.config import region_fields as fields
from pomp_jax.encoder import Encoder
from pomp_jax.inference.box_metrics import Detections
from pomp_jax.inference.class_matrix import ClassMatrix
from pomp_jax.inference.region_scores import region_scores
from pomp_jax.inputs.regions import (
  cropped,
  fusion_of,
  needs_crops,
  open_region_encoder,
  shares_of,
)
from pomp_jax.regions.boxes import select_detections
from pomp_jax.regions.files import RegionHeader, Regions
from pomp_jax.regions.masks import hard_masks, run_lengths_of

# Masks of images whose crops are made together: one image, and more up to this.
_MASK_BYTES = 2**28


class Seen(NamedTuple):
  """An image with its regions.

  Attributes:
    image: pixels; None if `RegionScorer.sees_pixels` is false.
    regions: its regions.
    where: its name, for messages.
  """

  image: UInt8[np.ndarray, "_ _ 3"] | None
  regions: Regions
  where: str


class RegionScorer:
  """Scores of the regions of images; crops are made once for all prompts.

  Attributes:
    sees_pixels: whether crops are made, so that images are needed.
  """

  def __init__(
    self,
    settings: fields.Regions,
    encoder: Encoder,
    header: RegionHeader | None,
    trained_C: Bool[np.ndarray, " C"],
    *,
    logit_scale: float = 0.0,
    tight: bool = False,
  ):
    """Compiles on first use.

    Args:
      settings: `config.regions`.
      encoder: the CLIP.
      header: how embeddings are compared; None: regions without them.
      trained_C: classes that the network was trained on.
      logit_scale: factor on the cosines of crops; 0: CLIP's.
      tight: whether crops with context are of the boxes of the masks, not of the regions' own.

    Raises:
      RegionFileError, CategoryFileError: an unusable file of regions.
    """
    self.sees_pixels = needs_crops(settings)
    self._crops = open_region_encoder(settings, encoder) if self.sees_pixels else None
    self._settings, self._header, self._shares = settings, header, shares_of(settings)
    self._by_masks = tight or settings.crop == "masked"
    self._fused = {
      "logit_scale": logit_scale or encoder.clip.logit_scale,
      "fusion": fusion_of(settings),
      "trained_C": trained_C,
      "objectness": settings.objectness,
    }

  def scores(
    self, images: Iterable[Seen], matrices: Sequence[ClassMatrix]
  ) -> Iterator[tuple[Seen, list[Float[np.ndarray, "_ C"]]]]:
    """Yields each image with the scores [R,C] of its regions.

    Under each class matrix there are scores by each of `shares_of(config.regions)`.

    Raises:
      RegionFileError: boxes without masks, where masks are cropped.
    """
    part: list[Seen] = []
    n_bytes = 0
    for seen in images:
      part.append(seen)
      if seen.image is not None:
        n_bytes += len(seen.regions.boxes) * seen.image[..., 0].size
      if n_bytes > _MASK_BYTES:
        yield from self._of_part(part, matrices)
        part, n_bytes = [], 0
    yield from self._of_part(part, matrices)

  def _of_part(self, part: Sequence[Seen], matrices: Sequence[ClassMatrix]):
    features: Sequence[np.ndarray | None] = [None] * len(part)
    if self._crops is not None and part:
      images, regions, where = zip(*part, strict=True)
      crops = cropped(self._settings, images, regions, where, by_masks=self._by_masks)
      features = self._crops.features(*crops)
    for seen, clip_RxE in zip(part, features, strict=True):
      yield (
        seen,
        [
          region_scores(
            seen.regions,
            self._header if share.network else None,
            clip_RxE if share.clip else None,
            matrix,
            **self._fused,
          )
          for matrix, share in itertools.product(matrices, self._shares)
        ],
      )


def detections_of(
  regions: Regions,
  scores_RxC: Float[np.ndarray, "R C"],
  sides: tuple[int, ...],
  *,
  detect: fields.Detect,
  mask_threshold: float,
  most: int,
) -> Detections:
  """Selects the detections of an image, with their masks if the regions have some.

  Args:
    regions: regions.
    scores_RxC: their scores.
    sides: height and width of the detections' masks.
    detect: `config.detect`: threshold, suppression and number.
    mask_threshold: value above which a pixel of a soft mask is inside.
    most: detections at most where `detect.top` is 0.
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
  return Detections(
    regions.boxes[found.regions],
    found.scores.astype(np.float32),
    found.classes.astype(np.int32),
    masks,
  )
