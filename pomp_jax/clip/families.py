"""Image towers beside OpenAI's ViT and ResNet, one file a family, and what a checkpoint must hold.

A tower is a dataclass of what its tensors do not tell; its tensors keep their names and shapes.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Float
from pomp_jax.clip.clipa import ClipaConfig
from pomp_jax.clip.convnext import MODELS as CONVNEXT
from pomp_jax.clip.eva import MODELS as EVA
from pomp_jax.clip.layers import Tensors
from pomp_jax.clip.siglip import MODELS as SIGLIP
from pomp_jax.errors import InputError


@runtime_checkable
class ImageTowerConfig(Protocol):
  """An image tower of one of the families."""

  image_size: int  # pixels
  prefix: str  # in front of the tensors' names in a checkpoint

  def features(self, params: Tensors, pixels: Float[Array, "B H W 3"], /) -> Float[Array, "B E"]:
    """Features of normalised images, in their float type."""


@dataclasses.dataclass(frozen=True)
class NoImageTower:
  """In the place of the image tower of a CLIP whose text tower alone is read."""

  image_size: int = 0
  prefix: str = ""

  def features(self, params: Tensors, pixels: Any, /) -> Any:
    """Raises an InputError."""
    raise InputError("clip.image_tower: got False, expected True: images are to be encoded")


# Towers by timm's name, which open_clip_config.json gives.
FAMILIES: dict[str, Any] = {**EVA, **SIGLIP, **CONVNEXT}
# Items of `vision_cfg` that a tower of timm may have beside its name and size: they say what its
# tensors show, or matter in training alone.
TIMM_ITEMS = {"timm_model_name", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"}
_CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}


def family_of(settings: Mapping[str, Any], width: int) -> Any:
  """The tower of a `vision_cfg`; None for OpenAI's ViT or ResNet.

  Raises:
    ValueError: `item: got .., expected ..`.
  """
  name, size = settings.get("timm_model_name"), settings.get("image_size")
  if name is not None and name not in FAMILIES:
    raise ValueError(f"timm_model_name: got {name!r}, expected one of {', '.join(FAMILIES)}")
  is_clipa = {item: settings.get(item) for item in _CLIPA} == _CLIPA
  some_of_clipa = any(map(settings.get, _CLIPA.keys() - {"pool_type"}))
  if (some_of_clipa or settings.get("pool_type") == "avg") and not is_clipa:
    raise ValueError(f"pool_type: got {settings.get('pool_type')!r}, expected all of {_CLIPA}")
  if not (name or is_clipa):
    return None
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"image_size: got {size!r}, expected an integer from 1")
  if name:
    return dataclasses.replace(FAMILIES[name], image_size=size)
  return ClipaConfig(size, width // (settings.get("head_width") or 64))


class _Read(Mapping):
  """Tensors, and the names of those that were read."""

  def __init__(self, tensors: Mapping[str, Any]):
    self._tensors, self.names = tensors, set[str]()

  def __getitem__(self, name: str) -> Any:
    self.names.add(name)
    return self._tensors[name]

  def __contains__(self, name: object) -> bool:
    return name in self._tensors

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)


def tower_shapes(
  tower: ImageTowerConfig, shapes: Mapping[str, tuple[int, ...]], embedding: int
) -> dict[str, tuple[int, ...]]:
  """Shapes of the tower's tensors by their names below its prefix, from those of a checkpoint.

  Raises:
    ValueError: one line: a tensor that is missing, of another shape, or of no layer.
  """
  found = {
    name.removeprefix(tower.prefix): shape
    for name, shape in shapes.items()
    if name.startswith(tower.prefix)
  }
  read: set[str] = set()

  def features(params: Tensors, pixels: Any) -> Any:
    recorded = _Read(params)
    result = tower.features(recorded, pixels)
    read.update(recorded.names)
    return result

  structs = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.items()}
  images = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
  try:
    result = jax.eval_shape(features, structs, images)
  except KeyError as error:
    raise ValueError(f"{tower.prefix}{error.args[0]} is missing") from error
  except (TypeError, IndexError, ZeroDivisionError) as error:
    raise ValueError(f"no tower has such tensors ({error})") from error
  if unknown := sorted(found.keys() - read):
    raise ValueError(f"{tower.prefix}{unknown[0]} is unexpected")
  if result.shape != (1, embedding):
    raise ValueError(f"image features: got {result.shape[-1]} numbers, expected {embedding}")
  return found
