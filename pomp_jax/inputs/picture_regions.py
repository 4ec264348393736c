"""Regions of a user's pictures with scores of a user's names; for `predict`.

Shapes: R regions of a picture of H x W pixels, N names.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import posixpath

from jaxtyping import Float, UInt8
import numpy as np

from pomp_jax.config import Settings
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.data.images import ImageError, image_size, read_rgb
from pomp_jax.encoder import Encoder
from pomp_jax.files.paths import Path
from pomp_jax.inference.class_matrix import ClassMatrix
from pomp_jax.inputs.region_scorer import RegionScorer, Seen
from pomp_jax.inputs.region_sources import Images, check_region_source, open_region_source
from pomp_jax.inputs.regions import trained_classes
from pomp_jax.regions.files import Regions


def with_network(config: Settings) -> Settings:
  """The config, in which a `propose.network` without other regions is their source."""
  if config.regions.source == "none" and config.propose.network:
    return config.replace({"regions.source": "network"})
  return config


def check_picture_regions(config: Settings, files: Mapping[str, Path]) -> str | int | None:
  """Checks the network, or the file of regions; pictures whose header can't be read are skipped.

  Args:
    config: the config.
    files: pictures.

  Returns:
    The first picture that has boxes without masks; None if there is none.

  Raises:
    MaskFormerError, ClipError, ConfigError, PromptFileError, RegionFileError, CategoryFileError,
      AnnotationError: one line each.
    ImageError: pictures of the same stem, by which a file of regions names them.
  """
  shapes = {}
  of_file = files if config.regions.source == "file" else {}
  first: dict[str, str] = {}
  for name in of_file:
    if (other := first.setdefault(_stem(name), name)) != name:
      raise ImageError(f"{files[name]}: has the stem of {other}; accepted: a stem for each picture")
  for name, path in of_file.items():
    try:
      shapes[name] = image_size(path, config.data.upright)
    except ImageError:
      continue
  names, sides = list(shapes), list(shapes.values())
  pixels = lambda row: read_rgb(files[names[row]], config.data.upright)
  return check_region_source(config, _images(names, sides.__getitem__, pixels))


class PictureRegions:
  """Regions of pictures and their scores under one prompt."""

  def __init__(
    self,
    config: Settings,
    encoder: Encoder,
    names: Sequence[str],
    matrix: ClassMatrix,
    classes: ClassSplit,
    *,
    logit_scale: float,
    tight: bool,
  ):
    """Opens the network or the file; compiles on first use.

    Args:
      config: the config; `regions.source` is file or network.
      encoder: the CLIP.
      names: names of all pictures.
      matrix: the classes under the prompt.
      classes: their names.
      logit_scale: factor on the cosines of crops; 0: CLIP's.
      tight: whether crops with context are of the boxes of the masks.

    Raises:
      MaskFormerError: a network of another CLIP.
      RegionFileError, CategoryFileError, ConfigError, PromptFileError: unusable.
    """
    self._row_of = {name: row for row, name in enumerate(names)}
    self._pixels: dict[int, np.ndarray] = {}
    # A batch is filled up.
    batch_size = min(config.propose.batch_size, len(names))
    config = config.replace({"propose.batch_size": batch_size})
    pixels = self._pixels.__getitem__
    images = _images(names, lambda row: pixels(row).shape[:2], pixels)
    self._source, self._matrix = open_region_source(config, encoder, images), matrix
    self._scorer = RegionScorer(
      config.regions,
      encoder,
      self._source.header,
      trained_classes(self._source.header, classes),
      logit_scale=logit_scale,
      tight=tight,
    )

  def scored(
    self, pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]
  ) -> list[tuple[Regions, Float[np.ndarray, "_ N"]]]:
    """Regions of pictures by their names, and the scores [R,N] of the regions.

    Raises:
      RegionFileError: the file has no such picture, or boxes where masks are cropped.
    """
    self._pixels.clear()
    self._pixels |= {self._row_of[name]: image for name, image in pictures.items()}
    regions = self._source.regions(list(self._pixels))
    seen = (Seen(*one) for one in zip(pictures.values(), regions, pictures, strict=True))
    return [(one.regions, scores) for one, (scores,) in self._scorer.scores(seen, [self._matrix])]


def _images(names: Sequence[str], shape: Callable, pixels: Callable) -> Images:
  """Pictures by the stems of their names."""
  return Images([_stem(name) for name in names], shape, pixels)


def _stem(name: str) -> str:
  return os.path.splitext(posixpath.basename(name))[0]
