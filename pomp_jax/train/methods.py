"""What a method needs beside the step: checks, first context, frozen arrays, learner.

What several methods share follows the flags of their rows in `config.METHODS`.
Shapes: N classes, M context vectors, F fixed tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Int
import numpy as np

from pomp_jax.clip import Clip, tokenize
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.text import token_embeddings
from pomp_jax.config import METHODS, ConfigError, fields
from pomp_jax.config.fields import Prompt
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import check_fits, format_of_name, load_prompt
from pomp_jax.files.prompt_formats import UNKNOWN_CLIP
from pomp_jax.files.run_folder import prompt_path
from pomp_jax.prompt.context import ClassTokens
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner
from pomp_jax.prompt.mesh import replicate
from pomp_jax.registry import load


class Parts(NamedTuple):
  """What the learner of a method may be made of."""

  plain: ContextLearner  # POMP's own: context, text tower and token budget of a run
  encoder: Encoder
  prompt: Prompt
  clip: fields.Clip


def make_learner(method: str, parts: Parts) -> Learner:
  """Builds what a method learns, by the `learner` of its row."""
  path = METHODS[method].learner
  learner: Learner = load(path)(parts) if path else parts.plain
  return learner


def check(name: str, prompt: Prompt, clip: ClipConfig) -> None:
  """Checks that the method fits the CLIP; ConfigError if it does not."""
  method = METHODS[name]
  if method.pixels and isinstance(clip.vision_config, ResNetConfig):
    raise ConfigError("method", name, "a CLIP with a ViT; this one has a ResNet")
  if method.deep:
    towers = {"vision": clip.vision_config, "text": clip.text_config}
    most = min(towers[tower].num_hidden_layers for tower in method.deep)
    if prompt.depth > most:
      limit = f"at most {most}, the layers of this CLIP's {' or '.join(method.deep)} tower"
      raise ConfigError("prompt.depth", prompt.depth, limit)


def initial_words(
  method: str, prompt: Prompt, clip: Clip
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " F"]]:
  """Token ids of `prompt.init`: of the M learned vectors, and of F fixed words behind them.

  Both are empty for a random start and a prompt file. ConfigError for words of fewer than M tokens,
  or of more where the method has no `fixed_words`.
  """
  words, n_vectors = prompt.init, prompt.m
  if not words or _is_prompt(words):
    return np.zeros(0, np.int32), np.zeros(0, np.int32)
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]
  may_be_longer = METHODS[method].fixed_words
  if len(ids_T) < n_vectors or (len(ids_T) > n_vectors and not may_be_longer):
    or_more = " or more" if may_be_longer else ""
    limit = f"words of prompt.m = {n_vectors} tokens{or_more}; these have {len(ids_T)}"
    raise ConfigError("prompt.init", words, limit)
  return ids_T[:n_vectors], ids_T[n_vectors:]


def initial_context(method: str, prompt: Prompt, clip: Clip, n_classes: int) -> np.ndarray | None:
  """Context [M,D] or [N,M,D] that `prompt.init` names for the start; None for a random one.

  ConfigError for another M or position than the file's, PromptFileError for another D or N.
  """
  path = prompt.init
  if not _is_prompt(path):
    ids_M, _ = initial_words(method, prompt, clip)
    return np.asarray(token_embeddings(clip.params, ids_M)) if len(ids_M) else None
  stored = load_prompt(path)
  check_fits(stored, clip.text_width, clip.name, n_classes, path)
  if stored.context.shape[-2] != prompt.m:
    raise ConfigError("prompt.m", prompt.m, f"{stored.context.shape[-2]}, as in {path}")
  if stored.context.ndim == 3 and not prompt.class_specific:
    raise ConfigError("prompt.class_specific", False, f"True, as in {path}")
  # Checkpoints of other code do not tell their position.
  if stored.position != prompt.position and stored.clip_model != UNKNOWN_CLIP:
    raise ConfigError("prompt.position", prompt.position, f"{stored.position!r}, as in {path}")
  return stored.context


def _is_prompt(text: str) -> bool:
  """Whether `prompt.init` names a prompt file or a folder; all other texts are words."""
  return format_of_name(prompt_path(text)) is not None


def frozen_arrays(
  method: str, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
) -> Frozen:
  """Arrays that the method's steps read, for a list of classes; errors as `vocabulary`'s."""
  _, fixed_F = initial_words(method, prompt, encoder.clip)
  frozen = encoder.frozen(encoder.vocabulary(names, prompt.m + len(fixed_F)))
  if len(fixed_F):
    tokens = jax.tree.map(np.asarray, frozen.tokens)
    tokens = ClassTokens(
      np.concatenate([np.tile(fixed_F, (len(tokens.ids), 1)), tokens.ids], axis=1),
      tokens.name_lengths + len(fixed_F),
      tokens.lengths + len(fixed_F),
    )
    frozen = frozen._replace(tokens=replicate(tokens, encoder.mesh))
  if METHODS[method].fixed_text:
    classes_NxE = encoder.class_features(names, template)
    frozen = frozen._replace(classes=replicate(classes_NxE, encoder.mesh))
  return frozen
