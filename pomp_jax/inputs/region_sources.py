"""Where the regions of images come from, as `config.regions` says: one interface for all origins.

Regions are the annotated ones, those of a file, or those that a network finds while the job runs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import UInt8
import numpy as np

from pomp_jax import inputs
from pomp_jax.config import ConfigError, Settings
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import file_stamps
from pomp_jax.files.paths import Path, is_dir, to_path
from pomp_jax.files.terminal import waiting
from pomp_jax.inference.class_matrix import check_prompt, class_matrix, key_parts
from pomp_jax.inference.named_prompts import NamedPrompt, read_prompts
from pomp_jax.inference.proposals import Proposer, header_of
from pomp_jax.masks.weights import MaskFormerFile, check_clip, read_mask_former
from pomp_jax.regions.files import ImageSize, RegionFolder, RegionHeader, Regions
from pomp_jax.regions.sources import RegionResults, open_regions, region_files

# Name of a prompt: the one inside the file of `propose.network`.
NETWORK_PROMPT = "network"


class Images(NamedTuple):
  """Images whose regions are asked for, by their numbers.

  Attributes:
    keys: distinct name of each image.
    shape: height and width.
    pixels: uint8 [H,W,3]; called more than once for an image.
    annotated: true regions.
  """

  keys: Sequence[str | int]
  shape: Callable[[int], tuple[int, int]]
  pixels: Callable[[int], UInt8[np.ndarray, "_ _ 3"]]
  annotated: Callable[[int], Regions]


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
    MaskFormerError: an unusable network, or one with another CLIP inside than `config.clip.model`.
    ConfigError, PromptFileError, VocabularyError: an unusable `propose.prompt`.
  """
  if config.regions.source == "truth":
    return _Annotated(images)
  if config.regions.source == "file":
    return _Stored(config, images, _open_file(config))
  network, proposer = open_proposer(config, encoder)
  return _Found(config, images, network, proposer)


def check_region_source(config: Settings, images: Images) -> str | int | None:
  """Checks what `open_region_source` will open, the CLIP inside a network apart.

  Args:
    config: the whole config.
    images: images; only keys and shapes are read.

  Returns:
    The first image that has boxes without masks; None if there is none.

  Raises:
    RegionFileError, CategoryFileError, AnnotationError: an unusable file.
    ConfigError, ClipError, MaskFormerError, PromptFileError: see `check_network`.
  """
  if config.regions.source == "network":
    check_network(config)
  if config.regions.source != "file":
    return None
  file = _open_file(config)
  sizes = (
    ImageSize(_key_in(file, key), *images.shape(index)) for index, key in enumerate(images.keys)
  )
  with waiting("checking the regions of all images"):
    return file.check(sizes, config.regions.max_regions)


def check_network(config: Settings) -> MaskFormerFile:
  """Reads the network of `config.propose`; checks its width, and the prompt of its classes.

  Raises:
    ConfigError, ClipError, MaskFormerError, PromptFileError: one line each.
  """
  clip_config = inputs.clip_config(config.clip.model)
  network = read_mask_former(network_path(config))
  if network.config.embedding != clip_config.projection_dim:
    accepted = f"a CLIP of {network.config.embedding} numbers, as {config.propose.network}"
    raise ConfigError("clip.model", config.clip.model, accepted)
  named = _prompt_of_classes(config)
  if network.trained_classes:
    synonyms = [(name,) for name in network.trained_classes]
    check_prompt(named, synonyms, clip_config, config.clip.model)
  return network


