"""Class scores of regions: of their embeddings under a class matrix, fused with CLIP's of crops.

Shapes: R regions, T stages of a detector, C classes, E embedding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from pomp_jax.data.class_lists import normalized_names
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.class_splits import ClassSplit
from pomp_jax.rooms.regions.mask_former.model import class_logits
from pomp_jax.rooms.regions.region_folder import RegionHeader, Regions

_Array = Array | np.ndarray


class Scores(NamedTuple):
  """Class scores of regions."""

  classes: Float[_Array, "R C"]  # probabilities
  null: Float[_Array, " R"]  # probability of no class; zeros where nothing models it


def class_scores(
  embeddings: Float[_Array, "R E"] | Float[_Array, "R T E"],
  classes_CxE: Float[_Array, "C E"],
  activation: str,
  scale: float,
  null_E: Float[_Array, " E"] | None = None,
) -> Scores:
  """Scores of region embeddings by the scaled cosine to each class; rows of any norm.

  Probabilities of several stages are averaged (Detic). The activation is one of ACTIVATIONS; the
  scale is 100 of CLIP and ZSSeg, 50 of Detic. `null_E` is the embedding of no class: ZSSeg learns
  it, F-VLM's is the text of background, and zeros give the logit 0, Detic's background.
  """
  logits = class_logits(embeddings, classes_CxE, null_E, scale)
  probabilities = (jax.nn.softmax if activation == "softmax" else jax.nn.sigmoid)(logits)
  if probabilities.ndim == 3:
    probabilities = probabilities.mean(axis=1)
  n_classes = len(classes_CxE)
  null = jnp.zeros(len(embeddings)) if null_E is None else probabilities[:, n_classes]
  return Scores(probabilities[:, :n_classes], null)


def fuse(
  net: Scores | None,
  clip: Scores | None,
  fusion: fields.Regions,
  trained_C: Bool[_Array, " C"],
  valid_R: Bool[_Array, " R"],
) -> Float[_Array, "R C"]:
  """Fuses a network's scores with CLIP's of crops: net^(1-e) clip^e, with e by class.

  One of both may be None. `trained_C` are the classes that the network was trained on, `valid_R`
  the regions that CLIP has seen. For the others CLIP's factor is 1 (ZSSeg: an empty mask); without
  a network their scores are 0.

  The exponents are those of `fusion`, whose `null` is what becomes of the probability of no class.
  `drop`: the network's softmax includes it and the classes stay as they are. `keep`: the network's
  own joins the fused classes, and all are normalised. `gate`: the network's softmax is over the
  classes alone; the fused classes are normalised and multiplied by 1 - null.
  """
  if clip is None:
    assert net is not None
    return net.classes
  if net is None:
    return jnp.where(valid_R[:, None], clip.classes, 0)
  exponent_C = jnp.where(trained_C, fusion.e_base, fusion.e_novel)
  of_net, of_clip = net.classes, jnp.where(valid_R[:, None], clip.classes, 1)
  if fusion.null == "gate":
    of_net = of_net / of_net.sum(axis=1, keepdims=True)
  fused_RxC = of_net ** (1 - exponent_C) * of_clip**exponent_C
  if fusion.null == "keep":
    return fused_RxC / (fused_RxC.sum(axis=1) + net.null)[:, None]
  if fusion.null == "gate":
    return fused_RxC * ((1 - net.null) / fused_RxC.sum(axis=1))[:, None]
  return fused_RxC


def region_scores(
  found: Regions,
  header: RegionHeader | None,
  clip_RxE: Float[np.ndarray, "R E"] | None,
  matrix: ClassMatrix,
  *,
  logit_scale: float,
  fusion: fields.Regions,
  trained_C: Bool[np.ndarray, " C"],
) -> Float[np.ndarray, "R C"]:
  """Scores of an image's regions; the highest among a class's names counts, as in SCLIP.

  Without embeddings, or a header by which they are compared, CLIP's scores are returned; without
  `clip_RxE` the network's. These are unit features of the crops, a row of zeros where there is
  none. For `fusion` and `trained_C` see `fuse`; with `fusion.objectness` a score becomes
  sqrt(score * objectness), as in Detic and ViLD. EvaluationError for scores not finite.
  """
  n_regions = len(found.boxes)
  # A power of two, for fewer compilations.
  n_rows = 1 << max(n_regions - 1, 1).bit_length()

  def scores_of(rows, *activation):
    padded = np.zeros((n_rows, *rows.shape[1:]), np.float32)
    padded[:n_regions] = rows
    classes, null = class_scores(padded, matrix.features, *activation)
    return Scores(matrix.over_names(np.asarray(classes)), null)

  net = clip = None
  if found.embeddings is not None and header is not None:
    null_E = None if header.null is None else np.array(header.null, np.float32)
    net = scores_of(found.embeddings, header.activation, header.scale, null_E)
  valid_R = np.ones(n_rows, bool)
  if clip_RxE is not None:
    clip = scores_of(clip_RxE, "softmax", logit_scale)
    valid_R[:n_regions] = clip_RxE.any(axis=1)
  scores_RxC = np.asarray(fuse(net, clip, fusion, trained_C, valid_R))[:n_regions]
  check_finite(scores_RxC, "regions")
  if fusion.objectness and found.objectness is not None:
    return np.asarray(jnp.sqrt(scores_RxC * found.objectness[:, None]))
  return scores_RxC


def trained_classes(header: RegionHeader | None, classes: ClassSplit) -> Bool[np.ndarray, " C"]:
  """Classes that a network was trained on: those that its file names, else the base classes."""
  if header is None or not header.trained_classes:
    return np.array(classes.groups) == "base"
  trained = set(normalized_names(header.trained_classes))
  return np.array([name in trained for name in normalized_names(classes.names)])
