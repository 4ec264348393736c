"""Dense features of a frozen ViT without training: the last layer with another attention.

All other layers are CLIP's. Positions are interpolated to the image's grid of patches.
Shapes: B images of H by W pixels, h by w patches, T = 1 + hw tokens (class first), D width, E
embedding, n heads of width e.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
import numpy as np
from transformers.models.clip.modeling_flax_clip import FlaxCLIPEncoderLayer, FlaxCLIPMLP

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.torch_bicubic import bicubic_matrix
from pomp_jax.clip.vision import in_chunks, normalized

DenseTower = Callable[[Params, Num[Array, "B H W 3"]], Float[Array, "B h w E"]]


class Recipe(NamedTuple):
  """The last layer of a recipe.

  Attributes:
    pairs: factors of the attention's scores, of q(uery) and k(ey): the softmax of each pair, added
      up. Without one each token attends to itself alone.
    whole_layer: whether the residual connection and the MLP are kept.
    nearness: standard deviation, in patches, of a Gaussian of the distance between two patches that
      is added to the scores; 0 for none.
    offset: patches added to the grid's sides where positions are resampled; 0 as HuggingFace's.
  """

  pairs: tuple[str, ...]
  whole_layer: bool
  nearness: float = 0.0
  offset: float = 0.1


RECIPES = {
  "clip": Recipe(("qk",), True, offset=0.0),
  "maskclip": Recipe((), True),  # Zhou et al. (2022)
  "sclip": Recipe(("qq", "kk"), True),  # Wang et al. (2024)
  "clearclip": Recipe(("qq",), False),  # Lan et al. (2024)
  "naclip": Recipe(("kk",), False, nearness=5.0),  # Hajimiri et al. (2025)
}


def dense_tower(clip: Clip, recipe: Recipe, dtype: Any = jnp.float32, chunk: int = 0) -> DenseTower:
  """Builds `(clip.vision_params, images) -> unit features of patches`, float32 [B,h,w,E].

  Args:
    clip: a CLIP with a ViT.
    recipe: one of RECIPES' values, or another.
    dtype: compute type of the layers, see `clip.precision`.
    chunk: the most images in memory together; 0 for all.

  Raises:
    ClipError: the CLIP has a ResNet; or, when images are given, sides that are no multiples of the
      patch size.
  """
  tokens = token_tower(clip, recipe, dtype)
  config: Any = clip.config.vision_config

  def features(params, images_BxHxWx3):
    n_images, height, width, _ = images_BxHxWx3.shape
    patches_BxPxE = tokens(params, images_BxHxWx3)[:, 1:]
    patches_BxPxE /= jnp.linalg.norm(patches_BxPxE, axis=-1, keepdims=True)
    return patches_BxPxE.reshape(
      n_images, *(side // config.patch_size for side in (height, width)), -1
    )

  return in_chunks(features, chunk)


def token_tower(
  clip: Clip, recipe: Recipe, dtype: Any = jnp.float32
) -> Callable[[Params, Num[Array, "B H W 3"]], Float[Array, "B T E"]]:
  """Builds `(clip.vision_params, images) -> projected tokens`, not normalised.

  See `dense_tower`. Under RECIPES["clip"] the class token is CLIP's image feature.
  """
  config: Any = clip.config.vision_config
  if isinstance(config, ResNetConfig):
    raise ClipError(f"{clip.name}: a ResNet; dense recipes need a ViT")
  dtype, products = precision_of(dtype)
  layer = FlaxCLIPEncoderLayer(config, dtype=dtype)
  norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)
  mlp = FlaxCLIPMLP(config, dtype=dtype)

  def tokens(params, images_BxHxWx3):
    model = params["vision_model"]
    *first, last = (model["encoder"]["layers"][str(j)] for j in range(config.num_hidden_layers))
    hidden, grid = _embed(clip, model["embeddings"], recipe.offset, dtype, images_BxHxWx3)
    hidden = norm.apply({"params": model["pre_layrnorm"]}, hidden)
    for weights in first:
      hidden = layer.apply({"params": weights}, hidden, None)[0]
    attended = _attend(
      recipe,
      last["self_attn"],
      config.num_attention_heads,
      grid,
      norm.apply({"params": last["layer_norm1"]}, hidden),
    )
    if recipe.whole_layer:
      hidden = hidden + attended
      inner = norm.apply({"params": last["layer_norm2"]}, hidden)
      hidden = hidden + mlp.apply({"params": last["mlp"]}, inner)
    else:
      hidden = attended
    hidden = norm.apply({"params": model["post_layernorm"]}, hidden)
    kernel_DxE = params["visual_projection"]["kernel"].astype(dtype)
    return (hidden @ kernel_DxE).astype(jnp.float32)

  return with_products(products, tokens)


def _embed(clip, params, offset, dtype, images_BxHxWx3):
  """Tokens [B,T,D] with their positions, and the grid (h, w)."""
  patch = clip.config.vision_config.patch_size
  n_images, *sides, _ = images_BxHxWx3.shape
  if any(side % patch for side in sides):
    raise ClipError(f"images: got {sides[0]} x {sides[1]}, expected multiples of {patch} pixels")
  grid = sides[0] // patch, sides[1] // patch
  pixels = normalized(clip, images_BxHxWx3)
  width = params["class_embedding"].shape[0]
  convolution = nn.Conv(width, (patch, patch), (patch, patch), "VALID", use_bias=False, dtype=dtype)
  patches = convolution.apply({"params": params["patch_embedding"]}, pixels)
  classes = jnp.broadcast_to(params["class_embedding"].astype(dtype), (n_images, 1, width))
  hidden = jnp.concatenate([classes, patches.reshape(n_images, -1, width)], axis=1)
  positions_TxD = _positions(params["position_embedding"]["embedding"], grid, offset)
  return hidden + positions_TxD.astype(dtype), grid


def _positions(stored_TxD, grid, offset):
  """Position embeddings of a grid, as torch's bicubic `interpolate` resamples them."""
  side = round((len(stored_TxD) - 1) ** 0.5)
  if grid == (side, side):
    return stored_TxD
  rows, columns = (
    bicubic_matrix(n, side, scale=(n + offset) / side if offset else None) for n in grid
  )
  square = stored_TxD[1:].reshape(side, side, -1)
  resampled = jnp.einsum("hi,wj,ijd->hwd", rows, columns, square)
  return jnp.concatenate([stored_TxD[:1], resampled.reshape(grid[0] * grid[1], -1)])


