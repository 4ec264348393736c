"""Patch features of a ViT under published recipes, which change only its last layer.

Position embeddings are resampled to the grid of an image's patches. Shapes: B images,
h by w = P patches, T tokens (class and patches), D width, E embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
import numpy as np

from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of
from pomp_jax.clip.vision import normalized, project
from pomp_jax.clip.vit import Last, VisionTransformer
from pomp_jax.rooms.regions.torch_bicubic import bicubic_matrix


class Recipe(NamedTuple):
  """How the last layer and the positions are computed; by default as CLIP does."""

  pairs: tuple[str, ...] = ("qk",)  # see `clip.vit.Last`
  whole_layer: bool = True  # see `clip.vit.Last`
  # Standard deviation, in patches, of the Gaussian of the distance between two patches
  # that is added to the attention's scores; 0: no Gaussian.
  nearness: float = 0.0
  # Added to the grid's sides in the scale that resamples positions; 0 as HuggingFace.
  offset: float = 0.0


RECIPES = {
  "clip": Recipe(),
  "maskclip": Recipe((), offset=0.1),  # Zhou et al. (2022)
  "sclip": Recipe(("qq", "kk"), offset=0.1),  # Wang et al. (2024)
  "clearclip": Recipe(("qq",), whole_layer=False, offset=0.1),  # Lan et al. (2024)
  # Hajimiri et al. (2025)
  "naclip": Recipe(("kk",), whole_layer=False, nearness=5.0, offset=0.1),
}


def dense_tower(clip: Clip, recipe: Recipe, dtype: Any = jnp.float32) -> Callable:
  """Builds a function from images to unit features of their patches.

  The function takes `clip.vision_params` and images [B,H,W,3], whose sides are
  multiples of the patch size, and returns features [B,h,w,E].

  Args:
    clip: CLIP with a ViT.
    recipe: computation of the last layer and the positions.
    dtype: type that the tower computes in.
  """
  config: Any = clip.config.vision_config
  dtype, products = precision_of(dtype)

  def with_positions_of(grid: tuple[int, int], vit_params: Params) -> Params:
    embeddings = vit_params["embeddings"]
    positions = embeddings["position_embedding"]["embedding"]
    side = config.image_size // config.patch_size
    resampled = {"embedding": _resampled(positions, side, grid, recipe.offset)}
    return vit_params | {"embeddings": embeddings | {"position_embedding": resampled}}

  def features(
    params: Params, images_BxHxWx3: Num[Array, "B H W 3"]
  ) -> Float[Array, "B h w E"]:
    n_images, height, width, _ = images_BxHxWx3.shape
    grid = (height // config.patch_size, width // config.patch_size)
    nearness = _nearness(grid, recipe.nearness)
    last = Last(None, recipe.pairs, recipe.whole_layer, nearness)
    vit = VisionTransformer(config, dtype, last)
    vit_params = with_positions_of(grid, params["vision_model"])
    tokens = vit(vit_params, normalized(clip, images_BxHxWx3))
    patches_BxPxE = project(params, tokens)[:, 1:]
    patches_BxPxE /= jnp.linalg.norm(patches_BxPxE, axis=-1, keepdims=True)
    return patches_BxPxE.reshape(n_images, *grid, -1)

  return jax.default_matmul_precision(products)(features)


def _resampled(
  positions_TxD: jax.Array, side: int, grid: tuple[int, int], offset: float
) -> jax.Array:
  """Resamples position embeddings to a grid, as torch's bicubic `interpolate` does."""
  if grid == (side, side):
    return positions_TxD

  def line(n_patches: int) -> jax.Array:
    scale = (n_patches + offset) / side if offset else None
    return bicubic_matrix(n_patches, side, scale=scale)

  class_position = positions_TxD[:1]
  square = positions_TxD[1:].reshape(side, side, -1)
  height, width = grid
  resampled = jnp.einsum("hi,wj,ijd->hwd", line(height), line(width), square)
  return jnp.concatenate([class_position, resampled.reshape(height * width, -1)])


def _nearness(grid: tuple[int, int], deviation: float) -> np.ndarray | None:
  """Computes exp(-d^2 / (2 s^2)), with d the distance of two patches (NACLIP).

  Args:
    grid: rows and columns of the patches.
    deviation: standard deviation s in patches; 0 for no Gaussian.

  Returns:
    The values [1,1,T,T] for all pairs of tokens; 0 for the class token, which is the
    first. None if the deviation is 0.
  """
  if deviation == 0:
    return None
  places_Px2 = np.indices(grid).reshape(2, -1).T
  difference_PxPx2 = places_Px2[:, None] - places_Px2
  squared_distance_PxP = (difference_PxPx2**2).sum(axis=-1)
  near_PxP = np.exp(-squared_distance_PxP / (2 * deviation**2))
  near_TxT = np.pad(near_PxP, ((1, 0), (1, 0)))
  return near_TxT[None, None].astype(np.float32)
