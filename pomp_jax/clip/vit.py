"""CLIP's ViT on FlaxCLIP's parameter tree (Radford et al., 2021).

A pre-norm transformer over a class token and patches (Dosovitskiy et al., 2021), with
one more norm before the first layer, and optionally with learned tokens.

Shapes: B images of H by W pixels, h by w patches, T tokens (class, patches, learned), t
tokens that `Last` computes, D width, J layers with learned tokens of their own, V
learned tokens in each of these layers, n heads of width e.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
import numpy as np

from pomp_jax.clip.packed import ACTIVATIONS


class Last(NamedTuple):
  """How the last layer is computed; by default as in CLIP, for the class token only."""

  n_read: int | None = 1  # number of first tokens that are computed; None for all
  # Which projections give the scores of attention: "qk" is query times key, "qq" query
  # times query. The attended values of several pairs are added. Without a pair each
  # token attends only to itself.
  pairs: tuple[str, ...] = ("qk",)
  whole_layer: bool = True  # whether the residual connection and the MLP are computed
  bias: np.ndarray | None = None  # summand of the scores, [1,1,T,T]


class VisionTransformer(NamedTuple):
  """The tower: normalised pixels to tokens.

  Parameters stay float32 for any compute type.
  """

  config: Any  # HuggingFace's CLIPVisionConfig, or an object with its fields
  dtype: DTypeLike = jnp.float32
  last: Last = Last()

  def __call__(
    self,
    params: Any,
    pixels_BxHxWx3: Float[Array, "B H W 3"],
    learned_JxVxD: Float[Array, "J V D"] | None = None,
  ) -> Float[Array, "B t D"]:
    """Computes the output tokens that `last` reads, in the compute type.

    Args:
      params: the tower's parameters, with a position for each patch of the images.
      pixels_BxHxWx3: normalised images.
      learned_JxVxD: learned tokens of the first J layers, without positions. The
        tokens of layer 0 enter before the first norm. Each later layer replaces the
        learned tokens by its own.
    """
    hidden = self._embedded(params["embeddings"], pixels_BxHxWx3)
    n_image_tokens = hidden.shape[1]
    n_learned = 0
    if learned_JxVxD is not None:
      n_learned = len(learned_JxVxD)
      hidden = _with_tokens(hidden, n_image_tokens, learned_JxVxD[0])
    hidden = self._norm(params["pre_layrnorm"], hidden)
    n_layers = self.config.num_hidden_layers
    for j in range(n_layers):
      if learned_JxVxD is not None and 0 < j < n_learned:
        hidden = _with_tokens(hidden, n_image_tokens, learned_JxVxD[j])
      is_last = j == n_layers - 1
      how = self.last if is_last else Last(n_read=None)
      hidden = self._layer(params["encoder"]["layers"][str(j)], hidden, how)
    return self._norm(params["post_layernorm"], hidden)

  def _embedded(self, params: Any, pixels_BxHxWx3: Array) -> Array:
    """Embeds images as class token and patches, with positions added [B,T,D]."""
    width = self.config.hidden_size
    patch = (self.config.patch_size, self.config.patch_size)
    convolution = nn.Conv(
      width,
      kernel_size=patch,
      strides=patch,
      padding="VALID",
      use_bias=False,
      dtype=self.dtype,
    )
    patches_BxhxwxD: Any = convolution.apply(
      {"params": params["patch_embedding"]}, pixels_BxHxWx3
    )
    n_images = pixels_BxHxWx3.shape[0]  # a symbol, not a number, in an export
    classes_Bx1xD = jnp.broadcast_to(params["class_embedding"], (n_images, 1, width))
    patches_BxPxD = patches_BxhxwxD.reshape(n_images, -1, width)
    tokens_BxTxD = jnp.concatenate([classes_Bx1xD, patches_BxPxD], axis=1)
    return tokens_BxTxD + params["position_embedding"]["embedding"]

  def _layer(self, params: Any, hidden: Array, how: Last) -> Array:
    """Computes one layer: attention and an MLP, each after a norm."""
    normed = self._norm(params["layer_norm1"], hidden)
    attended = self._attention(params["self_attn"], normed, how)
    if not how.whole_layer:
      return attended
    hidden = hidden[:, : how.n_read] + attended
    mlp = params["mlp"]
    inner = self._dense(mlp["fc1"], self._norm(params["layer_norm2"], hidden))
    activation = ACTIVATIONS[self.config.hidden_act]
    return hidden + self._dense(mlp["fc2"], activation(inner))

  def _attention(self, params: Any, x_BxTxD: Array, how: Last) -> Any:
    """Computes multi-head attention. `n_read` must be None with pairs other than qk."""
    n_heads = self.config.num_attention_heads
    width = x_BxTxD.shape[-1]
    heads = (n_heads, width // n_heads)

    def projected(name: str) -> Any:
      # Cut the kernels into heads before the product: a TPU would copy the product's
      # result to cut it.
      params_by_head = {}
      for key, leaf in params[f"{name}_proj"].items():
        params_by_head[key] = leaf.reshape(*leaf.shape[:-1], *heads)
      # Compute queries only for the tokens that are read, but keys and values for all.
      rows = x_BxTxD[:, : how.n_read] if name == "q" else x_BxTxD
      dense = nn.DenseGeneral(heads, dtype=self.dtype)
      return dense.apply({"params": params_by_head}, rows)

    needed = sorted({"v", *"".join(how.pairs)})
    rows_of = {name: projected(name) for name in needed}
    value_BxTxnxe = rows_of["v"]
    attended_BxTxnxe = value_BxTxnxe
    if how.pairs:
      attended_BxTxnxe = sum(
        nn.dot_product_attention(
          rows_of[pair[0]], rows_of[pair[1]], value_BxTxnxe, how.bias
        )
        for pair in how.pairs
      )
    kernel_DxD = params["out_proj"]["kernel"]
    out_params = {
      "kernel": kernel_DxD.reshape(*heads, width),
      "bias": params["out_proj"]["bias"],
    }
    dense = nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype)
    return dense.apply({"params": out_params}, attended_BxTxnxe)

  def _norm(self, params: Any, x: Array) -> Any:
    norm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    return norm.apply({"params": params}, x)

  def _dense(self, params: Any, x: Array) -> Any:
    dense = nn.Dense(len(params["bias"]), dtype=self.dtype)
    return dense.apply({"params": params}, x)


def _with_tokens(hidden_BxTxD: Array, n_image_tokens: int, tokens_VxD: Array) -> Array:
  """Puts learned tokens after the image's tokens, in place of earlier learned ones."""
  n_images = len(hidden_BxTxD)
  tokens_BxVxD = jnp.broadcast_to(tokens_VxD, (n_images, *tokens_VxD.shape))
  return jnp.concatenate(
    [hidden_BxTxD[:, :n_image_tokens], tokens_BxVxD.astype(hidden_BxTxD.dtype)], axis=1
  )
