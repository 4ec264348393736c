"""Where features lie on the unit sphere: alignment, uniformity, similarity, a plane to look at.

All on the host, sums in float64. Shapes: n images, N classes, P prompts, E embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

# Rows of a similarity matrix at a time: 64 MB of cosines for 20,000 classes.
_CHUNK = 768


def alignment(
  image_features_nxE: Float[np.ndarray, "n E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_n: Int[np.ndarray, " n"],
) -> float:
  """How near images lie to the text of their class; lower is nearer, 0 to 4.

  mean_i ||f(x_i) - g(t_{y_i})||^2, Wang & Isola (2020), eq. 1 with alpha = 2, over pairs of an
  image and its class as POMP's analysis has it.

  Args:
    image_features_nxE: unit rows.
    class_features_NxE: unit rows.
    labels_n: the class of each image.

  Raises:
    ValueError: no images.
  """
  if not len(labels_n):
    raise ValueError("alignment needs at least one image")
  gaps_nxE = image_features_nxE - class_features_NxE[labels_n]
  return float(np.mean(np.sum(np.square(gaps_nxE, dtype=np.float64), axis=-1)))


def uniformity(class_features_NxE: Float[np.ndarray, "N E"], temperature: float = 2.0) -> float:
  """How evenly class features spread over the sphere; lower is more even.

  log mean_{i<j} exp(-t ||g_i - g_j||^2), Wang & Isola (2020), eq. 2. All pairs are counted, a
  block of rows at a time.

  Args:
    class_features_NxE: unit rows.
    temperature: t, dimensionless.

  Raises:
    ValueError: fewer than two classes.
  """
  n_classes = len(class_features_NxE)
  if n_classes < 2:
    raise ValueError(f"uniformity needs at least 2 classes, got {n_classes}")
  total = 0.0
  for start in range(0, n_classes, _CHUNK):
    block_RxE = class_features_NxE[start : start + _CHUNK]
    # The later classes alone: each pair once.
    cosines_RxS = block_RxE @ class_features_NxE[start:].T
    # ||a - b||^2 = 2 - 2 a.b on the unit sphere.
    potential_RxS = np.exp(2 * temperature * (cosines_RxS - 1), dtype=np.float64)
    total += np.sum(np.triu(potential_RxS, 1))
  return float(np.log(total / (n_classes * (n_classes - 1) / 2)))


def prompt_similarity(
  features_PxNxE: Sequence[Float[np.ndarray, "N E"]],
) -> Float[np.ndarray, "P P"]:
  """How alike prompts describe the same classes: the mean cosine of a class's two features.

  Args:
    features_PxNxE: unit class features under each of P prompts.
  """
  return np.array(
    [
      [np.mean(np.sum(a.astype(np.float64) * b, axis=-1)) for b in features_PxNxE]
      for a in features_PxNxE
    ]
  )


class Plane(NamedTuple):
  """A plane through the features.

  Attributes:
    points: coordinates of each class.
    explained: the share of all variance that each axis carries.
  """

  points: Float[np.ndarray, "N 2"]
  explained: tuple[float, float]


def branch_plane(features_NxE: Float[np.ndarray, "N E"], branch_N: Int[np.ndarray, " N"]) -> Plane:
  """The plane in which the branches' means lie farthest apart, and every class in it.

  The first two principal axes of the means, each weighted by its classes; with fewer than three
  branches of the features themselves. An axis points where its largest component is positive.

  Args:
    features_NxE: class features.
    branch_N: the branch of each class, a small number.
  """
  centred_NxE = np.asarray(features_NxE, np.float64) - np.mean(features_NxE, axis=0)
  spread_NxE = centred_NxE
  branches = np.unique(branch_N)
  if len(branches) >= 3:
    means = {branch: centred_NxE[branch_N == branch].mean(axis=0) for branch in branches}
    spread_NxE = np.stack([means[branch] for branch in branch_N])
  _, vectors_ExE = np.linalg.eigh(spread_NxE.T @ spread_NxE)
  axes_2xE = vectors_ExE.T[::-1][:2]
  largest_2x1 = np.argmax(np.abs(axes_2xE), axis=-1, keepdims=True)
  axes_2xE = axes_2xE * np.sign(np.take_along_axis(axes_2xE, largest_2x1, axis=-1))
  points_Nx2 = centred_NxE @ axes_2xE.T
  variance = np.sum(np.square(points_Nx2), axis=0) / max(np.sum(np.square(centred_NxE)), 1e-300)
  return Plane(points_Nx2, (float(variance[0]), float(variance[1])))
