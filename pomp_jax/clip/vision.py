"""The frozen vision tower, a ViT or a ResNet: uint8 images to features.

Shapes: B images of height H and width W, E embedding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionTransformer

from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.resnet import ModifiedResNet, ResNetConfig

ImageTower = Callable[[Params, UInt8[Array, "B H W 3"]], Float[Array, "B E"]]


def image_tower(clip: Clip, dtype: DTypeLike = jnp.float32, at_a_time: int = 0) -> ImageTower:
  """`(clip.vision_params, images) -> features`, features float32 and not normalised.

  The images are resized and cropped already; channel statistics are applied here, on the
  device, so that bytes and not floats travel to it.

  Args:
    clip: whose vision tower.
    dtype: compute type of the layers, see `clip.precision`; parameters stay float32.
    at_a_time: the most images in memory together; more are computed in parts as equal as can be,
      one after the other. 0: all.
  """
  dtype, products = precision_of(dtype)
  resnet = isinstance(clip.config.vision_config, ResNetConfig)
  of_pixels = (_resnet if resnet else _vit)(clip.config.vision_config, dtype)

  def features(params, images_BxHxWx3):
    return of_pixels(params, normalized(clip, images_BxHxWx3)).astype(jnp.float32)

  return in_parts(with_products(products, features), at_a_time)


def normalized(clip: Clip, images_BxHxWx3: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """Bytes to what the tower takes, by the CLIP's channel statistics."""
  mean, std = jnp.array(clip.mean), jnp.array(clip.std)
  return (images_BxHxWx3.astype(jnp.float32) / 255 - mean) / std


def _vit(config: CLIPVisionConfig, dtype: DTypeLike) -> Callable:
  module = FlaxCLIPVisionTransformer(config, dtype=dtype)

  def features(params, pixels):
    pooled_BxD = module.apply({"params": params["vision_model"]}, pixels, return_dict=False)[1]
    return pooled_BxD.astype(dtype) @ params["visual_projection"]["kernel"].astype(dtype)

  return features


def _resnet(config: ResNetConfig, dtype: DTypeLike) -> Callable:
  module = ModifiedResNet(config, dtype)
  return lambda params, pixels: module.apply({"params": params["vision_model"]}, pixels)


def in_parts(tower: Callable, at_a_time: int) -> Callable:
  """A tower `(params, images, ..) -> features` that takes at most so many images at once.

  Args:
    tower: any arguments beyond the images are the same for all parts.
    at_a_time: how many; 0: all.
  """

  def features(params, images_BxHxWx3, *others):
    n_images = images_BxHxWx3.shape[0]
    n_parts = -(-n_images // at_a_time)
    if n_parts <= 1:
      return tower(params, images_BxHxWx3, *others)
    size = -(-n_images // n_parts)
    padding = ((0, n_parts * size - n_images), (0, 0), (0, 0), (0, 0))
    parts = jnp.pad(images_BxHxWx3, padding).reshape(n_parts, size, *images_BxHxWx3.shape[1:])
    features_PxBxE = jax.lax.map(lambda part: tower(params, part, *others), parts)
    return features_PxBxE.reshape(n_parts * size, -1)[:n_images]

  return features if at_a_time else tower
