"""Crops and fusion of regions, as `config.regions` describes them.

Shapes: C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool
import numpy as np

from pomp_jax.config import ConfigError
from pomp_jax.data.class_lists import normalized_names
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.paths import is_dir
from pomp_jax.rooms.regions import fields as fields
from pomp_jax.rooms.regions.crops import CropSettings
from pomp_jax.rooms.regions.features import RegionEncoder
from pomp_jax.rooms.regions.files import RegionFolder, RegionHeader
from pomp_jax.rooms.regions.scores import Fusion


def open_region_encoder(settings: fields.Regions, encoder: Encoder) -> RegionEncoder:
  """Crops as `config.regions` describes them, and the image tower.

  As in ZSSeg, a masked crop is stretched to a square, and pixels outside the mask get CLIP's mean
  colour, which becomes 0. A crop with context is cut as a square.
  """
  clip = encoder.clip
  fill = tuple(255 * float(value) for value in clip.mean)
  context = settings.crop == "context"
  crops = CropSettings(clip.image_size, fill, settings.expand, context)
  return RegionEncoder(encoder, crops)


def needs_crops(settings: fields.Regions) -> bool:
  """Whether CLIP's scores count: without a network's embeddings, or with an exponent above 0."""
  return not _embedded(settings) or settings.alone or max(settings.e_base, settings.e_novel) > 0


def check_alone(settings: fields.Regions) -> None:
  """Raises ConfigError if `regions.alone` asks to compare scores of regions without embeddings."""
  if settings.alone and not _embedded(settings):
    raise ConfigError("regions.alone", True, "False where regions have no embeddings of a network")


def _embedded(settings: fields.Regions) -> bool:
  if settings.source == "network":
    return True
  is_folder = settings.source == "file" and is_dir(settings.path)
  return is_folder and RegionFolder(settings.path).header.stages > 0


class Share(NamedTuple):
  """Whose scores count under one label: the network's, CLIP's crops', or both, fused."""

  suffix: str
  network: bool = True
  clip: bool = True


def shares_of(settings: fields.Regions) -> tuple[Share, ...]:
  """The scores that `config.regions` compares for each prompt."""
  if not settings.alone:
    return (Share(""),)
  alone = Share(", network alone", clip=False), Share(", CLIP alone", network=False)
  return (Share(", fused"), *alone)


def compared(settings: fields.Regions, prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """Prompts with the labels of their results: each prompt under all `shares_of`, in their order."""
  shares = shares_of(settings)
  return [named._replace(label=named.label + own.suffix) for named in prompts for own in shares]


def fusion_of(settings: fields.Regions) -> Fusion:
  """Exponents of `config.regions`."""
  return Fusion(settings.e_base, settings.e_novel, settings.null)


def trained_classes(header: RegionHeader | None, classes: ClassSplit) -> Bool[np.ndarray, " C"]:
  """Classes that a network was trained on: those that its file names, else the base classes."""
  if header is None or not header.trained_classes:
    return np.array(classes.groups) == "base"
  trained = set(normalized_names(header.trained_classes))
  return np.array([name in trained for name in normalized_names(classes.names)])
