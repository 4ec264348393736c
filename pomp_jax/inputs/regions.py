"""Crops and scores of regions, as `config.regions` describes them; for `segment` and `detect`.

Shapes: R regions, H, W sides of an image in pixels, C classes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import ConfigError
from pomp_jax.config import region_fields as fields
from pomp_jax.data.class_lists import normalized_names
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.encoder import Encoder
from pomp_jax.files.paths import is_dir
from pomp_jax.files.terminal import waiting
from pomp_jax.inference.named_prompts import NamedPrompt
from pomp_jax.regions.boxes import boxes_of_masks
from pomp_jax.regions.crops import CropSettings
from pomp_jax.regions.features import RegionEncoder
from pomp_jax.regions.files import (
  ImageSize,
  RegionFolder,
  RegionHeader,
  Regions,
)
from pomp_jax.regions.masks import hard_masks
from pomp_jax.regions.resize import resized_image
from pomp_jax.regions.scores import Fusion
from pomp_jax.regions.sources import RegionResults, open_regions


def open_region_encoder(settings: fields.Regions, encoder: Encoder) -> RegionEncoder:
  """Crops as `config.regions` describes them, and the image tower.

  A masked crop is stretched to a square and has CLIP's mean colour outside the mask, which is 0
  after normalising, as in ZSSeg. A crop with context is square.
  """
  clip = encoder.clip
  fill = tuple(255 * float(value) for value in clip.mean)
  context = settings.crop == "context"
  crops = CropSettings(clip.image_size, fill, settings.expand, context)
  return RegionEncoder(encoder, crops)


def open_region_file(
  settings: fields.Regions, clip_model: str, clip_config: ClipConfig
) -> RegionFolder | RegionResults | None:
  """Opens `config.regions.path`, and checks that it is about this CLIP; None without one.

  Args:
    settings: `config.regions`.
    clip_model: `config.clip.model`.
    clip_config: its sizes.

  Raises:
    RegionFileError, CategoryFileError: unusable.
  """
  if settings.source != "file":
    return None
  file = open_regions(settings.path)
  if file.header is not None:
    file.header.check_fits(clip_model, clip_config.projection_dim, settings.path)
  return file


def check_region_file(
  settings: fields.Regions,
  clip_model: str,
  clip_config: ClipConfig,
  images: Iterable[tuple[str | int, int, int]],
) -> str | int | None:
  """Checks the regions of all images in `config.regions.path`.

  Args:
    settings: `config.regions`.
    clip_model: `config.clip.model`.
    clip_config: its sizes.
    images: key, height and width of each image.

  Returns:
    The first image that has boxes without masks; None if there is none, or no file.

  Raises:
    RegionFileError, CategoryFileError, AnnotationError: unusable.
  """
  file = open_region_file(settings, clip_model, clip_config)
  if file is None:
    return None
  sizes = (ImageSize(region_key(file, key), *sides) for key, *sides in images)
  with waiting("checking the regions of all images"):
    return file.check(sizes, settings.max_regions)


def region_key(file: RegionFolder | RegionResults, key: str | int) -> str | int:
  """Name of an image in a region file: COCO results have numbers, as the stems of COCO's images."""
  is_number = isinstance(key, str) and key.isascii() and key.isdigit()
  return int(key) if is_number and isinstance(file, RegionResults) else key


class Cropped(NamedTuple):
  """What `RegionEncoder.features` makes crops of.

  Attributes:
    images: pixels of each image.
    boxes: boxes of each image's regions.
    masks: masks of the regions, or None for crops without masks.
  """

  images: list[UInt8[np.ndarray, "_ _ 3"]]
  boxes: list[Float[np.ndarray, "_ 4"]]
  masks: list[Bool[np.ndarray, "_ _ _"]] | None


def cropped(
  settings: fields.Regions,
  images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  regions: Sequence[Regions],
  where: Sequence[str],
  by_masks: bool,
) -> Cropped:
  """Images at the size of `regions.size`, with boxes and masks in their pixels.

  Args:
    settings: `config.regions`.
    images: images as they are.
    regions: regions of each image.
    where: names of the images, for messages.
    by_masks: whether the boxes are those of the masks; otherwise the regions' own.

  Raises:
    RegionFileError: there are boxes only, where masks are needed.
  """
  found = Cropped([], [], [] if settings.crop == "masked" else None)
  for image, one, name in zip(images, regions, where, strict=True):
    seen = resized_image(image, settings.size)
    found.images.append(seen)
    sides = seen.shape[:2]
    if not by_masks:
      (height, width), (old_height, old_width) = sides, image.shape[:2]
      found.boxes.append(one.boxes * np.float32([width / old_width, height / old_height] * 2))
      continue
    hard = hard_masks(one.drawn(name), *sides, settings.mask_threshold)
    if found.masks is not None:
      found.masks.append(np.array(list(hard), bool).reshape(-1, *sides))
      hard = iter(found.masks[-1])
    found.boxes.append(boxes_of_masks(hard))
  return found


def needs_crops(settings: fields.Regions) -> bool:
  """Whether CLIP's scores count: without a network's embeddings, or with an exponent above 0.

  Raises:
    RegionFileError, CategoryFileError: unusable `regions.json`.
  """
  return not _embedded(settings) or settings.alone or max(settings.e_base, settings.e_novel) > 0


def _embedded(settings: fields.Regions) -> bool:
  if settings.source == "network":
    return True
  is_folder = settings.source == "file" and is_dir(settings.path)
  return is_folder and RegionFolder(settings.path).header.stages > 0


class Share(NamedTuple):
  """Whose scores count under one label.

  Attributes:
    suffix: end of the label.
    network: whether the network's do.
    clip: whether CLIP's do.
  """

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


def check_alone(settings: fields.Regions) -> None:
  """Checks that there are two scores to compare, where `regions.alone` asks for it.

  Raises:
    ConfigError: regions without embeddings.
    RegionFileError, CategoryFileError: unusable `regions.json`.
  """
  if settings.alone and not _embedded(settings):
    raise ConfigError("regions.alone", True, "False where regions have no embeddings of a network")


def fusion_of(settings: fields.Regions) -> Fusion:
  """Exponents of `config.regions`."""
  return Fusion(settings.e_base, settings.e_novel, settings.null)


def trained_classes(header: RegionHeader | None, classes: ClassSplit) -> Bool[np.ndarray, " C"]:
  """Classes that a network was trained on: those that its file names, else the base classes."""
  if header is None or not header.trained_classes:
    return np.array(classes.groups) == "base"
  trained = set(normalized_names(header.trained_classes))
  return np.array([name in trained for name in normalized_names(classes.names)])
