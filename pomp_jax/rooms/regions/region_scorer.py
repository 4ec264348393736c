"""Scores of regions, and the detections and label maps that they give, as a config describes them.

Shapes: R regions of an image, C classes, E embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.class_lists import normalized_names
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.box_metrics import Detections
from pomp_jax.rooms.regions.boxes import boxes_of_masks, select_detections
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.crop_features import CropSettings, RegionEncoder
from pomp_jax.rooms.regions.fusion import Fusion, Scores, class_scores, fuse, with_objectness
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.masks import hard_masks, resized_image, run_lengths_of
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions
from pomp_jax.rooms.regions.region_sources import Images, needs_crops, open_region_source
from pomp_jax.rooms.regions.segmentation import DenseSegmenter, DenseSettings, PixelMap

# Masks of images whose crops are made together: one image, and more up to this.
_MASK_BYTES = 2**28
# `shares_of` under `regions.alone`.
_SHARES = {", fused": (True, True), ", network alone": (True, False), ", CLIP alone": (False, True)}


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
    """Opens the regions of `config.regions`, InputError if they are unusable; compiles later.

    `matrices` are the classes under each prompt. `logit_scale` is the factor on the cosines of
    crops; 0: CLIP's. With `tight` crops with context are of the boxes of the masks, not of the
    regions' own.
    """
    settings = config.regions
    self._settings, self._images, self._matrices = settings, images, matrices
    self._source = open_region_source(config, encoder, images)
    self._crops = open_region_encoder(settings, encoder) if needs_crops(settings) else None
    self._by_masks = tight or settings.crop == "masked"
    self._fused = {
      "logit_scale": logit_scale or encoder.clip.logit_scale,
      "fusion": Fusion(settings.e_base, settings.e_novel, settings.null),
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
            self._source.header if network else None,
            clip_RxE if crops else None,
            matrix,
            **self._fused,
          )
          for matrix in self._matrices
          for network, crops in shares_of(self._settings).values()
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


def region_scores(
  regions: Regions,
  header: RegionHeader | None,
  clip_RxE: Float[np.ndarray, "R E"] | None,
  matrix: ClassMatrix,
  *,
  logit_scale: float,
  fusion: Fusion,
  trained_C: Bool[np.ndarray, " C"],
  objectness: bool = False,
) -> Float[np.ndarray, "R C"]:
  """Scores of an image's regions; the highest among a class's names counts, as in SCLIP.

  Without embeddings, or a header by which they are compared, CLIP's scores are returned; without
  `clip_RxE` the network's. These are unit features of the crops, a row of zeros where there is
  none. `trained_C` are the classes that the network was trained on. With `objectness` a score
  becomes sqrt(score * objectness).

  Raises:
    EvaluationError: scores are not finite.
  """
  n_regions = len(regions.boxes)
  # A power of two, for fewer compilations.
  n_rows = 1 << max(n_regions - 1, 1).bit_length()

  def scores_of(rows, *activation):
    padded = np.zeros((n_rows, *rows.shape[1:]), np.float32)
    padded[:n_regions] = rows
    classes, null = class_scores(padded, matrix.features, *activation)
    return Scores(matrix.over_names(np.asarray(classes)), null)

  net = clip = None
  if regions.embeddings is not None and header is not None:
    null_E = None if header.null is None else np.array(header.null, np.float32)
    net = scores_of(regions.embeddings, header.activation, header.scale, null_E)
  valid_R = np.ones(n_rows, bool)
  if clip_RxE is not None:
    clip = scores_of(clip_RxE, "softmax", logit_scale)
    valid_R[:n_regions] = clip_RxE.any(axis=1)
  scores_RxC = np.asarray(fuse(net, clip, fusion, trained_C, valid_R))[:n_regions]
  check_finite(scores_RxC, "regions")
  if objectness and regions.objectness is not None:
    return np.asarray(with_objectness(scores_RxC, regions.objectness))
  return scores_RxC


def open_region_encoder(settings: fields.Regions, encoder: Encoder) -> RegionEncoder:
  """Crops as `config.regions` describes them, and the image tower.

  As in ZSSeg, a masked crop is stretched to a square, and pixels outside the mask get CLIP's mean
  colour, which becomes 0. A crop with context is cut as a square.
  """
  clip = encoder.clip
  fill = tuple(255 * float(value) for value in clip.mean)
  context = settings.crop == "context"
  return RegionEncoder(encoder, CropSettings(clip.image_size, fill, settings.expand, context))


def trained_classes(header: RegionHeader | None, classes: ClassSplit) -> Bool[np.ndarray, " C"]:
  """Classes that a network was trained on: those that its file names, else the base classes."""
  if header is None or not header.trained_classes:
    return np.array(classes.groups) == "base"
  trained = set(normalized_names(header.trained_classes))
  return np.array([name in trained for name in normalized_names(classes.names)])


def shares_of(settings: fields.Regions) -> Mapping[str, tuple[bool, bool]]:
  """Ends of the labels of a prompt -> whether the network's scores count, and CLIP's crops'."""
  return _SHARES if settings.alone else {"": (True, True)}


