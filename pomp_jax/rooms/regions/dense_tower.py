"""Features of a ViT's patches under the published recipes, which change its last layer
alone.

Positions are interpolated to the grid of patches of an image. Shapes: B images, h by w
= P patches, T tokens (class and patches), D width, E embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax.clip.load import Clip
from pomp_jax.clip.precision import precision_of
from pomp_jax.clip.vision import normalized, project
from pomp_jax.clip.vit import Last, VisionTransformer
from pomp_jax.rooms.regions.torch_bicubic import bicubic_matrix


class Recipe(NamedTuple):
  """The last layer, and the positions of other grids; CLIP's own by default."""

  pairs: tuple[str, ...] = ("qk",)  # see `clip.vit.Last`
  whole_layer: bool = True
  # Standard deviation of a Gaussian of two patches' distance that is added to the
  # scores; 0: none.
  nearness: float = 0.0
  # Patches added to the grid's sides where positions are resampled; 0 as HuggingFace's.
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
  """Builds `(clip.vision_params, images [B,H,W,3]) -> unit features of patches
  [B,h,w,E]`.

  The CLIP has a ViT; sides of images are multiples of its patch size.
  """
  config: Any = clip.config.vision_config
  dtype, products = precision_of(dtype)

  def features(params, images_BxHxWx3):
    n_images, height, width, _ = images_BxHxWx3.shape
    grid = height // config.patch_size, width // config.patch_size
    last = Last(
      None, recipe.pairs, recipe.whole_layer, _nearness(grid, recipe.nearness)
    )
    vit, own = VisionTransformer(config, dtype, last), params["vision_model"]
    positions = own["embeddings"]["position_embedding"]["embedding"]
    side = config.image_size // config.patch_size
    positions = {"embedding": _resampled(positions, side, grid, recipe.offset)}
    embeddings = own["embeddings"] | {"position_embedding": positions}
    tokens = vit(own | {"embeddings": embeddings}, normalized(clip, images_BxHxWx3))
    patches_BxPxE = project(params, tokens)[:, 1:]
    patches_BxPxE /= jnp.linalg.norm(patches_BxPxE, axis=-1, keepdims=True)
    return patches_BxPxE.reshape(n_images, *grid, -1)

  return jax.default_matmul_precision(products)(features)


def _resampled(
  positions_TxD: jax.Array, side: int, grid: tuple[int, int], offset: float
) -> jax.Array:
  """Position embeddings of a grid, as torch's bicubic `interpolate` resamples them."""
  if grid == (side, side):
    return positions_TxD
  rows, columns = (
    bicubic_matrix(n, side, scale=(n + offset) / side if offset else None) for n in grid
  )
  square = positions_TxD[1:].reshape(side, side, -1)
  resampled = jnp.einsum("hi,wj,ijd->hwd", rows, columns, square)
  return jnp.concatenate([positions_TxD[:1], resampled.reshape(grid[0] * grid[1], -1)])


def _nearness(grid: tuple[int, int], deviation: float) -> np.ndarray | None:
  """exp(-d^2 / (2 s^2)) of every two patches d apart, 0 for the class token,
  [1,1,T,T] (NACLIP)."""
  if not deviation:
    return None
  places_Px2 = np.indices(grid).reshape(2, -1).T
  squares = ((places_Px2[:, None] - places_Px2) ** 2).sum(axis=-1)
  near_TxT = np.pad(np.exp(-squares / (2 * deviation**2)), ((1, 0), (1, 0)))
  return near_TxT[None, None].astype(np.float32)
