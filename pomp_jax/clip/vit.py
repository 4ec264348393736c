"""CLIP's ViT on FlaxCLIP's parameter tree (Radford et al., 2021), with learned tokens or without.

Pre-norm transformer over a class token and patches (Dosovitskiy et al., 2021), with one more norm
after the embeddings.

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


class Last(NamedTuple):
  """How the last layer is computed; by default CLIP's own, and for the class token alone."""

  n_read: int | None = 1  # tokens from the first on that are computed; None for all
  # Factors of the attention's scores, of q(uery) and k(ey): the softmax of each pair, added up.
  # Without one each token attends to itself alone.
  pairs: tuple[str, ...] = ("qk",)
  whole_layer: bool = True  # whether the residual connection and the MLP are kept
  bias: np.ndarray | None = None  # added to the scores, [1,1,T,T]


class VisionTransformer(nn.Module):
  """The tower: normalised pixels to tokens; parameters stay float32 for any compute type.

  `config` is HuggingFace's CLIPVisionConfig, or an object with its fields.
  """

  config: Any
  dtype: DTypeLike = jnp.float32
  last: Last = Last()

  @nn.compact
  def __call__(
    self,
    pixels_BxHxWx3: Float[Array, "B H W 3"],
    learned_JxVxD: Float[Array, "J V D"] | None = None,
  ) -> Float[Array, "B t D"]:
    """The output tokens that `last` reads, in the compute type.

    The parameters have a position for each patch of the images. Learned tokens have none: the first
    enter before the first norm, and layer j replaces those of the layer before by its own.
    """
    norm = functools.partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    hidden = _Embeddings(self.config, self.dtype, name="embeddings")(pixels_BxHxWx3)
    n_own = hidden.shape[1]
    if learned_JxVxD is not None:
      hidden = _with_tokens(hidden, n_own, learned_JxVxD[0])
    hidden = norm(name="pre_layrnorm")(hidden)
    encoder = Encoder(self.config, self.dtype, self.last, name="encoder")
    hidden = encoder(hidden, n_own, learned_JxVxD)
    return norm(name="post_layernorm")(hidden)


class Encoder(nn.Module):
  """The layers, which FlaxCLIP's tree has two levels down; those of the text tower are the same."""

  config: Any
  dtype: DTypeLike = jnp.float32
  last: Last = Last()

  @nn.compact
  def __call__(
    self,
    hidden_BxTxD: Float[Array, "B T D"],
    n_own: int = 0,
    learned_JxVxD: Float[Array, "J V D"] | None = None,
  ) -> Float[Array, "B t D"]:
    """Output tokens; learned ones stand behind an image's `n_own`."""
    layers = _Layers(self.config, self.dtype, self.last, name="layers")
    return layers(hidden_BxTxD, n_own, learned_JxVxD)


class _Layers(nn.Module):
  """Layers named by their number."""

  config: Any
  dtype: DTypeLike
  last: Last

  @nn.compact
  def __call__(self, hidden: Array, n_own: int, learned_JxVxD: Array | None) -> Array:
    n_layers = self.config.num_hidden_layers
    for j in range(n_layers):
      if learned_JxVxD is not None and 0 < j < len(learned_JxVxD):
        hidden = _with_tokens(hidden, n_own, learned_JxVxD[j])
      how = self.last if j == n_layers - 1 else Last(n_read=None)
      hidden = _Layer(self.config, self.dtype, how, name=str(j))(hidden)
    return hidden


class _Layer(nn.Module):
  """Attention and an MLP, each after a norm."""

  config: Any
  dtype: DTypeLike
  how: Last

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    norm = functools.partial(nn.LayerNorm, epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    attention = _Attention(self.config.num_attention_heads, self.dtype, self.how, name="self_attn")
    attended = attention(norm(name="layer_norm1")(hidden))
    if not self.how.whole_layer:
      return attended
    hidden = hidden[:, : self.how.n_read] + attended
    inner = norm(name="layer_norm2")(hidden)
    return hidden + _Mlp(self.config, self.dtype, name="mlp")(inner)


class _Attention(nn.Module):
  """Multi-head attention; `n_read` only for the pair qk."""

  n_heads: int
  dtype: DTypeLike
  how: Last

  @nn.compact
  def __call__(self, x_BxTxD: Array) -> Array:
    width, how = x_BxTxD.shape[-1], self.how
    if width % self.n_heads:
      raise ValueError(f"num_attention_heads: got {self.n_heads}, expected a divisor of {width}")

    def heads(name: str) -> Array:
      rows = x_BxTxD[:, : how.n_read] if name == "q" else x_BxTxD
      projected = nn.Dense(width, dtype=self.dtype, name=f"{name}_proj")(rows)
      return projected.reshape(*rows.shape[:2], self.n_heads, width // self.n_heads)

    of = {name: heads(name) for name in sorted({"v", *"".join(how.pairs)})}
    attended_BxTxnxe = of["v"]
    if how.pairs:
      attended_BxTxnxe = sum(
        nn.dot_product_attention(of[pair[0]], of[pair[1]], of["v"], how.bias) for pair in how.pairs
      )
    return nn.Dense(width, dtype=self.dtype, name="out_proj")(
      attended_BxTxnxe.reshape(*attended_BxTxnxe.shape[:2], width)
    )


class _Mlp(nn.Module):
  """Two dense layers with the configuration's activation."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BxTxD: Array) -> Array:
    name, width = self.config.hidden_act, x_BxTxD.shape[-1]
    if name not in ACTIVATIONS:
      raise ValueError(f"hidden_act: got {name!r}, expected {', '.join(ACTIVATIONS)}")
    inner = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x_BxTxD)
    return nn.Dense(width, dtype=self.dtype, name="fc2")(ACTIVATIONS[name](inner))


class _Embeddings(nn.Module):
  """Class token and patches with their positions [B,T,D]."""

  config: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, pixels_BxHxWx3: Array) -> Array:
    width, patch = self.config.hidden_size, (self.config.patch_size,) * 2
    class_D = self.param("class_embedding", nn.initializers.normal(0.02), (width,))
    convolution = nn.Conv(
      width, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
    )
    patches_BxhxwxD, n_images = convolution(pixels_BxHxWx3), len(pixels_BxHxWx3)
    classes_Bx1xD = jnp.broadcast_to(class_D, (n_images, 1, width))
    patches_BxPxD = patches_BxhxwxD.reshape(n_images, -1, width)
    tokens_BxTxD = jnp.concatenate([classes_Bx1xD, patches_BxPxD], axis=1)
    return (
      tokens_BxTxD + nn.Embed(tokens_BxTxD.shape[1], width, name="position_embedding").embedding
    )


def _with_tokens(hidden_BxTxD: Array, n_own: int, tokens_VxD: Array) -> Array:
  """Puts learned tokens after an image's own, in place of those there."""
  tokens_BxVxD = jnp.broadcast_to(tokens_VxD, (len(hidden_BxTxD), *tokens_VxD.shape))
  return jnp.concatenate([hidden_BxTxD[:, :n_own], tokens_BxVxD.astype(hidden_BxTxD.dtype)], axis=1)
