"""Mixtures of class vectors by their names, "0.5*A + 0.5*B", beside what the room reads
from files.

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
from pomp_jax.evaluate.named_prompts import (
  ENSEMBLE,
  HAND_WRITTEN,
  OUTPUTS,
  NamedPrompt,
  OtherPrompt,
)
from pomp_jax.evaluate.prompt_features import features_under
from pomp_jax.files.paths import is_dir
from pomp_jax.files.prompt_file import ClassFeatures, is_hub, is_prompt_file
from pomp_jax.rooms.mixtures.descriptions import Waffle, is_waffle, read_descriptions

_TAKES = (
  "a positive weight for each part, such as 0.5*A + 0.5*B, each a prompt by one name"
)


class Mixture(OtherPrompt):
  """Weighted sum of the class vectors of several prompts, normalised."""

  def __init__(self, parts: Sequence[NamedPrompt], weights: Sequence[float] = ()):
    """`weights` are scaled to the sum 1; there are none before they are chosen."""
    self.parts = parts
    # Powers of two change no digit, and the sum of the largest weights is finite then.
    power = math.frexp(max(weights, default=1.0))[1]
    scaled = [math.ldexp(weight, -power) for weight in weights]
    self.weights = tuple(weight / sum(scaled) for weight in scaled)
    self.of_one_list = any(named_prompts.of_one_list(part.prompt) for part in parts)
    prompts = [part.prompt for part in parts]
    of_parts = (getattr(prompt, "upright", None) for prompt in prompts)
    self.upright = next((upright for upright in of_parts if upright is not None), None)
    self.has_rows = any(
      getattr(x, "has_rows", isinstance(x, ClassFeatures)) for x in prompts
    )

  def features(self, encoder: Encoder, classes: ClassList) -> Float[np.ndarray, "N E"]:
    own = [features_under(encoder, classes, part.prompt) for part in self.parts]
    return mixed(own, self.weights)

  def check(
    self,
    label: str,
    synonyms: Sequence[Sequence[str]],
    clip_config: ClipConfig,
    clip_model: str,
  ) -> None:
    for part in self.parts:
      own = part._replace(label=f"{part.label} of {label}")
      named_prompts.check_prompt(own, synonyms, clip_config, clip_model)

  def check_lengths(
    self,
    classes: ClassList,
    tokenizer: Tokenizer,
    text_config: CLIPTextConfig,
    where: str,
  ) -> None:
    for part in self.parts:
      own = f"{part.label} of {where}"
      named_prompts.check_lengths(part.prompt, classes, tokenizer, text_config, own)

  def describe(self, classes: ClassList) -> list[Any]:
    parts = [
      ["part", *named_prompts.describe(part.prompt, classes)] for part in self.parts
    ]
    return sum(parts, [str(self.weights)])


def mixed(
  features: Sequence[Float[np.ndarray, "N E"]], weights: Sequence[float]
) -> Float[np.ndarray, "N E"]:
  """Weighted sum of unit features, with unit rows."""
  total_NxE = np.sum(
    [weight * one for weight, one in zip(weights, features, strict=True)], axis=0
  )
  return total_NxE / np.linalg.norm(total_NxE, axis=-1, keepdims=True)


def read_prompt(item: str, field: str, chosen: bool) -> OtherPrompt | None:
  """Reads a prompt of this room by its name; None for another name, ConfigError for a
  wrong part.

  A mixture needs weights unless the caller has them `chosen`.
  """
  if is_waffle(item):
    return Waffle(item)
  if item.endswith(".json") and is_prompt_file(item) and " + " not in item:
    return read_descriptions(item)
  weights, names = zip(*map(_weight, item.split(" + ")), strict=True)
  if len(names) == 1 or (is_prompt_file(item) and not is_hub(item)):
    return None
  # A text may contain the signs too. It is one unless each part has a weight, or one is
  # a name.
  if item.count("{}") == 1 and None in weights and not any(map(_is_name, names)):
    return None
  given = [weight for weight in weights if weight is not None]
  is_given = len(given) == len(names) and all(0 < weight < math.inf for weight in given)
  require(is_given or (chosen and not given), field, item, _TAKES)
  parts = [named_prompts.read_prompts([name], field) for name in names]
  require(all(len(part) == 1 for part in parts), field, item, _TAKES)
  return Mixture(
    [part._replace(label=x) for x, [part] in zip(names, parts, strict=True)], given
  )


def _weight(part: str) -> tuple[float | None, str]:
  """The weight and the name of a part of a mixture."""
  weight, star, name = part.partition("*")
  try:
    return (float(weight), name.strip()) if star else (None, part.strip())
  except ValueError:
    return None, part.strip()


def _is_name(text: str) -> bool:
  """Whether a part can't be the words of a text."""
  is_known = text in (HAND_WRITTEN, ENSEMBLE) or text.startswith(
    (f"{ENSEMBLE}:", f"{OUTPUTS}:")
  )
  return is_known or is_waffle(text) or is_dir(text) or is_prompt_file(text)
