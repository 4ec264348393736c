"""Image towers beside OpenAI's ViT and ResNet, one file a family, and what a checkpoint
must hold.

A tower is a dataclass of what its tensors do not tell; its tensors keep their names and
shapes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pomp_jax.clip import convnext, eva
from pomp_jax.clip.clipa import ClipaConfig
from pomp_jax.clip.convnext import ConvNextConfig
from pomp_jax.clip.eva import EvaConfig
from pomp_jax.clip.layers import Tensors
from pomp_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class NoImageTower:
  """In the place of the image tower of a CLIP whose text tower alone is read."""

  image_size: int = 0
  prefix: str = ""

  def features(self, params: Tensors, pixels: Any, /) -> Any:
    """Raises an InputError."""
    raise InputError(
      "clip.image_tower: got False, expected True: images are to be encoded"
    )


# Towers by timm's name, which open_clip_config.json gives.
MODELS: dict[str, Any] = {**eva.MODELS, **convnext.MODELS}
ImageTowerConfig = EvaConfig | ClipaConfig | ConvNextConfig | NoImageTower
# Items of a timm tower's `vision_cfg` that its tensors show too, or that matter in
# training alone.
TIMM_ITEMS = {
  "timm_model_name",
  "timm_pool",
  "timm_proj",
  "timm_drop",
  "timm_drop_path",
}
_CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}


def family_of(settings: Mapping[str, Any], width: int) -> Any:
  """The tower of a `vision_cfg`; None for OpenAI's ViT or ResNet. ValueError: `item:
  got ..`."""
  name, size = settings.get("timm_model_name"), settings.get("image_size")
  if name is not None and name not in MODELS:
    raise ValueError(
      f"timm_model_name: got {name!r}, expected a tower of clip.families.MODELS"
    )
  is_clipa = {item: settings.get(item) for item in _CLIPA} == _CLIPA
  some_of_clipa = any(map(settings.get, _CLIPA.keys() - {"pool_type"}))
  if (some_of_clipa or settings.get("pool_type") == "avg") and not is_clipa:
    items = ", ".join(f"{item}={value!r}" for item, value in _CLIPA.items())
    raise ValueError(
      f"pool_type: got {settings.get('pool_type')!r}, expected 'tok', or {items}"
    )
  if not (name or is_clipa):
    return None
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"image_size: got {size!r}, expected an integer from 1")
  if name:
    return dataclasses.replace(MODELS[name], image_size=size)
  return ClipaConfig(size, width // (settings.get("head_width") or 64))


def tower_shapes(
  tower: ImageTowerConfig, shapes: Mapping[str, tuple[int, ...]], embedding: int
) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors that the tower reads of a checkpoint, by their names below
  its prefix.

  ValueError: one line: a tensor that is missing or of another shape.

  Args:
    tower: sizes of the image tower.
    shapes: shapes of a checkpoint's tensors.
    embedding: E, width of the features.
  """
  structs = {
    name.removeprefix(tower.prefix): jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in shapes.items()
    if name.startswith(tower.prefix)
  }
  read: set[str] = set()

  class Recorded(dict):
    def __getitem__(self, name: str) -> Any:
      read.add(name)
      return super().__getitem__(name)

  features = lambda params, pixels: tower.features(Recorded(params), pixels)
  images = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
  try:
    result = jax.eval_shape(features, structs, images)
  except KeyError as error:
    raise ValueError(f"{tower.prefix}{error.args[0]} is missing") from error
  except (TypeError, IndexError, ZeroDivisionError) as error:
    raise ValueError(f"no tower has such tensors ({error})") from error
  if result.shape != (1, embedding):
    raise ValueError(
      f"image features: got {result.shape[-1]} numbers, expected {embedding}"
    )
  return {name: structs[name].shape for name in sorted(read)}
