"""Networks that find regions, as `config.propose` names them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pomp_jax.config import ConfigError, Settings
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.class_matrix import check_prompt, class_matrix, key_parts
from pomp_jax.evaluate.named_prompts import NamedPrompt, only_prompt, read_prompts
from pomp_jax.files.paths import Path, is_dir, to_path
from pomp_jax.files.pieces import file_stamps
from pomp_jax.rooms.regions.files import RegionHeader
from pomp_jax.rooms.regions.mask_former.weights import MaskFormerFile, check_clip, read_mask_former
from pomp_jax.rooms.regions.proposals import Proposer, header_of

# Name of a prompt: the one inside the file of `propose.network`.
_NETWORK_PROMPT = "network"


class OpenNetwork(NamedTuple):
  """A network on the devices."""

  file: MaskFormerFile
  proposer: Proposer
  header: RegionHeader  # how embeddings of its regions are compared with a class matrix


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


def open_network(config: Settings, encoder: Encoder, batch_size: int) -> OpenNetwork:
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
  proposer = Proposer(
    network,
    encoder.mesh,
    classes_NxE,
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
