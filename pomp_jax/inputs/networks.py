"""Networks that find regions, as `config.propose` names them."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from pomp_jax import inputs
from pomp_jax.config import ConfigError, Settings
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import file_stamps
from pomp_jax.files.paths import Path, is_dir, to_path
from pomp_jax.inference.class_matrix import check_prompt, class_matrix, key_parts
from pomp_jax.inference.named_prompts import NamedPrompt, only_prompt, read_prompts
from pomp_jax.inference.proposals import Proposer, header_of
from pomp_jax.masks.weights import MaskFormerFile, check_clip, read_mask_former
from pomp_jax.regions.files import RegionHeader

# Name of a prompt: the one inside the file of `propose.network`.
NETWORK_PROMPT = "network"


@dataclasses.dataclass(frozen=True)
class OpenNetwork:
  """A network on the devices.

  Attributes:
    file: sizes and parameters, and the names of its classes.
    proposer: finds regions.
    header: how their embeddings are compared with a class matrix.
  """

  file: MaskFormerFile
  proposer: Proposer
  header: RegionHeader


def network_path(path: str) -> Path:
  """File of a network; a run's folder stands for the network that it has trained."""
  return to_path(path) / "masks.safetensors" if is_dir(path) else to_path(path)


def check_network(config: Settings) -> None:
  """Reads the network of `config.propose`; checks its width, and the prompt of its classes.

  Raises:
    MaskFormerError, ClipError, ConfigError, PromptFileError: one line each.
  """
  own, clip_config = config.propose, inputs.clip_config(config.clip.model)
  network = read_mask_former(network_path(own.network))
  if network.config.embedding != clip_config.projection_dim:
    accepted = f"a CLIP of {network.config.embedding} numbers, as {own.network}"
    raise ConfigError("clip.model", config.clip.model, accepted)
  named = _prompt_of_classes(config)
  if network.trained_classes:
    check_prompt(named, _synonyms(network), clip_config, config.clip.model)


def open_network(config: Settings, encoder: Encoder, batch_size: int) -> OpenNetwork:
  """Opens the network of `config.propose`; writes nothing.

  Args:
    config: the config.
    encoder: the CLIP, for the class matrix of the network's classes and the devices.
    batch_size: images of the same padded size that are computed together.

  Raises:
    MaskFormerError: unusable, or a checkpoint with another CLIP inside than the encoder's.
    ConfigError, PromptFileError, VocabularyError: an unusable `propose.prompt`.
  """
  own = config.propose
  path = network_path(own.network)
  check_clip(path, encoder.clip)
  network = read_mask_former(path)
  proposer = Proposer(
    network,
    encoder.mesh,
    _classes(config, encoder, network),
    dtype=config.clip.dtype,
    size=own.size,
    stride=own.stride,
    threshold=config.regions.mask_threshold,
    batch_size=batch_size,
  )
  return OpenNetwork(network, proposer, header_of(network, config.clip.model))


def network_key_parts(config: Settings) -> list[Any]:
  """Cache key parts of a network's regions, beside those of the CLIP and the images."""
  parts = [str(config.propose), str(config.regions.mask_threshold), config.clip.dtype]
  parts.append(file_stamps([network_path(config.propose.network)]))
  # The names of its classes are in the file.
  return parts + key_parts(_prompt_of_classes(config), [])


def read_prompts_of(names: Sequence[str], field: str, config: Settings) -> list[NamedPrompt]:
  """`read_prompts`, where `network` stands for the prompt inside the file of `propose.network`.

  Raises:
    ConfigError: as `read_prompts`; no network.
    PromptFileError, HubError, CheckpointError: a file is unusable; the network has no prompt.
  """
  network = config.propose.network
  if NETWORK_PROMPT in names and not network:
    raise ConfigError("propose.network", "", f"a network where {field} has {NETWORK_PROMPT!r}")
  path = str(network_path(network))
  return read_prompts([path if name == NETWORK_PROMPT else name for name in names], field)


def _prompt_of_classes(config: Settings) -> NamedPrompt:
  field = "propose.prompt"
  return only_prompt(read_prompts_of([config.propose.prompt], field, config), field)


def _classes(config: Settings, encoder: Encoder, network: MaskFormerFile) -> np.ndarray | None:
  """Class matrix of the network's classes, if its file names them."""
  if not network.trained_classes:
    return None
  return class_matrix(encoder, _synonyms(network), _prompt_of_classes(config)).features


def _synonyms(network: MaskFormerFile) -> list[tuple[str, ...]]:
  return [(name,) for name in network.trained_classes]
