"""Dense features of a frozen ViT without training: the last layer with another attention.

Positions are interpolated to the image's grid of patches.
Shapes: B images of H by W pixels, h by w patches, T = 1 + hw tokens (class first), E embedding.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.vision import normalized, project
from pomp_jax.clip.vit import Recipe, VisionTransformer

DenseTower = Callable[[Params, Num[Array, "B H W 3"]], Float[Array, "B h w E"]]

RECIPES = {
  "clip": Recipe(),
  "maskclip": Recipe((), offset=0.1),  # Zhou et al. (2022)
  "sclip": Recipe(("qq", "kk"), offset=0.1),  # Wang et al. (2024)
  "clearclip": Recipe(("qq",), whole_layer=False, offset=0.1),  # Lan et al. (2024)
  # Hajimiri et al. (2025)
  "naclip": Recipe(("kk",), whole_layer=False, nearness=5.0, offset=0.1),
}


def dense_tower(clip: Clip, recipe: Recipe, dtype: Any = jnp.float32) -> DenseTower:
  """Builds `(clip.vision_params, images) -> unit features of patches`, float32 [B,h,w,E].

  Raises:
    ClipError: the CLIP has a ResNet; or, when images are given, sides that are no multiples of the
      patch size.
  """
  config: Any = clip.config.vision_config
  if isinstance(config, ResNetConfig):
    raise ClipError(f"{clip.name}: a ResNet; dense recipes need a ViT")
  dtype, products = precision_of(dtype)
  vit = VisionTransformer(config, dtype)

  def features(params, images_BxHxWx3):
    n_images, *sides, _ = images_BxHxWx3.shape
    patch = config.patch_size
    if any(side % patch for side in sides):
      raise ClipError(f"images: got {sides[0]} x {sides[1]}, expected multiples of {patch} pixels")
    pixels, variables = normalized(clip, images_BxHxWx3), {"params": params["vision_model"]}
    patches_BxPxE = project(params, vit.apply(variables, pixels, recipe=recipe))[:, 1:]
    patches_BxPxE /= jnp.linalg.norm(patches_BxPxE, axis=-1, keepdims=True)
    return patches_BxPxE.reshape(n_images, *(side // patch for side in sides), -1)

  return with_products(products, features)
