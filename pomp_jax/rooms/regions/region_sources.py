"""Where regions of images come from, as `config.regions` says: annotations, files, a network."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import Settings
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.files.pieces import file_stamps
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions.files import ImageSize, RegionFolder, RegionHeader, Regions
from pomp_jax.rooms.regions.networks import check_network, network_key_parts, open_network
from pomp_jax.rooms.regions.sources import RegionResults, open_regions, region_files


class Images(NamedTuple):
  """Images whose regions are asked for; functions take the number of an image."""

  keys: Sequence[str | int]  # distinct name of each image
  shape: Callable[[int], tuple[int, ...]]  # height and width
  pixels: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]  # called more than once for an image
  annotated: Callable[[int], Regions] | None = None  # true regions; None: no image is annotated


class RegionSource(NamedTuple):
  """Regions of images by their numbers, `regions.max_regions` at most unless annotated."""

  header: RegionHeader | None  # what embeddings are compared by; None without embeddings
  regions: Callable[[Sequence[int]], Iterable[Regions]]


def open_region_source(config: Settings, encoder: Encoder, images: Images) -> RegionSource:
  """Opens the regions of `config.regions`; writes nothing.

  Raises:
    InputError: an unusable file or network, one line.
  """
  most = config.regions.max_regions
  if config.regions.source == "truth":
    assert images.annotated is not None
    annotated = images.annotated
    return RegionSource(None, lambda block: map(annotated, block))
  if config.regions.source == "network":
    network = open_network(config, encoder, config.propose.batch_size)
    find = network.proposer.regions
    return RegionSource(
      network.header,
      lambda block: (found.top(most) for found in find([images.pixels(row) for row in block])),
    )
  file = _open_file(config, encoder.clip.config)
  read = lambda row: file.read(_name_in(file, images.keys[row]), *images.shape(row), most)
  return RegionSource(file.header, lambda block: map(read, block))


def check_region_source(config: Settings, images: Images) -> str | int | None:
  """Checks what `open_region_source` will open, except for the CLIP inside a network.

  Returns:
    The first image that has boxes without masks in a file; None if there is none.

  Raises:
    InputError: an unusable file or network, one line.
  """
  if config.regions.source == "network":
    check_network(config)
  if config.regions.source != "file":
    return None
  file = _open_file(config, inputs.clip_config(config.clip.model))
  sizes = (
    ImageSize(_name_in(file, key), *images.shape(row)) for row, key in enumerate(images.keys)
  )
  with waiting("checking the regions of all images"):
    return file.check(sizes, config.regions.max_regions)


def region_key_parts(config: Settings, keys: Sequence[str | int]) -> list[Any]:
  """Parts of a cache key of what depends on the regions; a file counts by its stamp."""
  parts: list[Any] = [str(config.regions)]
  if config.regions.source == "file":
    parts.append(file_stamps(region_files(config.regions.path, keys)))
  if config.regions.source == "network":
    parts += network_key_parts(config)
  return parts


def _open_file(config: Settings, clip_config: ClipConfig) -> RegionFolder | RegionResults:
  file = open_regions(config.regions.path)
  if file.header is not None:
    file.header.check_fits(config.clip.model, clip_config.projection_dim, config.regions.path)
  return file


def _name_in(file: RegionFolder | RegionResults, key: str | int) -> str | int:
  """Name of an image in a region file: COCO results have numbers, as the stems of COCO's images."""
  is_number = isinstance(key, str) and key.isascii() and key.isdigit()
  return int(key) if is_number and isinstance(file, RegionResults) else key
