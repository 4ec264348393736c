"""Image towers beside OpenAI's ViT and ResNet, and the tensors that they read.

Each family has a file. A tower is a dataclass of the settings that its tensors do not
tell. The tensors keep the checkpoint's names and shapes.
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
  """Stands for the image tower if only the text tower of a CLIP is read."""

  image_size: int = 0
  prefix: str = ""

  def features(self, params: Tensors, pixels: Any, /) -> Any:
    """Raises an InputError, because no tower was read that could encode images."""
    raise InputError(
      "clip.image_tower: got False, expected True: images are to be encoded"
    )


# Towers by timm's names, as in open_clip_config.json.
MODELS: dict[str, Any] = {**eva.MODELS, **convnext.MODELS}
ImageTowerConfig = EvaConfig | ClipaConfig | ConvNextConfig | NoImageTower
# Items that a timm tower's `vision_cfg` may have beside its sizes. `timm_model_name` is
# read; the tensors show the effect of the others, or only training uses them.
TIMM_ITEMS = {
  "timm_model_name",
  "timm_pool",
  "timm_proj",
  "timm_drop",
  "timm_drop_path",
}
_CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}


def family_of(settings: Mapping[str, Any], width: int) -> Any:
  """Returns the image tower of a `vision_cfg`; None for OpenAI's ViT or ResNet.

  Args:
    settings: `vision_cfg` of an open_clip_config.json.
    width: width of the tower, which gives CLIPA's number of heads.

  Raises:
    ValueError: no tower here has such an item; "ITEM: got .., expected ..".
  """
  timm_name = settings.get("timm_model_name")
  if timm_name is not None and timm_name not in MODELS:
    raise ValueError(
      f"timm_model_name: got {timm_name!r}, expected a tower of clip.image_towers.MODELS"
    )
  is_clipa = _is_clipa(settings)
  if not timm_name and not is_clipa:
    return None

  size = settings.get("image_size")
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"image_size: got {size!r}, expected an integer from 1")
  if timm_name:
    return dataclasses.replace(MODELS[timm_name], image_size=size)
  head_width = settings.get("head_width") or 64
  return ClipaConfig(size, width // head_width)


def _is_clipa(settings: Mapping[str, Any]) -> bool:
  """Whether a `vision_cfg` has all three items of CLIPA.

  Raises:
    ValueError: it has only some of the three items, which no tower here implements.
  """
  if all(settings.get(item) == value for item, value in _CLIPA.items()):
    return True
  # Only the value "avg" is CLIPA's. `open_clip.unread` reports values that are unknown.
  pool = settings.get("pool_type")
  if settings.get("no_ln_pre") or settings.get("final_ln_after_pool") or pool == "avg":
    items = ", ".join(f"{item}={value!r}" for item, value in _CLIPA.items())
    raise ValueError(f"pool_type: got {pool!r}, expected 'tok', or {items}")
  return False


class _RecordingTensors(dict):
  """Tensors by name; adds the name of each tensor that is read to `names_read`."""

  def __init__(self, tensors: Mapping[str, Any], names_read: set[str]):
    super().__init__(tensors)
    self._names_read = names_read

  def __getitem__(self, name: str) -> Any:
    self._names_read.add(name)
    return super().__getitem__(name)


def tower_shapes(
  tower: ImageTowerConfig, shapes: Mapping[str, tuple[int, ...]], embedding: int
) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors that a tower reads, by their names without its prefix.

  Traces the tower with the checkpoint's shapes. The trace records which tensors the
  tower reads, and the layers check their shapes.

  Args:
    tower: sizes of the image tower.
    shapes: shapes of all tensors of a checkpoint, by name.
    embedding: E, width of the features.

  Raises:
    ValueError: a tensor is missing or its shape does not fit; one line.
  """
  tensors = {}
  for name, shape in shapes.items():
    if name.startswith(tower.prefix):
      below_prefix = name.removeprefix(tower.prefix)
      tensors[below_prefix] = jax.ShapeDtypeStruct(shape, jnp.float32)
  names_read: set[str] = set()

  def features(params: Mapping[str, Any], pixels: Any) -> Any:
    return tower.features(_RecordingTensors(params, names_read), pixels)

  images = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
  try:
    result = jax.eval_shape(features, tensors, images)
  except KeyError as error:
    raise ValueError(f"{tower.prefix}{error.args[0]} is missing") from error
  except (TypeError, IndexError, ZeroDivisionError) as error:
    raise ValueError(f"no tower has such tensors ({error})") from error
  if result.shape != (1, embedding):
    raise ValueError(
      f"image features: got {result.shape[-1]} numbers, expected {embedding}"
    )
  return {name: tensors[name].shape for name in sorted(names_read)}