def compared(settings: fields.Regions, prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """Prompts with the labels of their results: each prompt under all `shares_of`, in their order."""
  pairs = itertools.product(prompts, shares_of(settings))
  return [named._replace(label=named.label + end) for named, end in pairs]


def detections_of(
  regions: Regions,
  scores_RxC: Float[np.ndarray, "R C"],
  sides: tuple[int, ...],
  config: Settings,
  most: int,
) -> Detections:
  """Selects the detections of an image, with their masks of these sides if the regions have some.

  `most` counts where `detect.top` is 0.
  """
  own, boxes = config.detect, regions.boxes
  found = select_detections(
    boxes, scores_RxC, min_score=own.min_score, max_iou=own.nms, top=own.top or most
  )
  masks = None
  if regions.masks is not None:
    # Each region once, though it may be detected as several classes.
    used, number_D = np.unique(found.regions, return_inverse=True)
    hard = hard_masks(regions.masks[used], *sides, config.regions.mask_threshold)
    encoded = [run_lengths_of(mask_HxW) for mask_HxW in hard]
    masks = [encoded[number] for number in number_D]
  scores, classes = found.scores.astype(np.float32), found.classes.astype(np.int32)
  return Detections(boxes[found.regions], scores, classes, masks)


def check_patches(segment: fields.Segment, clip_config: ClipConfig) -> None:
  """Raises ConfigError unless a CLIP has patches, and an image and a window hold one."""
  if isinstance(clip_config.vision_config, ResNetConfig):
    raise ConfigError("regions.source", "none", "regions for a ResNet: recipes need a ViT")
  patch = clip_config.vision_config.patch_size
  for field in ("size", "window"):
    if 0 < (side := getattr(segment, field)) < patch:
      raise ConfigError(f"segment.{field}", side, f"0, or a patch of {patch} pixels or more")


def open_segmenter(config: Settings, encoder: Encoder) -> DenseSegmenter:
  """Opens the dense CLIP of `config.segment`; features of patches serve all prompts."""
  segment = config.segment
  scale = segment.logit_scale or encoder.clip.logit_scale
  sizes = segment.size, segment.window, segment.stride
  settings = DenseSettings(segment.recipe, *sizes, scale, segment.pamr, segment.background_below)
  return DenseSegmenter(encoder, settings, dtype=config.clip.dtype)


def open_label_maps(
  config: Settings,
  encoder: Encoder,
  images: Images,
  classes: ClassSplit,
  matrices: Sequence[ClassMatrix],
) -> Callable[[Sequence[int]], Iterator[tuple[int, list[PixelMap]]]]:
  """Builds `numbers of images -> number and label map under each prompt`, of patches or regions.

  Raises:
    InputError: an unusable file of regions or network.
  """
  if config.regions.source == "none":
    segmenter = open_segmenter(config, encoder)
    return lambda block: zip(
      block, segmenter.label_maps([images.pixels(row) for row in block], matrices), strict=True
    )
  scale = config.segment.logit_scale
  scorer = RegionScorer(config, encoder, images, classes, matrices, logit_scale=scale, tight=True)

  def of_regions(block):
    for row, _, regions, scores in scorer.scored(block):
      masks = regions.drawn(f"image {images.keys[row]}")
      maps = label_maps_of_regions(scores, masks, *images.shape(row))
      yield row, [PixelMap(labels_HxW) for labels_HxW in maps]

  return of_regions
