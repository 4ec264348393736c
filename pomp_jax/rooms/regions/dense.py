"""Dense features of a frozen ViT without training: the last layer with another attention.

All other layers are CLIP's. Positions are interpolated to the image's grid of patches.
Shapes: B images of H by W pixels, h by w patches, T = 1 + hw tokens (class first), D width, E
embedding, n heads of width e.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import Clip, Params
from pomp_jax.clip.precision import precision_of, with_products
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.vision import in_chunks, normalized, project
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


def dense_tower(clip: Clip, recipe: Recipe, dtype: Any = jnp.float32, chunk: int = 0) -> DenseTower:
  """Builds `(clip.vision_params, images) -> unit features of patches`, float32 [B,h,w,E].

  At most `chunk` images are in memory together; 0: all.

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
  vit = VisionTransformer(config, dtype)

  def tokens(params, images_BxHxWx3):
    _, *sides, _ = images_BxHxWx3.shape
    if any(side % config.patch_size for side in sides):
      raise ClipError(
        f"images: got {sides[0]} x {sides[1]}, expected multiples of {config.patch_size} pixels"
      )
    pixels, variables = normalized(clip, images_BxHxWx3), {"params": params["vision_model"]}
    return project(params, vit.apply(variables, pixels, recipe=recipe))

  return with_products(products, tokens)
