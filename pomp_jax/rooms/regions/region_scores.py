"""Scores of regions under a class matrix, by a network's embeddings and CLIP's crops.

Shapes: R regions of an image, C classes, E embedding.
"""

from jaxtyping import Bool, Float
import numpy as np

from pomp_jax.evaluate.class_matrix import ClassMatrix
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.rooms.regions.files import RegionHeader, Regions
from pomp_jax.rooms.regions.scores import Fusion, Scores, class_scores, fuse, with_objectness


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