def _attend(recipe, params, n_heads, grid, hidden_BxTxD):
  """Attention of the last layer with its projections."""
  dtype = hidden_BxTxD.dtype
  near_TxT = _nearness(grid, recipe.nearness) if recipe.nearness else 0.0

  def dense(name, rows):
    return rows @ params[name]["kernel"].astype(dtype) + params[name]["bias"].astype(dtype)

  def heads(name):
    rows = dense(f"{name}_proj", hidden_BxTxD)
    return rows.reshape(*rows.shape[:2], n_heads, -1)

  def weights(pair):
    one, two = (heads(name) for name in pair)
    scores_BxnxTxT = jnp.einsum("btne,bsne->bnts", one, two) * one.shape[-1] ** -0.5
    return jax.nn.softmax(scores_BxnxTxT.astype(jnp.float32) + near_TxT, axis=-1).astype(dtype)

  attended = heads("v")
  if recipe.pairs:
    attended = jnp.einsum("bnts,bsne->btne", sum(map(weights, recipe.pairs)), attended)
  return dense("out_proj", attended.reshape(hidden_BxTxD.shape))


def _nearness(grid: tuple[int, int], deviation: float) -> np.ndarray:
  """exp(-d^2 / (2 s^2)) of every two patches d apart, [T,T]; 0 for the class token (NACLIP)."""
  places_Px2 = np.indices(grid).reshape(2, -1).T
  squares = ((places_Px2[:, None] - places_Px2) ** 2).sum(axis=-1)
  return np.pad(np.exp(-squares / (2 * deviation**2)), ((1, 0), (1, 0))).astype(np.float32)
