"""The frozen vision tower: images to features.

It is a ViT, a ResNet or one of `clip.image_towers`.

Shapes: B images of height H and width W, E embedding, D width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pomp_jax.clip.image_towers import ImageTowerConfig
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig
from pomp_jax.clip.vit import VisionTransformer

# Function (params, images [B,H,W,3]) -> features. A ViT takes learned tokens too.
ImageTower = Callable[..., Float[Array, "B E"]]


def image_tower(
  clip: Clip, dtype: Any = jnp.float32, chunk: int = 0, remat: bool = False
) -> ImageTower:
  """Builds `(clip.vision_params, images) -> features`, float32 and not normalised.

  The images must be resized and cropped, with values 0..255 of any type. The tower
  normalises them on the device, so that bytes and not floats are transferred. A ViT
  takes learned tokens as a third argument, see `clip.vit`.

  Args:
    clip: a loaded CLIP.
    dtype: compute type of the layers, see `clip.precision`; parameters stay float32.
    chunk: most images that are computed at once, see `in_chunks`; 0 for all.
    remat: whether the backward pass rematerialises each chunk.
  """
  dtype, products = precision_of(dtype)
  config = clip.config.vision_config

  def features(params: Any, images_BxHxWx3: Any, *tokens: Any) -> Array:
    pixels = normalized(clip, images_BxHxWx3)
    tower_params = params.get("vision_model", {})
    if isinstance(config, ImageTowerConfig):
      pixels = pixels.astype(dtype)
      return config.features(tower_params, pixels).astype(jnp.float32)
    if isinstance(config, ResNetConfig):
      resnet = ModifiedResNet(config, dtype)
      features_BxE: Any = resnet.apply({"params": tower_params}, pixels)
      return features_BxE.astype(jnp.float32)
    tokens_BxTxD = VisionTransformer(config, dtype)(tower_params, pixels, *tokens)
    return project(params, tokens_BxTxD[:, 0])

  tower = jax.default_matmul_precision(products)(features)
  if remat:
    tower = jax.checkpoint(tower)
  return in_chunks(tower, chunk)


def normalized(
  clip: Clip, images_BxHxWx3: Num[Array, "B H W 3"]
) -> Float[Array, "B H W 3"]:
  """Scales values 0..255 to the tower's input, by the CLIP's channel statistics."""
  mean = jnp.array(clip.mean)
  std = jnp.array(clip.std)
  return (images_BxHxWx3.astype(jnp.float32) / 255 - mean) / std


def project(params: Params, tokens: Float[Array, "... D"]) -> Float[Array, "... E"]:
  """Projects a ViT's output tokens to features, float32."""
  kernel_DxE = params["visual_projection"]["kernel"].astype(tokens.dtype)
  return (tokens @ kernel_DxE).astype(jnp.float32)


def in_chunks(tower: Callable, chunk: int) -> Callable:
  """Wraps `(params, images, *others) -> features [B,..]` to save memory.

  The wrapped tower computes more than `chunk` images in chunks of equal size, one after
  the other; the last chunk is padded. With `chunk` 0 it computes all images at once.
  """
  if not chunk:
    return tower

  def features(params: Any, images_BxHxWx3: Any, *others: Any) -> Any:
    n_images, *shape = images_BxHxWx3.shape
    # `-(-a // b)` is a / b, rounded up.
    n_chunks = -(-n_images // chunk)
    if n_chunks <= 1:
      return tower(params, images_BxHxWx3, *others)
    size = -(-n_images // n_chunks)
    n_padding = n_chunks * size - n_images
    padded = jnp.pad(images_BxHxWx3, ((0, n_padding), (0, 0), (0, 0), (0, 0)))
    chunks = padded.reshape(n_chunks, size, *shape)
    features_of_chunk = lambda images: tower(params, images, *others)
    features_of_chunks = jax.lax.map(features_of_chunk, chunks)
    flat = features_of_chunks.reshape(n_chunks * size, *features_of_chunks.shape[2:])
    return flat[:n_images]

  return features
