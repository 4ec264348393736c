"""The frozen vision tower, a ViT, a ResNet or a family's: images to features.

Shapes: B images of height H and width W, E embedding, D width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pomp_jax.clip.families import ImageTowerConfig
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.clip.vit import VisionTransformer

ImageTower = Callable[[Params, Num[Array, "B H W 3"]], Float[Array, "B E"]]


def image_tower(
  clip: Clip, dtype: Any = jnp.float32, chunk: int = 0, remat: bool = False
) -> ImageTower:
  """Builds `(clip.vision_params, images) -> features`, float32 and not normalised.

  The images, values 0..255 of any type, are already resized and cropped. Channel
  statistics are applied on the device, so that bytes and not floats are transferred.
  `dtype` is the compute type of the layers, see `clip.precision`; parameters stay
  float32. Chunks, see `in_chunks`, are rematerialised in the backward pass if `remat`.
  A ViT takes learned tokens too, see `clip.vit`.
  """
  dtype, products = precision_of(dtype)
  config = clip.config.vision_config

  def features(params: Any, images_BxHxWx3: Any, *tokens: Any) -> Array:
    pixels, own = normalized(clip, images_BxHxWx3), params.get("vision_model", {})
    if isinstance(config, ImageTowerConfig):
      return config.features(own, pixels.astype(dtype)).astype(jnp.float32)
    if isinstance(config, ResNetConfig):
      found: Any = ModifiedResNet(config, dtype).apply({"params": own}, pixels)
      return found.astype(jnp.float32)
    return project(params, VisionTransformer(config, dtype)(own, pixels, *tokens)[:, 0])

  precise = jax.default_matmul_precision(products)(features)
  return in_chunks(jax.checkpoint(precise) if remat else precise, chunk)


def normalized(
  clip: Clip, images_BxHxWx3: Num[Array, "B H W 3"]
) -> Float[Array, "B H W 3"]:
  """Values 0..255 to the tower's input, by the CLIP's channel statistics."""
  mean, std = jnp.array(clip.mean), jnp.array(clip.std)
  return (images_BxHxWx3.astype(jnp.float32) / 255 - mean) / std


def project(params: Params, tokens: Float[Array, "... D"]) -> Float[Array, "... E"]:
  """A ViT's output tokens to features, float32."""
  kernel_DxE = params["visual_projection"]["kernel"].astype(tokens.dtype)
  return (tokens @ kernel_DxE).astype(jnp.float32)


def in_chunks(tower: Callable, chunk: int) -> Callable:
  """Wraps `(params, images, *others) -> features [B,..]` to compute at most `chunk`
  images at once.

  More are computed in chunks of nearly equal size, one after the other; 0 for all at
  once.
  """

  def features(params: Any, images_BxHxWx3: Any, *others: Any) -> Any:
    n_images = images_BxHxWx3.shape[0]
    n_chunks = -(-n_images // chunk)
    if n_chunks <= 1:
      return tower(params, images_BxHxWx3, *others)
    size = -(-n_images // n_chunks)
    padding = ((0, n_chunks * size - n_images), (0, 0), (0, 0), (0, 0))
    chunks = jnp.pad(images_BxHxWx3, padding).reshape(
      n_chunks, size, *images_BxHxWx3.shape[1:]
    )
    found = jax.lax.map(lambda images: tower(params, images, *others), chunks)
    return found.reshape(n_chunks * size, *found.shape[2:])[:n_images]

  return features if chunk else tower
