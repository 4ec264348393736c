"""Geometry of features and learned vectors: alignment, uniformity, maps, nearest tokens.

Everything runs on the host, with sums in float64. Shapes: n images, N classes, P prompts,
E embedding, M context vectors, V tokens of the vocabulary, D width, T nearest tokens.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np
from scipy.spatial.distance import cdist

from pomp_jax.data.wordnet import Tree
from pomp_jax.world.names import SHAPES

# Rows of a similarity matrix at a time: 64 MB of cosines for 20,000 classes.
_CHUNK = 768
# Share of the classes from which on a branch is shown by itself.
_SMALLEST_BRANCH = 1 / 50
# Tokens in the sample of `token_spacing`.
_SAMPLE = 512


def alignment(
  image_features_nxE: Float[np.ndarray, "n E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_n: Int[np.ndarray, " n"],
) -> float:
  """Computes the mean squared distance between images and the text of their class, 0 to 4.

  mean_i ||f(x_i) - g(t_{y_i})||^2, Wang & Isola (2020), eq. 1 with alpha = 2. As in POMP, the pairs
  are images and their classes.

  Args:
    image_features_nxE: unit rows.
    class_features_NxE: unit rows.
    labels_n: class of each image.

  Raises:
    ValueError: no images.
  """
  if not len(labels_n):
    raise ValueError("alignment needs at least one image")
  gaps_nxE = image_features_nxE - class_features_NxE[labels_n]
  return float(np.mean(np.sum(np.square(gaps_nxE, dtype=np.float64), axis=-1)))


def uniformity(class_features_NxE: Float[np.ndarray, "N E"], temperature: float = 2.0) -> float:
  """Computes how evenly class features spread over the sphere; lower is more even.

  log mean_{i<j} exp(-t ||g_i - g_j||^2), Wang & Isola (2020), eq. 2, over all pairs.

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
    # Later classes only: each pair once.
    cosines_RxS = block_RxE @ class_features_NxE[start:].T
    # ||a - b||^2 = 2 - 2 a.b on the unit sphere.
    potential_RxS = np.exp(2 * temperature * (cosines_RxS - 1), dtype=np.float64)
    total += np.sum(np.triu(potential_RxS, 1))
  return float(np.log(total / (n_classes * (n_classes - 1) / 2)))


def prompt_similarity(
  features_PxNxE: Sequence[Float[np.ndarray, "N E"]],
) -> Float[np.ndarray, "P P"]:
  """Computes the mean cosine between the features of a class under two prompts.

  Args:
    features_PxNxE: unit class features under each of P prompts.
  """
  stacked = np.stack(features_PxNxE).astype(np.float64)
  rows = stacked.reshape(len(stacked), -1)
  return rows @ rows.T / stacked.shape[1]


def branch_plane(
  features_NxE: Float[np.ndarray, "N E"], branch_N: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "N 2"], tuple[float, float]]:
  """Projects classes onto the plane in which the means of their branches lie farthest apart.

  The axes are the first two principal components of the means, each weighted by its number of
  classes; with fewer than three branches, of the features themselves. The largest component of an
  axis is positive.

  Args:
    features_NxE: class features.
    branch_N: branch index of each class.

  Returns:
    Coordinates of each class, and the share of all variance along each axis.
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
  return points_Nx2, (float(variance[0]), float(variance[1]))


class Branches(NamedTuple):
  """Classes in a few large groups, for the colours of a map.

  Attributes:
    names: name of each branch.
    of_class: branch of each class, an index into `names`.
  """

  names: tuple[str, ...]
  of_class: Int[np.ndarray, " N"]


def wordnet_branches(
  tree: Tree, class_nodes_N: Int[np.ndarray, " N"], n_branches: int = 10
) -> Branches:
  """Cuts WordNet's tree into branches of comparable size.

  Starting at the root, the branch with most classes is split into its children until about
  n_branches hold at least 2% of the classes each. Smaller ones become "other". A class with two
  parents belongs to the first by id.

  Args:
    tree: WordNet's tree.
    class_nodes_N: nodes of the classes.
    n_branches: target number of branches.
  """
  branch_N = np.full(len(class_nodes_N), tree.root)
  children = np.repeat(np.arange(len(tree)), tree.parents.lengths)
  split: set[int] = set()
  while True:
    found, counts = np.unique(branch_N, return_counts=True)
    large = {int(b): int(n) for b, n in zip(found, counts, strict=True)}
    large = {b: n for b, n in large.items() if n >= _SMALLEST_BRANCH * len(branch_N)}
    divisible = [b for b in large if b not in split]
    if len(large) >= n_branches or not divisible:
      break
    largest = max(divisible, key=large.__getitem__)
    split.add(largest)
    members = np.flatnonzero(branch_N == largest)
    for child in children[tree.parents.values == largest]:
      below = members[tree.is_ancestor(child, class_nodes_N[members])]
      branch_N[below] = child
      members = np.setdiff1d(members, below)
  order = sorted(large, key=lambda b: -large[b])
  index = {b: i for i, b in enumerate(order)}
  of_class = np.array([index.get(int(b), len(order)) for b in branch_N])
  other = ("other",) if np.any(of_class == len(order)) else ()
  return Branches((*(tree.names[b] for b in order), *other), of_class)


def shape_branches(names: Sequence[str]) -> Branches | None:
  """Groups the classes of the embedded world by shape; None for other class names."""
  pattern = re.compile(rf" ({'|'.join(map(re.escape, SHAPES))}) on ")
  found = [pattern.search(name) for name in names]
  if not all(found):
    return None
  shapes = np.array([SHAPES.index(match[1]) for match in found if match])
  present, of_class = np.unique(shapes, return_inverse=True)
  return Branches(tuple(SHAPES[s] for s in present), of_class)


def nearest_tokens(
  vectors_MxD: Float[np.ndarray, "M D"], embeddings_VxD: Float[np.ndarray, "V D"], top: int
) -> tuple[Int[np.ndarray, "M T"], Float[np.ndarray, "M T"]]:
  """Finds the tokens nearest to each vector, as in CoOp (Zhou et al., 2022).

  Args:
    vectors_MxD: learned context.
    embeddings_VxD: token embeddings of the CLIP.
    top: number of tokens, at most V. Ties go to the lower id.

  Returns:
    Token ids and Euclidean distances, nearest first.
  """
  distances_MxV = cdist(vectors_MxD, embeddings_VxD)
  tokens_MxT = np.argsort(distances_MxV, axis=-1, kind="stable")[:, :top]
  return tokens_MxT, np.take_along_axis(distances_MxV, tokens_MxT, axis=-1)


def token_spacing(embeddings_VxD: Float[np.ndarray, "V D"]) -> float:
  """Returns the median distance from a token to its nearest neighbour.

  The median is over at most 512 tokens, spread evenly over the ids.
  """
  n_tokens = len(embeddings_VxD)
  if n_tokens < 2:
    raise ValueError(f"distances between tokens need at least 2 of them, got {n_tokens}")
  tokens = np.linspace(0, n_tokens - 1, min(n_tokens, _SAMPLE)).astype(int)
  distances = cdist(embeddings_VxD[tokens], embeddings_VxD)
  distances[np.arange(len(tokens)), tokens] = np.inf
  return float(np.median(distances.min(axis=-1)))
