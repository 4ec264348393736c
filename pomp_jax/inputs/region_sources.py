"""Where the regions of images come from, as `config.regions` says: one interface for all origins.

Regions are the annotated ones, those of a file, or those that a network finds while the job runs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import UInt8
import numpy as np

from pomp_jax import inputs
from pomp_jax.config import Settings
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import file_stamps
from pomp_jax.inputs.networks import OpenNetwork, check_network, network_key_parts, open_network
from pomp_jax.inputs.regions import check_region_file, open_region_file, region_key
from pomp_jax.regions.files import RegionFolder, RegionHeader, Regions
from pomp_jax.regions.sources import RegionResults, region_files


class Images(NamedTuple):
  """Images whose regions are asked for, by their numbers.

  Attributes:
    keys: distinct name of each image.
    shape: height and width.
    pixels: uint8 [H,W,3]; called more than once for an image.
    annotated: true regions; None: no image is annotated.
  """

  keys: Sequence[str | int]
  shape: Callable[[int], tuple[int, int]]
  pixels: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]
  annotated: Callable[[int], Regions] | None = None


@runtime_checkable
class RegionSource(Protocol):
  """Regions of images.

  Attributes:
    header: what embeddings are compared by; None without embeddings.
  """

  header: RegionHeader | None

  def regions(self, block: Sequence[int]) -> Iterator[Regions]:
    """Regions of each image of a block, `regions.max_regions` at most but for annotated ones.

    Raises:
      ImageError, RegionFileError, AnnotationError: an image or its regions can't be read.
    """


def open_region_source(config: Settings, encoder: Encoder, images: Images) -> RegionSource:
  """Opens the regions of `config.regions`; writes nothing.

  Raises:
    RegionFileError, CategoryFileError: an unusable file.
    MaskFormerError, ConfigError, PromptFileError, VocabularyError: see `open_network`.
  """
  settings = config.regions
  if settings.source == "network":
    return _Found(config, images, open_network(config, encoder, config.propose.batch_size))
  file = open_region_file(settings, config.clip.model, encoder.clip.config)
  return _Annotated(images) if file is None else _Stored(images, file, settings.max_regions)


def check_region_source(config: Settings, images: Images) -> str | int | None:
  """Checks what `open_region_source` will open, the CLIP inside a network apart.

  Args:
    config: the config.
    images: images; only keys and shapes are read.

  Returns:
    The first image that has boxes without masks; None if there is none.

  Raises:
    RegionFileError, CategoryFileError, AnnotationError: an unusable file.
    ConfigError, ClipError, MaskFormerError, PromptFileError: see `check_network`.
  """
  if config.regions.source == "network":
    check_network(config)
  sizes = ((key, *images.shape(index)) for index, key in enumerate(images.keys))
  clip_config = inputs.clip_config(config.clip.model)
  return check_region_file(config.regions, config.clip.model, clip_config, sizes)


def region_key_parts(config: Settings, keys: Sequence[str | int]) -> list[Any]:
  """Parts of a cache key of what depends on the regions; a file counts by its stamp."""
  parts: list[Any] = [str(config.regions)]
  if config.regions.source == "file":
    parts.append(file_stamps(region_files(config.regions.path, keys)))
  if config.regions.source == "network":
    parts += network_key_parts(config)
  return parts


class _Annotated:
  """True regions."""

  header = None

  def __init__(self, images: Images):
    self._images = images

  def regions(self, block):
    return map(self._images.annotated, block)


class _Stored:
  """Regions of a file."""

  def __init__(self, images: Images, file: RegionFolder | RegionResults, most: int):
    self.header = file.header
    self._images, self._file, self._most = images, file, most

  def regions(self, block):
    for index in block:
      key = region_key(self._file, self._images.keys[index])
      yield self._file.read(key, *self._images.shape(index), self._most)


class _Found:
  """Regions that a network finds."""

  def __init__(self, config: Settings, images: Images, network: OpenNetwork):
    self.header = network.header
    self._images, self._proposer = images, network.proposer
    self._most = config.regions.max_regions

  def regions(self, block):
    for regions in self._proposer.regions([self._images.pixels(index) for index in block]):
      yield regions.top(self._most)
