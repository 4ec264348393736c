"""Reads the prompts of this room by name: mixtures "0.5*A + 0.5*B" of class vectors,
sentences about classes, random words.

Shapes: N classes, E embedding.
"""

from collections.abc import Sequence
import math
from typing import Any

from jaxtyping import Float
import numpy as np
from transformers import CLIPTextConfig

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.tokens import Tokenizer
from pomp_jax.config.errors import require
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import named_prompts
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.named_prompts import (
  ENSEMBLE,
  HAND_WRITTEN,
  OUTPUTS,
  NamedPrompt,
  OtherPrompt,
)
from pomp_jax.files.paths import is_dir
from pomp_jax.files.prompt_file import ClassFeatures, is_hub, is_prompt_file
from pomp_jax.rooms.mixtures.descriptions import Waffle, is_waffle, read_descriptions

_TAKES = (
  "a positive weight for each part, such as 0.5*A + 0.5*B, each a prompt by one name"
)


class Mixture(OtherPrompt):
  """Weighted sum of the class vectors of several prompts, normalised."""

  def __init__(self, parts: Sequence[NamedPrompt], weights: Sequence[float] = ()):
    """Scales `weights` to sum 1; a mixture has none until `Weights` chooses them."""
    self.parts = parts
    # Divide by a power of two first. This changes no digit, and keeps the sum of very
    # large weights finite.
    _, power = math.frexp(max(weights, default=1.0))
    scaled = [math.ldexp(weight, -power) for weight in weights]
    self.weights = tuple(weight / sum(scaled) for weight in scaled)
    prompts = [part.prompt for part in parts]
    self.of_one_list = any(named_prompts.of_one_list(prompt) for prompt in prompts)
    self.upright = None
    self.has_rows = False
    for prompt in prompts:
      # The first part that records `upright` stands for all.
      if self.upright is None:
        self.upright = getattr(prompt, "upright", None)
      has_rows = getattr(prompt, "has_rows", False)
      if has_rows or isinstance(prompt, ClassFeatures):
        self.has_rows = True

  def features(self, encoder: Encoder, classes: ClassList) -> Float[np.ndarray, "N E"]:
    parts = [features_under(encoder, classes, part.prompt) for part in self.parts]
    return mixed(parts, self.weights)

  def check(
    self,
    label: str,
    synonyms: Sequence[Sequence[str]],
    clip_config: ClipConfig,
    clip_model: str,
  ) -> None:
    """Checks that each part fits a CLIP and the classes.

    Args:
      label: name of the mixture, for messages.
      synonyms: names of each class.
      clip_config: architecture of the CLIP.
      clip_model: name of the CLIP.

    Raises:
      InputError: a part does not fit.
    """
    for part in self.parts:
      named = part._replace(label=f"{part.label} of {label}")
      named_prompts.check_prompt(named, synonyms, clip_config, clip_model)

  def check_lengths(
    self,
    classes: ClassList,
    tokenizer: Tokenizer,
    text_config: CLIPTextConfig,
    where: str,
  ) -> None:
    """Checks that the names fit each part's tokens.

    Args:
      classes: names of the classes.
      tokenizer: tokenizer of the CLIP.
      text_config: sizes of the CLIP's text tower.
      where: name of the mixture, for messages.

    Raises:
      InputError: a name is too long.
    """
    for part in self.parts:
      label = f"{part.label} of {where}"
      named_prompts.check_lengths(part.prompt, classes, tokenizer, text_config, label)

  def describe(self, classes: ClassList) -> list[Any]:
    """Cache key parts: the weights, and the key parts of each prompt."""
    key: list[Any] = [str(self.weights)]
    for part in self.parts:
      key.append("part")
      key += named_prompts.describe(part.prompt, classes)
    return key


def mixed(
  features: Sequence[Float[np.ndarray, "N E"]], weights: Sequence[float]
) -> Float[np.ndarray, "N E"]:
  """Weighted sum of unit features, with unit rows."""
  weighted = []
  for features_NxE, weight in zip(features, weights, strict=True):
    weighted.append(weight * features_NxE)
  total_NxE = np.sum(weighted, axis=0)
  return total_NxE / np.linalg.norm(total_NxE, axis=-1, keepdims=True)


def read_prompt(item: str, field: str, chosen: bool) -> OtherPrompt | None:
  """Reads a prompt of this room by its name; None for another name.

  Args:
    item: name of the prompt.
    field: name of the config field, for messages.
    chosen: whether the caller can choose the weights of a mixture without weights.

  Raises:
    ConfigError: a part or a weight of a mixture is wrong.
    PromptFileError: a file of sentences or words is unusable.
  """
  if is_waffle(item):
    return Waffle(item)
  is_mixture = " + " in item
  if item.endswith(".json") and is_prompt_file(item) and not is_mixture:
    return read_descriptions(item)
  if not is_mixture:
    return None
  if is_prompt_file(item) and not is_hub(item):
    # The path of a file contains " + ", so it names no mixture.
    return None

  names = []
  weights = []
  for part in item.split(" + "):
    weight, name = _weight(part)
    names.append(name)
    if weight is not None:
      weights.append(weight)
  all_have_weights = len(weights) == len(names)
  # A text may contain " + " too. It is a mixture only if each part has a weight, or a
  # part is the name of a prompt.
  is_text = item.count("{}") == 1
  if is_text and not all_have_weights and not any(map(_is_name, names)):
    return None

  are_positive = all(0 < weight < math.inf for weight in weights)
  lacks_weights = not weights and chosen
  require((all_have_weights and are_positive) or lacks_weights, field, item, _TAKES)
  parts = []
  for name in names:
    prompts = named_prompts.read_prompts([name], field)
    # A name, such as that of a folder of checkpoints, may stand for several prompts.
    require(len(prompts) == 1, field, item, _TAKES)
    parts.append(prompts[0]._replace(label=name))
  return Mixture(parts, weights)


def _weight(part: str) -> tuple[float | None, str]:
  """The weight and the name of a part of a mixture; a part may have no weight."""
  weight, star, name = part.partition("*")
  if not star:
    return None, part.strip()
  try:
    return float(weight), name.strip()
  except ValueError:
    return None, part.strip()


def _is_name(text: str) -> bool:
  """Whether a part of a mixture is a prompt's name, which words of a text can't be."""
  is_known = text in (HAND_WRITTEN, ENSEMBLE) or text.startswith(
    (f"{ENSEMBLE}:", f"{OUTPUTS}:")
  )
  return is_known or is_waffle(text) or is_dir(text) or is_prompt_file(text)
