"""Scores regions by class under each prompt: a network's scores of embeddings, fused
with CLIP's scores of crops.

Shapes: R regions of an image, H, W sides of an image, T stages of a detector, C
classes, E embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8
import numpy as np

from pomp_jax.data.class_lists import normalized_names
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.report.labels import prompt_labels
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.crop_features import RegionEncoder
from pomp_jax.rooms.regions.dense import PixelMap
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.mask_former.model import class_logits
from pomp_jax.rooms.regions.masks import boxes_of_masks, hard_masks, resized_image
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions
from pomp_jax.rooms.regions.region_sources import RegionSource, needs_crops

# Images are collected until their masks take more bytes than this; then the crops of
# all are made together.
_MASK_BYTES = 2**28
# Result of `shares_of` if `regions.alone`.
_SHARES = {
  ", fused": (True, True),
  ", network alone": (True, False),
  ", CLIP alone": (False, True),
}


_Array = Array | np.ndarray


class Scores(NamedTuple):
  """Class scores of regions."""

  classes: Float[_Array, "R C"]  # probabilities
  null: Float[_Array, " R"]  # probability of no class; zeros without a null embedding


def class_scores(
  embeddings: Float[_Array, "R E"] | Float[_Array, "R T E"],
  classes_CxE: Float[_Array, "C E"],
  activation: str,
  scale: float,
  null_E: Float[_Array, " E"] | None = None,
) -> Scores:
  """Scores region embeddings by the scaled cosine to each class.

  Args:
    embeddings: rows of any norm; probabilities of T stages are averaged, as in Detic.
    classes_CxE: class vectors of any norm.
    activation: one of `region_folder.ACTIVATIONS`.
    scale: factor of the cosine; 100 in CLIP and ZSSeg, 50 in Detic.
    null_E: embedding of no class. ZSSeg learns it. F-VLM takes the text features of
      "background". Zeros give the logit 0, which Detic's background has.
  """
  logits = class_logits(embeddings, classes_CxE, null_E, scale)
  if activation == "softmax":
    probabilities = jax.nn.softmax(logits)
  else:
    probabilities = jax.nn.sigmoid(logits)
  if probabilities.ndim == 3:
    probabilities = probabilities.mean(axis=1)
  n_classes = len(classes_CxE)
  if null_E is None:
    null_R = jnp.zeros(len(embeddings))
  else:
    null_R = probabilities[:, n_classes]
  return Scores(probabilities[:, :n_classes], null_R)


def fuse(
  net: Scores | None,
  clip: Scores | None,
  fusion: fields.Regions,
  trained_C: Bool[_Array, " C"],
  valid_R: Bool[_Array, " R"],
) -> Float[_Array, "R C"]:
  """Fuses a network's scores with CLIP's of crops: net^(1-e) clip^e.

  The exponent e of a class is `e_base` or `e_novel`. `fusion.null` says what becomes of
  null, the network's probability of no class. `drop`: it counts in the network's
  softmax only, and the fused scores stay as they are. `keep`: fused scores and null are
  normalised together. `gate`: the network's scores are normalised without null; the
  fused scores are normalised and multiplied by 1 - null.

  Args:
    net: scores of the network; None: CLIP's scores alone count.
    clip: scores of crops; None: the network's scores alone count.
    fusion: exponents `e_base` and `e_novel`, and `null`.
    trained_C: whether the network was trained on a class, whose exponent is `e_base`.
    valid_R: whether CLIP has seen a crop of a region. If not, since the mask is empty,
      only the network's factor counts, as in ZSSeg; without a network the scores are 0.
  """
  if clip is None:
    assert net is not None
    return net.classes
  is_valid_Rx1 = valid_R[:, None]
  if net is None:
    return jnp.where(is_valid_Rx1, clip.classes, 0)
  exponent_C = jnp.where(trained_C, fusion.e_base, fusion.e_novel)
  net_RxC = net.classes
  clip_RxC = jnp.where(is_valid_Rx1, clip.classes, 1)
  if fusion.null == "gate":
    net_RxC = net_RxC / net_RxC.sum(axis=1, keepdims=True)
  fused_RxC = net_RxC ** (1 - exponent_C) * clip_RxC**exponent_C
  if fusion.null == "drop":
    return fused_RxC
  total_R = fused_RxC.sum(axis=1)
  if fusion.null == "keep":
    return fused_RxC / (total_R + net.null)[:, None]
  return fused_RxC * ((1 - net.null) / total_R)[:, None]


def region_scores(
  regions: Regions,
  header: RegionHeader | None,
  clip_RxE: Float[np.ndarray, "R E"] | None,
  matrix: ClassMatrix,
  *,
  logit_scale: float,
  fusion: fields.Regions,
  trained_C: Bool[np.ndarray, " C"],
) -> Float[np.ndarray, "R C"]:
  """Scores the regions of an image; the best name of a class counts, as in SCLIP.

  Without embeddings or without `header` the scores are CLIP's alone. Without `clip_RxE`
  they are the network's alone.

  Args:
    regions: regions of the image.
    header: how embeddings are compared with classes.
    clip_RxE: unit features of the crops, with zeros for a region without a crop.
    matrix: classes under one prompt.
    logit_scale: factor of the cosines of crops.
    fusion: settings for `fuse`; with `fusion.objectness` a score becomes
      sqrt(score * objectness), as in Detic and ViLD.
    trained_C: whether the network was trained on each class.

  Raises:
    EvaluationError: scores are not finite.
  """
  n_regions = len(regions.boxes)
  # Pad to a power of two, for fewer compilations.
  n_rows = 1 << max(n_regions - 1, 1).bit_length()

  def scores_of(
    rows: Float[np.ndarray, "R ..."],
    activation: str,
    scale: float,
    null_E: Float[np.ndarray, " E"] | None = None,
  ) -> Scores:
    padded = np.zeros((n_rows, *rows.shape[1:]), np.float32)
    padded[:n_regions] = rows
    scores = class_scores(padded, matrix.features, activation, scale, null_E)
    return Scores(matrix.over_names(np.asarray(scores.classes)), scores.null)

  net = None
  if regions.embeddings is not None and header is not None:
    null_E = None
    if header.null is not None:
      null_E = np.array(header.null, np.float32)
    net = scores_of(regions.embeddings, header.activation, header.scale, null_E)
  clip = None
  is_valid_R = np.ones(n_rows, bool)
  if clip_RxE is not None:
    clip = scores_of(clip_RxE, "softmax", logit_scale)
    is_valid_R[:n_regions] = clip_RxE.any(axis=1)
  fused = fuse(net, clip, fusion, trained_C, is_valid_R)
  scores_RxC = np.asarray(fused)[:n_regions]
  check_finite(scores_RxC, "regions")
  if fusion.objectness and regions.objectness is not None:
    return np.asarray(jnp.sqrt(scores_RxC * regions.objectness[:, None]))
  return scores_RxC


def trained_classes(
  header: RegionHeader | None, classes: ClassSplit
) -> Bool[np.ndarray, " C"]:
  """Whether a network was trained on each class: by the names in its file, or without
  names by the group "base"."""
  if header is None or not header.trained_classes:
    return np.array(classes.groups) == "base"
  trained = set(normalized_names(header.trained_classes))
  return np.array([name in trained for name in normalized_names(classes.names)])


class Scored(NamedTuple):
  """Regions of an image with their scores."""

  regions: Regions
  # for each class matrix one item for each of `shares_of`
  scores: Sequence[Float[np.ndarray, "R C"]]


class _ToCrop(NamedTuple):
  """A resized image and the regions that are cropped from it."""

  image_HxWx3: UInt8[np.ndarray, "H W 3"]
  boxes_Rx4: Float[np.ndarray, "R 4"]  # in pixels of the resized image
  # None: all pixels of the box
  masks_RxHxW: Bool[np.ndarray, "R H W"] | None = None


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
    """Opens an encoder of crops if crops count; compiles on first use.

    Args:
      regions: settings of crops and fusion.
      source: regions and images.
      encoder: the CLIP.
      classes: names and groups of the C classes.
      matrices: the classes under each prompt.
      logit_scale: factor of the cosines of crops; 0: CLIP's.
      tight: whether crops with context are cut around the boxes of the masks, not
        around those of the regions.
      crops: open encoder of crops; None: it is opened here.
    """
    self._settings = regions
    self._source = source
    self._matrices = matrices
    if crops is None and needs_crops(regions):
      crops = RegionEncoder(encoder, regions)
    self._crops = crops
    self._by_masks = tight or regions.crop == "masked"
    self._logit_scale = logit_scale or encoder.clip.logit_scale
    self._trained_C = trained_classes(source.header, classes)

  def scored(self, block: Sequence[int]) -> Iterator[tuple[int, Scored]]:
    """Yields the number of each image of a block, and the scores of its regions."""
    part: list[tuple[int, np.ndarray | None, Regions]] = []
    n_bytes = 0
    for row, regions in zip(block, self._source.find(block), strict=True):
      image = None
      if self._crops is not None:
        image = self._source.images.pixels(row)
        height, width = image.shape[:2]
        n_bytes += len(regions.boxes) * height * width
      part.append((row, image, regions))
      if n_bytes > _MASK_BYTES:
        yield from self._scored_part(part)
        part = []
        n_bytes = 0
    yield from self._scored_part(part)

  def label_maps(self, block: Sequence[int]) -> Iterator[tuple[int, list[PixelMap]]]:
    """Yields the number of each image of a block, and its label map under each
    prompt."""
    images = self._source.images
    for row, (regions, scores) in self.scored(block):
      masks = regions.drawn(f"image {images.keys[row]}")
      maps = label_maps_of_regions(scores, masks, *images.shape(row))
      yield row, [PixelMap(labels_HxW) for labels_HxW in maps]

  def _scored_part(
    self, part: Sequence[tuple[int, Any, Regions]]
  ) -> Iterator[tuple[int, Scored]]:
    """Scores images whose crops are made together."""
    features: Sequence[np.ndarray | None] = [None] * len(part)
    if self._crops is not None and part:
      to_crop = [self._to_crop(row, pixels, regions) for row, pixels, regions in part]
      images, boxes, masks = zip(*to_crop, strict=True)
      if self._settings.crop == "masked":
        features = self._crops.features(images, boxes, masks)
      else:
        features = self._crops.features(images, boxes, None)
    for (row, _, regions), clip_RxE in zip(part, features, strict=True):
      scores = []
      for matrix in self._matrices:
        for net_counts, clip_counts in shares_of(self._settings.alone).values():
          scores_RxC = region_scores(
            regions,
            self._source.header if net_counts else None,
            clip_RxE if clip_counts else None,
            matrix,
            logit_scale=self._logit_scale,
            fusion=self._settings,
            trained_C=self._trained_C,
          )
          scores.append(scores_RxC)
      yield row, Scored(regions, scores)

  def _to_crop(self, row: int, pixels: np.ndarray, regions: Regions) -> _ToCrop:
    """Resizes an image to `regions.size`, and its boxes and masks with it.

    Args:
      row: number of the image, for messages.
      pixels: image as it is stored, uint8 [H,W,3].
      regions: regions of the image.

    Raises:
      RegionError: crops need masks, but the regions are boxes alone.
    """
    settings = self._settings
    image = resized_image(pixels, settings.size)
    height, width, _ = image.shape
    if not self._by_masks:
      old_height, old_width, _ = pixels.shape
      x_factor = width / old_width
      y_factor = height / old_height
      factors_4 = np.array([x_factor, y_factor, x_factor, y_factor], np.float32)
      return _ToCrop(image, regions.boxes * factors_4)

    soft_masks = regions.drawn(f"image {self._source.images.keys[row]}")
    masks = hard_masks(soft_masks, height, width, settings.mask_threshold)
    if settings.crop != "masked":
      # Take one mask at a time, since only the boxes are kept.
      return _ToCrop(image, boxes_of_masks(masks))
    masks_RxHxW = np.array(list(masks), bool).reshape(-1, height, width)
    return _ToCrop(image, boxes_of_masks(masks_RxHxW), masks_RxHxW)


def shares_of(alone: bool) -> Mapping[str, tuple[bool, bool]]:
  """Says for each kind of scores of a prompt which scores count.

  Returns:
    Whether the network's count and whether CLIP's of crops count, by the end that the
    kind adds to the prompt's label.
  """
  return _SHARES if alone else {"": (True, True)}


def short_labels(labels: Sequence[str]) -> list[str]:
  """Short labels of prompts, each with its end of `shares_of`, if it has one."""
  prompts = []
  ends = []
  for label in labels:
    end = next((end for end in _SHARES if label.endswith(end)), "")
    prompts.append(label.removesuffix(end))
    ends.append(end)
  return [label + end for label, end in zip(prompt_labels(prompts), ends, strict=True)]


def compared(alone: bool, prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """Repeats each prompt for each of `shares_of`, in the order of its results, with the
  end added to its label."""
  pairs = itertools.product(prompts, shares_of(alone))
  return [named._replace(label=named.label + end) for named, end in pairs]
