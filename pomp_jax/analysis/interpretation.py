"""Learned vectors in words: the tokens of the vocabulary whose embeddings lie nearest.

Shapes: M vectors, V tokens of the vocabulary, D width, T nearest tokens.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

# Tokens that `token_spacing` looks at.
_SAMPLE = 512


class Nearest(NamedTuple):
  """The nearest tokens of each vector, nearest first.

  Attributes:
    tokens: token ids.
    distances: Euclidean, in the embedding's own units.
  """

  tokens: Int[np.ndarray, "M T"]
  distances: Float[np.ndarray, "M T"]


def nearest_tokens(
  vectors_MxD: Float[np.ndarray, "M D"], embeddings_VxD: Float[np.ndarray, "V D"], top: int
) -> Nearest:
  """The tokens nearest to each vector by Euclidean distance, as in CoOp (Zhou et al., 2022).

  Args:
    vectors_MxD: the learned context.
    embeddings_VxD: the token embeddings of the CLIP.
    top: how many tokens; all of them if there are fewer. Ties go to the lower id.
  """
  distances_MxV = np.stack([_distances(vector_D, embeddings_VxD) for vector_D in vectors_MxD])
  tokens_MxT = np.argsort(distances_MxV, axis=-1, kind="stable")[:, :top]
  return Nearest(tokens_MxT, np.take_along_axis(distances_MxV, tokens_MxT, axis=-1))


def token_spacing(embeddings_VxD: Float[np.ndarray, "V D"]) -> float:
  """The median distance from a token to the nearest other one: what counts as near.

  Over at most 512 tokens, spread evenly over the ids.
  """
  n_tokens = len(embeddings_VxD)
  if n_tokens < 2:
    raise ValueError(f"distances between tokens need at least 2 of them, got {n_tokens}")
  nearest = []
  for token in np.linspace(0, n_tokens - 1, min(n_tokens, _SAMPLE)).astype(int):
    distances_V = _distances(embeddings_VxD[token], embeddings_VxD)
    distances_V[token] = np.inf
    nearest.append(distances_V.min())
  return float(np.median(nearest))


def _distances(vector_D: np.ndarray, embeddings_VxD: np.ndarray) -> np.ndarray:
  return np.sqrt(np.sum(np.square(embeddings_VxD - vector_D, dtype=np.float64), axis=-1))
