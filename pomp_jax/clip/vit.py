"""CLIP's ViT on FlaxCLIP's parameter tree (Radford et al., 2021), with learned tokens
or without.

Pre-norm transformer over a class token and patches (Dosovitskiy et al., 2021); a norm
in front.

Shapes: B images of H by W pixels, h by w patches, T tokens (class, patches, learned), D
width, J layers with learned tokens of their own, V of these in each.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
import numpy as np

from pomp_jax.clip.packed import ACTIVATIONS


class Last(NamedTuple):
  """How the last layer is computed; by default CLIP's own, and for the class token
  alone."""

  n_read: int | None = 1  # tokens from the first on that are computed; None for all
  # Factors of the attention's scores, of q(uery) and k(ey): the softmax of each pair,
  # added up. Without one each token attends to itself alone.
  pairs: tuple[str, ...] = ("qk",)
  whole_layer: bool = True  # whether the residual connection and the MLP are kept
  bias: np.ndarray | None = None  # added to the scores, [1,1,T,T]


class VisionTransformer(NamedTuple):
  """The tower: normalised pixels to tokens; parameters stay float32 for any compute
  type."""

  config: Any  # HuggingFace's CLIPVisionConfig, or an object with its fields
  dtype: DTypeLike = jnp.float32
  last: Last = Last()

  def __call__(
    self,
    params: Any,
    pixels_BxHxWx3: Float[Array, "B H W 3"],
    learned_JxVxD: Float[Array, "J V D"] | None = None,
  ) -> Float[Array, "B t D"]:
    """The output tokens that `last` reads, in the compute type.

    The parameters have a position for each patch of the images. Learned tokens have
    none: the first enter before the first norm, and layer j replaces those of the layer
    before by its own.
    """
    hidden = self._embedded(params["embeddings"], pixels_BxHxWx3)
    n_own, n_layers = hidden.shape[1], self.config.num_hidden_layers
    if learned_JxVxD is not None:
      hidden = _with_tokens(hidden, n_own, learned_JxVxD[0])
    hidden = self._norm(params["pre_layrnorm"], hidden)
    for j in range(n_layers):
      if learned_JxVxD is not None and 0 < j < len(learned_JxVxD):
        hidden = _with_tokens(hidden, n_own, learned_JxVxD[j])
      how = self.last if j == n_layers - 1 else Last(n_read=None)
      hidden = self._layer(params["encoder"]["layers"][str(j)], hidden, how)
    return self._norm(params["post_layernorm"], hidden)

  def _embedded(self, params: Any, pixels_BxHxWx3: Array) -> Array:
    """Class token and patches with their positions [B,T,D]."""
    width, patch = self.config.hidden_size, (self.config.patch_size,) * 2
    convolution = nn.Conv(
      width, patch, patch, "VALID", use_bias=False, dtype=self.dtype
    )
    patches_BxhxwxD: Any = convolution.apply(
      {"params": params["patch_embedding"]}, pixels_BxHxWx3
    )
    n_images = pixels_BxHxWx3.shape[0]  # a symbol in an export
    classes_Bx1xD = jnp.broadcast_to(params["class_embedding"], (n_images, 1, width))
    patches_BxPxD = patches_BxhxwxD.reshape(n_images, -1, width)
    tokens_BxTxD = jnp.concatenate([classes_Bx1xD, patches_BxPxD], axis=1)
    return tokens_BxTxD + params["position_embedding"]["embedding"]

  def _layer(self, params: Any, hidden: Array, how: Last) -> Array:
    """Attention and an MLP, each after a norm."""
    attended = self._attention(
      params["self_attn"], self._norm(params["layer_norm1"], hidden), how
    )
    if not how.whole_layer:
      return attended
    hidden, mlp = hidden[:, : how.n_read] + attended, params["mlp"]
    inner = self._dense(mlp["fc1"], self._norm(params["layer_norm2"], hidden))
    return hidden + self._dense(mlp["fc2"], ACTIVATIONS[self.config.hidden_act](inner))

  def _attention(self, params: Any, x_BxTxD: Array, how: Last) -> Any:
    """Multi-head attention; `n_read` only for the pair qk."""

    # The kernels are cut into heads, not the results of the products, which a TPU would
    # copy.
    n_heads, width = self.config.num_attention_heads, x_BxTxD.shape[-1]
    shape = (n_heads, width // n_heads)

    def heads(name: str) -> Any:
      rows = x_BxTxD[:, : how.n_read] if name == "q" else x_BxTxD
      own = params[f"{name}_proj"]
      cut = {key: leaf.reshape(*leaf.shape[:-1], *shape) for key, leaf in own.items()}
      return nn.DenseGeneral(shape, dtype=self.dtype).apply({"params": cut}, rows)

    of = {name: heads(name) for name in sorted({"v", *"".join(how.pairs)})}
    attended_BxTxnxe = of["v"]
    if how.pairs:
      attended_BxTxnxe = sum(
        nn.dot_product_attention(of[pair[0]], of[pair[1]], of["v"], how.bias)
        for pair in how.pairs
      )
    kernel_DxD, bias_D = params["out_proj"]["kernel"], params["out_proj"]["bias"]
    own = {"kernel": kernel_DxD.reshape(*shape, width), "bias": bias_D}
    dense = nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype)
    return dense.apply({"params": own}, attended_BxTxnxe)

  def _norm(self, params: Any, x: Array) -> Any:
    norm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
    return norm.apply({"params": params}, x)

  def _dense(self, params: Any, x: Array) -> Any:
    return nn.Dense(len(params["bias"]), dtype=self.dtype).apply({"params": params}, x)


def _with_tokens(hidden_BxTxD: Array, n_own: int, tokens_VxD: Array) -> Array:
  """Puts learned tokens after an image's own, in place of those there."""
  tokens_BxVxD = jnp.broadcast_to(tokens_VxD, (len(hidden_BxTxD), *tokens_VxD.shape))
  return jnp.concatenate(
    [hidden_BxTxD[:, :n_own], tokens_BxVxD.astype(hidden_BxTxD.dtype)], axis=1
  )
