"""Counts the operations of a published segmentation row, and what they take on an H100.

  python -m pomp_jax.analysis.segmentation_cost                 # COCO-Stuff
  python -m pomp_jax.analysis.segmentation_cost --size=512 --height=375 --width=500 --images=1449 \\
    --classes=20                                                # VOC

XLA counts the programs that `segment` runs with `configs/coco_stuff_156.py`: ZSSeg's R101c, crops
of its masks, ViT-B/16, and label maps. Nothing is computed, and no weights are needed. What the
host does is not counted: decoding, resizing images, boxes of masks.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.architecture import parameter_shapes as clip_shapes
from pomp_jax.clip.synthetic import synthetic_config
from pomp_jax.clip.text import text_tower
from pomp_jax.clip.vit import VisionTransformer
from pomp_jax.masks.inference import mask_predictor
from pomp_jax.masks.model import STRIDE, VARIANTS, parameter_shapes
from pomp_jax.regions.crops import CropSettings, crop_region
from pomp_jax.regions.resize import resized_sides

_BUCKET = 128  # of `regions.features.RegionEncoder`
_EFFICIENCY = 0.4  # assumed share of the peak
# Dense peak of an H100 (SXM) by `clip.dtype`, FLOP/s, as its maker states it. Crops and maps are
# in float32.
H100 = {"float32": 67e12, "tensorfloat32": 495e12, "bfloat16": 989e12}
# Tokens of a class's name with "." and EOT, rounded up from the mean of the sets' names.
_NAME_TOKENS = 5
_CLIP = "openai/clip-vit-base-patch16"


class Cost(NamedTuple):
  """FLOP of the parts of a run.

  Attributes:
    network: MaskFormer, of one image.
    crops: crops of all regions of an image.
    images: the image tower on these crops.
    maps: the scores of an image's pixels under one prompt.
    text: the text tower on all classes under one prompt, once a run.
  """

  network: float
  crops: float
  images: float
  maps: float
  text: float

  def total(self, n_images: int, n_prompts: int) -> float:
    """FLOP of a run."""
    of_image = self.network + self.crops + self.images + n_prompts * self.maps
    return n_images * of_image + n_prompts * self.text

  def seconds(self, n_images: int, n_prompts: int, dtype: str, efficiency: float) -> float:
    """Time of a run on an H100 at a share of its peak."""
    exact = n_images * (self.crops + n_prompts * self.maps)
    towers = self.total(n_images, n_prompts) - exact
    return (exact / H100["float32"] + towers / H100[dtype]) / efficiency


def cost_of(
  height: int, width: int, size: int, n_classes: int, n_regions: int = 100, m: int = 16
) -> Cost:
  """Counts by XLA, of the programs before they are optimised.

  Args:
    height: height of an image, pixels.
    width: its width.
    size: shorter side in the network and of the crops' image.
    n_classes: classes.
    n_regions: regions of an image, all of which have a crop.
    m: context vectors of a prompt.
  """
  sides = resized_sides(height, width, size)
  clip = synthetic_config(_CLIP)
  return Cost(
    _network(sides),
    n_regions * _crop(sides, clip.vision_config.image_size),
    n_regions * _image(clip),
    flops(jnp.matmul, _array(height * width, n_regions), _array(n_regions, n_classes)),
    _text(clip, n_classes, m),
  )


def flops(function: Callable, *arguments: Any) -> float:
  """FLOP of a function on arrays of these shapes and types."""
  return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


def _network(sides: tuple[int, int]) -> float:
  config = VARIANTS["r101c"]
  frame = [STRIDE * -(-side // STRIDE) for side in sides]
  params = _abstract(parameter_shapes(config))
  return flops(mask_predictor(config), params, _array(1, *frame, 3, dtype=jnp.uint8), _sizes(1, 2))


def _crop(sides: tuple[int, int], size: int) -> float:
  rows, columns = (_BUCKET * -(-side // _BUCKET) for side in sides)
  crop = functools.partial(crop_region, settings=CropSettings(size))
  image, mask = _array(rows, columns, 3, dtype=jnp.uint8), _array(rows, columns, dtype=jnp.bool)
  return flops(crop, image, _sizes(2), _sizes(4), mask)


def _image(clip: ClipConfig) -> float:
  vision, width = clip.vision_config, clip.projection_dim

  def features(params, pixels, projection):
    return VisionTransformer(vision).apply({"params": params}, pixels)[:, 0] @ projection

  params = _abstract(clip_shapes(clip)["vision_model"])
  pixels = _array(1, vision.image_size, vision.image_size, 3)
  return flops(features, params, pixels, _array(vision.hidden_size, width))


def _text(clip: ClipConfig, n_classes: int, m: int) -> float:
  config = clip.text_config
  tower = text_tower("shared", config, token_budget=_NAME_TOKENS * n_classes)
  params = _abstract({name: clip_shapes(clip)[name] for name in ("text_model", "text_projection")})
  prefix = _array(m + 1, config.hidden_size)
  names = _array(n_classes, _NAME_TOKENS, config.hidden_size)
  return flops(tower, params, prefix, names, _sizes(n_classes))


def _array(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _sizes(*shape: int) -> jax.ShapeDtypeStruct:
  return _array(*shape, dtype=jnp.int32)


def _abstract(shapes: Any) -> Any:
  return jax.tree.map(lambda shape: _array(*shape), shapes, is_leaf=lambda x: isinstance(x, tuple))


def main() -> None:
  """Prints the parts and the time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--height", type=int, default=480, help="of an image, pixels")
  parser.add_argument("--width", type=int, default=640, help="of an image, pixels")
  parser.add_argument("--size", type=int, default=640, help="shorter side in the network, pixels")
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--classes", type=int, default=171)
  parser.add_argument("--prompts", type=int, default=2)
  parser.add_argument("--efficiency", type=float, default=_EFFICIENCY, help="share of the peak")
  own = parser.parse_args()
  cost = cost_of(own.height, own.width, own.size, own.classes)
  for name, value in cost._asdict().items():
    print(f"{name:8} {value / 1e9:10,.1f} GFLOP")
  total = cost.total(own.images, own.prompts)
  share = own.prompts * cost.text / total
  print(f"{own.images:,} images: {total / 1e15:.2f} PFLOP, {share:.1g} of it for the classes")
  for dtype in H100:
    seconds = cost.seconds(own.images, own.prompts, dtype, own.efficiency)
    print(f"clip.dtype={dtype}: {seconds:.0f} s of an H100 at {own.efficiency:.0%} of its peak")


if __name__ == "__main__":
  main()
