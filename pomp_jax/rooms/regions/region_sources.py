"""Where regions of images come from, as `config.regions` says: annotations, files, a network."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import ConfigError, Settings
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.named_prompts import NamedPrompt, check_prompt, only_prompt, read_prompts
from pomp_jax.files.paths import Path, is_dir, to_path
from pomp_jax.files.pieces import file_stamps
from pomp_jax.files.terminal import waiting
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import class_matrix, key_parts
from pomp_jax.rooms.regions.coco_results import RegionResults, open_regions, region_files
from pomp_jax.rooms.regions.mask_former.published_weights import (
  MaskFormerFile,
  check_clip,
  read_mask_former,
)
from pomp_jax.rooms.regions.proposals import Proposer
from pomp_jax.rooms.regions.region_folder import ImageSize, RegionFolder, RegionHeader, Regions

# Name of a prompt: the one inside the file of `propose.network`.
_NETWORK_PROMPT = "network"


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
  """Opens the regions of `config.regions`; InputError: an unusable file or network, one line."""
  most = config.regions.max_regions
  if config.regions.source == "truth":
    assert images.annotated is not None
    annotated = images.annotated
    return RegionSource(None, lambda block: map(annotated, block))
  if config.regions.source == "network":
    proposer = open_network(config, encoder, config.propose.batch_size)
    find = lambda block: proposer.regions([images.pixels(row) for row in block])
    return RegionSource(proposer.header, lambda block: (found.top(most) for found in find(block)))
  file = _open_file(config, encoder.clip.config)
  read = lambda row: file.read(_name_in(file, images.keys[row]), *images.shape(row), most)
  return RegionSource(file.header, lambda block: map(read, block))


def check_region_source(config: Settings, task: str, images: Images) -> None:
  """Checks what `open_region_source` will open, except for the CLIP inside a network.

  Raises:
    InputError: an unusable file or network; boxes without masks where `task` needs masks: `segment`
      always, `detect` for masked crops; `regions.alone` without embeddings.
  """
  settings = config.regions
  if settings.alone and not _embedded(settings):
    raise ConfigError("regions.alone", True, "False where regions have no embeddings of a network")
  if settings.source == "network":
    check_network(config)
  if settings.source != "file":
    return
  file = _open_file(config, inputs.clip_config(config.clip.model))
  sizes = (
    ImageSize(_name_in(file, key), *images.shape(row)) for row, key in enumerate(images.keys)
  )
  with waiting("checking the regions of all images"):
    boxes_alone = file.check(sizes, settings.max_regions)
  if boxes_alone is None:
    return
  if task == "segment":
    accepted = f"regions with masks (image {boxes_alone} has boxes alone)"
    raise ConfigError("regions.path", settings.path, accepted)
  if settings.crop == "masked" and needs_crops(settings):
    accepted = f"context (image {boxes_alone} has regions without masks)"
    raise ConfigError("regions.crop", "masked", accepted)


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


def needs_crops(settings: fields.Regions) -> bool:
  """Whether CLIP's scores count: without a network's embeddings, or with an exponent above 0."""
  return not _embedded(settings) or settings.alone or max(settings.e_base, settings.e_novel) > 0


def _embedded(settings: fields.Regions) -> bool:
  if settings.source != "file":
    return settings.source == "network"
  return is_dir(settings.path) and RegionFolder(settings.path).header.stages > 0


def network_path(path: str) -> Path:
  """File of a network; a run's folder stands for the network that it has trained."""
  return to_path(path) / "masks.safetensors" if is_dir(path) else to_path(path)


def check_network(config: Settings) -> None:
  """Reads the network of `config.propose`; checks its width, and the prompt of its classes."""
  own, clip_config = config.propose, inputs.clip_config(config.clip.model)
  network = read_mask_former(network_path(own.network))
  if network.config.embedding != clip_config.projection_dim:
    accepted = f"a CLIP of {network.config.embedding} numbers, as {own.network}"
    raise ConfigError("clip.model", config.clip.model, accepted)
  named = _prompt_of_classes(config)
  if network.trained_classes:
    check_prompt(named, _synonyms(network), clip_config, config.clip.model)


def open_network(config: Settings, encoder: Encoder, batch_size: int) -> Proposer:
  """Opens the network of `config.propose`, for this number of images of one padded size at a time.

  Raises:
    MaskFormerError: unusable, or a checkpoint with another CLIP inside than the encoder's.
    ConfigError, PromptFileError, VocabularyError: an unusable `propose.prompt`.
  """
  own = config.propose
  path = network_path(own.network)
  check_clip(path, encoder.clip)
  network, classes_NxE = read_mask_former(path), None
  if network.trained_classes:
    named = _prompt_of_classes(config)
    classes_NxE = class_matrix(encoder, _synonyms(network), named).features
  return Proposer(
    network,
    encoder.mesh,
    classes_NxE,
    clip_model=config.clip.model,
    dtype=config.clip.dtype,
    size=own.size,
    stride=own.stride,
    threshold=config.regions.mask_threshold,
    batch_size=batch_size,
  )


def network_key_parts(config: Settings) -> list[Any]:
  """Cache key parts of a network's regions, beside those of the CLIP and the images."""
  parts = [str(config.propose), str(config.regions.mask_threshold), config.clip.dtype]
  parts.append(file_stamps([network_path(config.propose.network)]))
  # The names of its classes are in the file.
  return parts + key_parts(_prompt_of_classes(config), [])


def read_prompts_of(names: Sequence[str], field: str, config: Settings) -> list[NamedPrompt]:
  """`read_prompts`, where `network` stands for the prompt inside the file of `propose.network`."""
  network = config.propose.network
  if _NETWORK_PROMPT in names and not network:
    raise ConfigError("propose.network", "", f"a network where {field} has {_NETWORK_PROMPT!r}")
  path = str(network_path(network))
  return read_prompts([path if name == _NETWORK_PROMPT else name for name in names], field)


def _prompt_of_classes(config: Settings) -> NamedPrompt:
  field = "propose.prompt"
  return only_prompt(read_prompts_of([config.propose.prompt], field, config), field)


def _synonyms(network: MaskFormerFile) -> list[tuple[str, ...]]:
  return [(name,) for name in network.trained_classes]
