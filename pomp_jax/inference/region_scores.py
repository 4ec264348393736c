"""Regions under a class matrix: scores of a network's embeddings and CLIP's crops, label maps.

Shapes: R regions of an image, H, W its sides in pixels, C classes, E embedding.
"""

from jaxtyping import Bool, Float, Int32
import numpy as np

from pomp_jax.inference.class_matrix import ClassMatrix
from pomp_jax.regions.files import RegionHeader, Regions
from pomp_jax.regions.scores import Fusion, Scores, class_scores, fuse, with_objectness

# Pixels whose scores of all classes are in memory together.
_PIXELS = 8192


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

  Args:
    regions: regions; without embeddings CLIP's scores are returned.
    header: what the embeddings are compared by; None: CLIP's scores are returned.
    clip_RxE: unit features of the crops; a row of zeros: no crop. None: no crops at all.
    matrix: the classes under a prompt.
    logit_scale: CLIP's factor on cosines.
    fusion: how the network's scores and CLIP's are fused.
    trained_C: classes that the network was trained on.
    objectness: whether to return sqrt(score * objectness).

  Raises:
    ValueError: neither embeddings nor crops.
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
  if objectness and regions.objectness is not None:
    return np.asarray(with_objectness(scores_RxC, regions.objectness))
  return scores_RxC


def label_map_of_regions(
  scores_RxC: Float[np.ndarray, "R C"],
  masks_RxHxW: Float[np.ndarray, "R H W"] | Bool[np.ndarray, "R H W"],
) -> Int32[np.ndarray, "H W"]:
  """The class of the highest sum over regions of score * mask at each pixel, as in MaskFormer.

  Args:
    scores_RxC: scores of the regions.
    masks_RxHxW: weights of the pixels, 0 or more.

  Returns:
    Classes; -1 where no mask has a weight.
  """
  masks_RxP = masks_RxHxW.reshape(len(masks_RxHxW), np.prod(masks_RxHxW.shape[1:]))
  labels_P = np.full(masks_RxP.shape[1], -1, np.int32)
  n_regions_P = (masks_RxP > 0).sum(axis=0)
  # A single region's weight does not change the order of its classes.
  single = np.flatnonzero(n_regions_P == 1)
  if single.size:
    labels_P[single] = scores_RxC.argmax(axis=1)[masks_RxP[:, single].argmax(axis=0)]
  several = np.flatnonzero(n_regions_P > 1)
  for start in range(0, len(several), _PIXELS):
    part = several[start : start + _PIXELS]
    labels_P[part] = (masks_RxP[:, part].T @ scores_RxC).argmax(axis=1)
  return labels_P.reshape(masks_RxHxW.shape[1:])
