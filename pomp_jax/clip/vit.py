"""CLIP's ViT on FlaxCLIP's parameter tree: with learned tokens, or dense (Radford et al., 2021).

Pre-norm transformer over a class token and patches (Dosovitskiy et al., 2021), with one more norm
after the embeddings. A recipe of dense features changes the last layer alone.

Shapes: B images of H by W pixels, h by w patches, T tokens (class, patches, learned), D width, J
layers with learned tokens of their own, V of these in each.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
import numpy as np

from pomp_jax.clip.packed import ACTIVATIONS
from pomp_jax.clip.torch_bicubic import bicubic_matrix


class Recipe(NamedTuple):
  """The last layer, and the positions of other grids; CLIP's own by default."""

  # Factors of the attention's scores, of q(uery) and k(ey): the softmax of each pair, added up.
  # Without one each token attends to itself alone.
  pairs: tuple[str, ...] = ("qk",)
  whole_layer: bool = True  # whether the residual connection and the MLP are kept
  # Standard deviation, in patches, of a Gaussian of the distance between two patches that is added
  # to the scores; 0 for none.
  nearness: float = 0.0
  # Patches added to the grid's sides where positions are resampled; 0 as HuggingFace's.
  offset: float = 0.0


class VisionTransformer(nn.Module):
  """The tower: normalised pixels to tokens; parameters stay float32 for any compute type.

  `config` is HuggingFace's CLIPVisionConfig, or an object with its fields.
  """

  config: Any
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    pixels_BxHxWx3: Float[Array, "B H W 3"],
    learned_JxVxD: Float[Array, "J V D"] | None = None,
    recipe: Recipe | None = None,
  ) -> Float[Array, "B t D"]:
    """Output tokens in the compute type: t = T under a recipe, without one t = 1, the class token.

    The images' sides are multiples of the patch size. Learned tokens have no positions: the first
    enter before the first norm, and layer j replaces those of the layer before by its own.
    """
    norm = functools.partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    hidden, grid = _Embeddings(self.config, self.dtype, name="embeddings")(
      pixels_BxHxWx3, recipe.offset if recipe else 0.0
    )
    n_own = hidden.shape[1]
    if learned_JxVxD is not None:
      hidden = _with_tokens(hidden, n_own, learned_JxVxD[0])
    hidden = norm(name="pre_layrnorm")(hidden)
    hidden = Encoder(self.config, self.dtype, name="encoder")(
      hidden, n_own, grid, learned_JxVxD, recipe
    )
    return norm(name="post_layernorm")(hidden)


class Encoder(nn.Module):
  """The layers, which FlaxCLIP's tree has two levels down; those of the text tower are the same."""

  config: Any
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, hidden_BxTxD: Float[Array, "B T D"], *inputs) -> Float[Array, "B t D"]:
    """See `_Layers`."""
    return _Layers(self.config, self.dtype, name="layers")(hidden_BxTxD, *inputs)


class _Layers(nn.Module):
  """Layers named by their number; the last one differs by the recipe."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, hidden, n_own=None, grid=None, learned_JxVxD=None, recipe=None):
    last = self.config.num_hidden_layers - 1
    n_learned = 0 if learned_JxVxD is None else learned_JxVxD.shape[0]
    for j in range(last + 1):
      if 0 < j < n_learned:
        hidden = _with_tokens(hidden, n_own, learned_JxVxD[j])
      layer = _Layer(self.config, self.dtype, name=str(j))
      if j < last:
        hidden = layer(hidden)
      else:
        hidden = layer(hidden, n_read=None if recipe else 1, recipe=recipe, grid=grid)
    return hidden


class _Layer(nn.Module):
  """Attention and an MLP, each after a norm; computed for the first `n_read` tokens alone."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, hidden, n_read=None, recipe=None, grid=None):
    recipe = recipe or Recipe()
    norm = functools.partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    attended = _Attention(self.config.num_attention_heads, self.dtype, name="self_attn")(
      norm(name="layer_norm1")(hidden), n_read, recipe.pairs, _nearness(grid, recipe.nearness)
    )
    if not recipe.whole_layer:
      return attended
    hidden = hidden[:, :n_read] + attended
    inner = norm(name="layer_norm2")(hidden)
    return hidden + _Mlp(self.config, self.dtype, name="mlp")(inner)


