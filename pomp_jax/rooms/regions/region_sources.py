"""Opens the regions of images that `config.regions` asks for: from annotations, a file,
or a network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.paths import is_dir
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.proposals import check_network, open_network
from pomp_jax.rooms.regions.region_folder import (
  RegionFolder,
  RegionHeader,
  RegionResults,
  Regions,
  open_regions,
)


@dataclasses.dataclass(frozen=True)
class Images:
  """Images whose regions are asked for; functions take the number of an image."""

  keys: Sequence[str | int]  # distinct name of each image
  shape: Callable[[int], Any]  # height and width
  # called more than once for an image
  pixels: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]
  # true regions; None: no image is annotated
  annotated: Callable[[int], Regions] | None = None


class RegionSource(NamedTuple):
  """Finds the regions of images by number, at most `regions.max_regions` of an image
  unless the regions are annotated."""

  images: Images
  # how embeddings are compared with classes; None: there are no embeddings
  header: RegionHeader | None
  find: Callable[[Sequence[int]], Iterable[Regions]]


def open_region_source(
  regions: fields.Regions,
  propose: fields.Propose,
  clip: Clip,
  encoder: Encoder,
  images: Images,
) -> RegionSource:
  """Opens the regions of `config.regions`.

  Args:
    regions: source of the regions, and how many to keep.
    propose: fields of the network.
    clip: fields of the CLIP.
    encoder: the CLIP, on the devices that a network will use.
    images: images whose regions will be asked for.

  Raises:
    InputError: a file or the network is unusable.
  """
  most = regions.max_regions
  if regions.source == "truth":
    annotated = images.annotated
    assert annotated is not None
    return RegionSource(images, None, lambda block: map(annotated, block))
  if regions.source == "network":
    proposer = open_network(propose, clip, regions.mask_threshold, encoder)

    def propose_regions(block: Sequence[int]) -> Iterator[Regions]:
      for proposed in proposer.regions([images.pixels(row) for row in block]):
        yield proposed.top(most)

    return RegionSource(images, proposer.header, propose_regions)
  file = _open_file(regions.path, clip.model)

  def read(row: int) -> Regions:
    height, width = images.shape(row)
    return file.read(_name_in(file, images.keys[row]), height, width, most)

  return RegionSource(images, file.header, lambda block: map(read, block))


def check_region_source(
  regions: fields.Regions,
  propose: fields.Propose,
  clip_model: str,
  images: Images,
  task: str,
) -> None:
  """Checks what `open_region_source` will open, but not the CLIP in a network's file.

  Args:
    regions: source of the regions, and how they are scored.
    propose: fields of the network.
    clip_model: name of the CLIP.
    images: images whose regions will be asked for.
    task: name of the job. "segment" needs masks, "detect" only for masked crops.

  Raises:
    ConfigError: the regions are of a kind that the job can't use.
    InputError: a file or the network is unusable.
  """
  if regions.alone and not _embedded(regions):
    raise ConfigError(
      "regions.alone", True, "False where regions have no embeddings of a network"
    )
  if regions.source == "network":
    check_network(propose, clip_model)
  if regions.source != "file":
    return
  file = _open_file(regions.path, clip_model)
  with waiting("checking the regions of all images"):
    sizes: list[Any] = []
    for row, key in enumerate(images.keys):
      height, width = images.shape(row)
      sizes.append((_name_in(file, key), height, width))
    boxes_alone = file.check(sizes, regions.max_regions)
  if boxes_alone is None:
    return
  if task == "segment":
    accepted = f"regions with masks (image {boxes_alone} has boxes alone)"
    raise ConfigError("regions.path", regions.path, accepted)
  if regions.crop == "masked" and needs_crops(regions):
    accepted = f"context (image {boxes_alone} has regions without masks)"
    raise ConfigError("regions.crop", "masked", accepted)


def _open_file(path: str, clip_model: str) -> RegionFolder | RegionResults:
  """Opens a file or folder of regions whose embeddings fit the CLIP."""
  file = open_regions(path)
  if file.header is not None:
    width = opening.clip_config(clip_model).projection_dim
    file.header.check_fits(clip_model, width, path)
  return file


def _name_in(file: RegionFolder | RegionResults, key: str | int) -> str | int:
  """Name of an image in a region file.

  COCO results name an image by its number, the stem of its file.
  """
  is_number = isinstance(key, str) and key.isascii() and key.isdigit()
  if is_number and isinstance(file, RegionResults):
    return int(key)
  return key


def needs_crops(regions: fields.Regions) -> bool:
  """Whether CLIP's scores of crops count.

  They count if the regions have no embeddings of a network, if `regions.alone` asks for
  them, or if an exponent of the fusion is above 0.
  """
  if not _embedded(regions) or regions.alone:
    return True
  return max(regions.e_base, regions.e_novel) > 0


def _embedded(regions: fields.Regions) -> bool:
  """Whether the regions have embeddings of a network."""
  if regions.source != "file":
    return regions.source == "network"
  return is_dir(regions.path) and RegionFolder(regions.path).header.stages > 0
