"""The frozen vision tower, a ViT or a ResNet: images to features, with learned tokens or not.

Shapes: B images of height H and width W, E embedding, T tokens of an image (class and patches), J
layers with learned tokens of their own, V of these in each, D width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.clip.vit import VisionTransformer

ImageTower = Callable[[Params, Num[Array, "B H W 3"]], Float[Array, "B E"]]
PromptedImageTower = Callable[
  [Params, Num[Array, "B H W 3"], Float[Array, "J V D"]], Float[Array, "B E"]
]


def image_tower(clip: Clip, dtype: Any = jnp.float32, chunk: int = 0) -> ImageTower:
  """Builds `(clip.vision_params, images) -> features`, float32 and not normalised.

  The images, values 0..255 of any type, are already resized and cropped. Channel statistics are
  applied on the device, so that bytes and not floats are transferred. `dtype` is the compute type
  of the layers, see `clip.precision`; parameters stay float32. See `in_chunks` for `chunk`.
  """
  dtype, products = precision_of(dtype)
  config: Any = clip.config.vision_config
  is_resnet = isinstance(config, ResNetConfig)
  module: Any = (ModifiedResNet if is_resnet else VisionTransformer)(config, dtype)

  def features(params, images_BxHxWx3):
    pixels, variables = normalized(clip, images_BxHxWx3), {"params": params["vision_model"]}
    found = module.apply(variables, pixels)
    return found.astype(jnp.float32) if is_resnet else project(params, found[:, 0])

  return in_chunks(with_products(products, features), chunk)


def prompted_image_tower(
  clip: Clip, dtype: Any = jnp.float32, chunk: int = 0, limit_bytes: float = 0.0
) -> PromptedImageTower:
  """Builds `(clip.vision_params, images, tokens) -> features`, float32 and not normalised.

  Layer j < J sees the V tokens tokens[j], and the previous layer's outputs of its own tokens are
  dropped (Jia et al., 2022: J = 1 is VPT-shallow, J = all layers VPT-deep). The first tokens enter
  before the tower's first layer norm. Learned tokens have no positions.

  Args:
    clip: a CLIP with a ViT.
    dtype: see `image_tower`.
    chunk: the most images in memory together in the forward pass; 0 for all.
    limit_bytes: memory for activations. Above it, by a rough estimate, each chunk is rematerialised
      in the backward pass, where the limit of `chunk` then holds too.
  """
  dtype, products = precision_of(dtype)
  config: Any = clip.config.vision_config
  vit = VisionTransformer(config, dtype)

  def features(params, images_BxHxWx3, tokens_JxVxD):
    pixels, variables = normalized(clip, images_BxHxWx3), {"params": params["vision_model"]}
    return project(params, vit.apply(variables, pixels, tokens_JxVxD)[:, 0])

  precise = with_products(products, features)
  plain, remat = in_chunks(precise, chunk), in_chunks(jax.checkpoint(precise), chunk)

  def tower(params, images_BxHxWx3, tokens_JxVxD):
    n_images, n_learned = images_BxHxWx3.shape[0], tokens_JxVxD.shape[1]
    # One chunk would need all of its activations at once in either case.
    several = 0 < chunk < n_images
    exceeds = prompted_activation_bytes(config, n_images, n_learned) > limit_bytes
    return (remat if several and exceeds else plain)(params, images_BxHxWx3, tokens_JxVxD)

  return tower


def prompted_activation_bytes(config: Any, n_images: int, n_learned: int) -> float:
  """Rough size of all residuals of a prompted ViT without rematerialisation, for B images.

  For each token and layer about nine vectors of width D (inputs and outputs of the norms, query,
  key, value, the result of attention), three of the MLP's, and the attention weights twice.
  """
  n_tokens = 1 + (config.image_size // config.patch_size) ** 2 + n_learned
  floats = 9 * config.hidden_size + 3 * config.intermediate_size
  floats += 2 * config.num_attention_heads * n_tokens
  return 4.0 * floats * config.num_hidden_layers * n_tokens * n_images


def normalized(clip: Clip, images_BxHxWx3: Num[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """Values 0..255 to the tower's input, by the CLIP's channel statistics."""
  mean, std = jnp.array(clip.mean), jnp.array(clip.std)
  return (images_BxHxWx3.astype(jnp.float32) / 255 - mean) / std


def project(params: Params, tokens: Float[Array, "... D"]) -> Float[Array, "... E"]:
  """A ViT's output tokens to features, float32."""
  kernel_DxE = params["visual_projection"]["kernel"].astype(tokens.dtype)
  return (tokens @ kernel_DxE).astype(jnp.float32)


def in_chunks(tower: Callable, chunk: int) -> Callable:
  """Wraps `(params, images, *others) -> features [B,..]` to compute at most `chunk` images at once.

  More are computed in chunks of nearly equal size, one after the other; 0 for all at once.
  """

  def features(params, images_BxHxWx3, *others):
    n_images = images_BxHxWx3.shape[0]
    n_chunks = -(-n_images // chunk)
    if n_chunks <= 1:
      return tower(params, images_BxHxWx3, *others)
    size = -(-n_images // n_chunks)
    padding = ((0, n_chunks * size - n_images), (0, 0), (0, 0), (0, 0))
    chunks = jnp.pad(images_BxHxWx3, padding).reshape(n_chunks, size, *images_BxHxWx3.shape[1:])
    found = jax.lax.map(lambda images: tower(params, images, *others), chunks)
    return found.reshape(n_chunks * size, *found.shape[2:])[:n_images]

  return features if chunk else tower