def open_proposer(config: Settings, encoder: Encoder) -> tuple[MaskFormerFile, Proposer]:
  """Opens the network of `config.propose` on the devices; writes nothing.

  Raises:
    MaskFormerError: unusable, or with another CLIP inside than the encoder's.
    ConfigError, PromptFileError, VocabularyError: an unusable `propose.prompt`.
  """
  path, own = network_path(config), config.propose
  check_clip(path, encoder.clip)
  network = read_mask_former(path)
  classes_NxE = None
  if network.trained_classes:
    synonyms = [(name,) for name in network.trained_classes]
    classes_NxE = class_matrix(encoder, synonyms, _prompt_of_classes(config)).features
  proposer = Proposer(
    network,
    encoder.mesh,
    classes_NxE,
    dtype=config.clip.dtype,
    size=own.size,
    stride=own.stride,
    threshold=config.regions.mask_threshold,
    batch_size=own.batch_size,
  )
  return network, proposer


def network_path(config: Settings) -> Path:
  """File of `propose.network`; a run's folder stands for the network that it has trained."""
  path = config.propose.network
  return to_path(path) / "masks.pth" if is_dir(path) else to_path(path)


def read_prompts_of(names: Sequence[str], field: str, config: Settings) -> list[NamedPrompt]:
  """`read_prompts`, where `network` stands for the prompt inside the file of `propose.network`.

  Raises:
    ConfigError: as `read_prompts`; no network.
    PromptFileError, HubError, CheckpointError: a file is unusable; the network has no prompt.
  """
  if NETWORK_PROMPT in names and not config.propose.network:
    raise ConfigError("propose.network", "", f"a network where {field} has {NETWORK_PROMPT!r}")
  path = str(network_path(config))
  return read_prompts([path if name == NETWORK_PROMPT else name for name in names], field)


def region_key_parts(config: Settings, keys: Sequence[str | int]) -> list[Any]:
  """Parts of a cache key of what depends on the regions; a file counts by its stamp."""
  parts: list[Any] = [str(config.regions)]
  if config.regions.source == "file":
    parts.append(file_stamps(region_files(config.regions.path, keys)))
  if config.regions.source == "network":
    parts += network_key_parts(config)
  return parts


def network_key_parts(config: Settings) -> list[Any]:
  """Parts of a cache key of what depends on a network's regions, beside the CLIP and the images."""
  parts = [str(config.propose), str(config.regions.mask_threshold), config.clip.dtype]
  parts.append(file_stamps([network_path(config)]))
  # The names of its classes are in the file.
  return parts + key_parts(_prompt_of_classes(config), [])


def _prompt_of_classes(config: Settings) -> NamedPrompt:
  (named, *_) = read_prompts_of([config.propose.prompt], "propose.prompt", config)
  return named


def _open_file(config: Settings) -> RegionFolder | RegionResults:
  """`config.regions.path`, about this CLIP."""
  file = open_regions(config.regions.path)
  if file.header is not None:
    width = inputs.clip_config(config.clip.model).projection_dim
    file.header.check_fits(config.clip.model, width, config.regions.path)
  return file


def _key_in(file: RegionFolder | RegionResults, key: str | int) -> str | int:
  """Name of an image in a region file: COCO results have numbers, as the stems of COCO's images."""
  is_number = isinstance(key, str) and key.isascii() and key.isdigit()
  return int(key) if is_number and isinstance(file, RegionResults) else key


class _Annotated:
  """True regions."""

  header = None

  def __init__(self, images: Images):
    self._images = images

  def regions(self, block):
    return map(self._images.annotated, block)


class _Stored:
  """Regions of a file."""

  def __init__(self, config: Settings, images: Images, file: RegionFolder | RegionResults):
    self.header = file.header
    self._images, self._file, self._most = images, file, config.regions.max_regions

  def regions(self, block):
    for index in block:
      key, shape = _key_in(self._file, self._images.keys[index]), self._images.shape(index)
      yield self._file.read(key, *shape, self._most)


class _Found:
  """Regions that a network finds."""

  def __init__(self, config: Settings, images: Images, network: MaskFormerFile, proposer: Proposer):
    self.header = header_of(network, config.clip.model)
    self._images, self._proposer, self._most = images, proposer, config.regions.max_regions

  def regions(self, block):
    for regions in self._proposer.regions([self._images.pixels(index) for index in block]):
      yield regions.top(self._most)