class _Attention(nn.Module):
  """Multi-head attention of the first `n_read` tokens (only for the pair qk), or of all."""

  n_heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BxTxD, n_read, pairs, bias):
    width = x_BxTxD.shape[-1]
    if width % self.n_heads:
      raise ValueError(f"num_attention_heads: got {self.n_heads}, expected a divisor of {width}")

    def heads(name):
      rows = x_BxTxD[:, :n_read] if name == "q" else x_BxTxD
      projected = nn.Dense(width, dtype=self.dtype, name=f"{name}_proj")(rows)
      return projected.reshape(*rows.shape[:2], self.n_heads, width // self.n_heads)

    of = {name: heads(name) for name in sorted({"v", *"".join(pairs)})}
    attended_BxTxnxe = of["v"]
    if pairs:
      attended_BxTxnxe = sum(
        nn.dot_product_attention(of[one], of[two], of["v"], bias) for one, two in pairs
      )
    return nn.Dense(width, dtype=self.dtype, name="out_proj")(
      attended_BxTxnxe.reshape(*attended_BxTxnxe.shape[:2], width)
    )


class _Mlp(nn.Module):
  """Two dense layers with the configuration's activation."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BxTxD):
    name, width = self.config.hidden_act, x_BxTxD.shape[-1]
    if name not in ACTIVATIONS:
      raise ValueError(f"hidden_act: got {name!r}, expected {', '.join(ACTIVATIONS)}")
    inner = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x_BxTxD)
    return nn.Dense(width, dtype=self.dtype, name="fc2")(ACTIVATIONS[name](inner))


class _Embeddings(nn.Module):
  """Class token and patches with their positions [B,T,D], and the grid (h, w)."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, pixels_BxHxWx3, offset):
    width, patch = self.config.hidden_size, (self.config.patch_size,) * 2
    class_D = self.param("class_embedding", nn.initializers.normal(0.02), (width,))
    convolution = nn.Conv(
      width, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
    )
    patches_BxhxwxD = convolution(pixels_BxHxWx3)
    n_images, *grid, _ = patches_BxhxwxD.shape
    classes_Bx1xD = jnp.broadcast_to(class_D, (n_images, 1, width))
    patches_BxPxD = patches_BxhxwxD.reshape(n_images, -1, width)
    side = self.config.image_size // self.config.patch_size
    positions = nn.Embed(1 + side**2, width, name="position_embedding").embedding
    tokens_BxTxD = jnp.concatenate([classes_Bx1xD, patches_BxPxD], axis=1)
    return tokens_BxTxD + _resampled(positions, side, tuple(grid), offset), tuple(grid)


def _with_tokens(hidden_BxTxD, n_own, tokens_VxD):
  """Puts learned tokens after an image's own, in place of those there."""
  tokens_BxVxD = jnp.broadcast_to(tokens_VxD, (len(hidden_BxTxD), *tokens_VxD.shape))
  return jnp.concatenate([hidden_BxTxD[:, :n_own], tokens_BxVxD.astype(hidden_BxTxD.dtype)], axis=1)


def _resampled(positions_TxD, side, grid, offset):
  """Position embeddings of a grid, as torch's bicubic `interpolate` resamples them."""
  if grid == (side, side):
    return positions_TxD
  rows, columns = (
    bicubic_matrix(n, side, scale=(n + offset) / side if offset else None) for n in grid
  )
  square = positions_TxD[1:].reshape(side, side, -1)
  resampled = jnp.einsum("hi,wj,ijd->hwd", rows, columns, square)
  return jnp.concatenate([positions_TxD[:1], resampled.reshape(grid[0] * grid[1], -1)])


def _nearness(grid: tuple[int, int] | None, deviation: float) -> np.ndarray | None:
  """exp(-d^2 / (2 s^2)) of every two patches d apart, 0 for the class token, [1,1,T,T] (NACLIP)."""
  if grid is None or not deviation:
    return None
  places_Px2 = np.indices(grid).reshape(2, -1).T
  squares = ((places_Px2[:, None] - places_Px2) ** 2).sum(axis=-1)
  near_TxT = np.pad(np.exp(-squares / (2 * deviation**2)), ((1, 0), (1, 0)))
  return near_TxT[None, None].astype(np.float32)
