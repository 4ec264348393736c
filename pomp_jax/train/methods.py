"""Methods that learn by gradient steps, by their rows in `config.METHODS`.

The module of a row has `make_learner`. What several methods share follows the flags of the row:
checks against the CLIP, frozen text features, words that stay fixed in front of the names.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jaxtyping import Int
import numpy as np

from pomp_jax.baselines.recognition import Recognition
from pomp_jax.clip import Clip, TextTower, tokenize
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.clip.text import token_embeddings
from pomp_jax.config import METHODS, ConfigError, Settings
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import check_fits, format_of_name, load_prompt
from pomp_jax.files.prompt_formats import UNKNOWN_CLIP
from pomp_jax.inference.evaluate import SplitFeatures
from pomp_jax.inference.metrics import Accuracy
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import Frozen, Learner
from pomp_jax.prompt.mesh import replicate


def check(config: Settings, clip: ClipConfig) -> None:
  """Checks that the method fits the CLIP.

  Raises:
    ConfigError: one line.
  """
  method = METHODS[config.method]
  if method.pixels and isinstance(clip.vision_config, ResNetConfig):
    raise ConfigError("method", config.method, "a CLIP with a ViT; this one has a ResNet")
  if method.deep:
    towers = {"vision": clip.vision_config, "text": clip.text_config}
    layers = {tower: towers[tower].num_hidden_layers for tower in method.deep}
    if config.prompt.depth > min(layers.values()):
      limit = f"at most {min(layers.values())}, the layers of this CLIP's {' or '.join(layers)}"
      raise ConfigError("prompt.depth", config.prompt.depth, f"{limit} tower")


def make_learner(
  config: Settings,
  encoder: Encoder,
  module: PromptContext,
  text_tower: TextTower,
  token_budget: int | None,
) -> Learner:
  """Builds the learner of `config.method`.

  Args:
    config: settings of the run.
    encoder: CLIP on the devices.
    module: context and its layout, for methods with a context.
    text_tower: text tower with the same budget.
    token_budget: own tokens of the classes that a device computes; None: no limit.
  """
  method = METHODS[config.method].load()
  return method.make_learner(config, encoder, module, text_tower, token_budget)


def initial_words(
  config: Settings, clip: Clip
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " F"]]:
  """Token ids of `prompt.init`: initial values of the context, and fixed words behind it.

  The first M tokens are learned. Methods with `fixed_words` keep the others between the context
  and the name.

  Returns:
    ids [M], empty for a random start or a prompt file; ids [F], empty for other methods.

  Raises:
    ConfigError: words of fewer than M tokens, or of more without `fixed_words`.
  """
  words, n_vectors = config.prompt.init, config.prompt.m
  if not words or format_of_name(words):
    return np.zeros(0, np.int32), np.zeros(0, np.int32)
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]
  may_be_longer = METHODS[config.method].fixed_words
  if len(ids_T) < n_vectors or (len(ids_T) > n_vectors and not may_be_longer):
    or_more = " or more" if may_be_longer else ""
    limit = f"words of prompt.m = {n_vectors} tokens{or_more}; these have {len(ids_T)}"
    raise ConfigError("prompt.init", words, limit)
  return ids_T[:n_vectors], ids_T[n_vectors:]


def initial_context(config: Settings, clip: Clip, n_classes: int) -> np.ndarray | None:
  """Context that a training starts from: `prompt.init`'s words or prompt file.

  Args:
    config: settings of the run.
    clip: CLIP of the run.
    n_classes: N of the class list.

  Returns:
    Float32 [M,D], or [N,M,D] of a class-specific file; None for a random start.

  Raises:
    ConfigError: raised by `initial_words`; another M or position than the file's.
    PromptFileError: an unusable file, another D or N.
  """
  path, prompt = config.prompt.init, config.prompt
  if not format_of_name(path):
    ids_M, _ = initial_words(config, clip)
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


def frozen_arrays(config: Settings, encoder: Encoder, names: Sequence[str]) -> Frozen:
  """Arrays that the method's steps read, for a list of classes.

  Raises:
    ConfigError: raised by `initial_words`.
    VocabularyError, TokenizeError: names that can't be used.
  """
  _, fixed_F = initial_words(config, encoder.clip)
  frozen = encoder.frozen(encoder.vocabulary(names, config.prompt.m + len(fixed_F)))
  if len(fixed_F):
    tokens = jax.tree.map(np.asarray, frozen.tokens)
    tokens = ClassTokens(
      np.concatenate([np.tile(fixed_F, (len(tokens.ids), 1)), tokens.ids], axis=1),
      tokens.name_lengths + len(fixed_F),
      tokens.lengths + len(fixed_F),
    )
    frozen = frozen._replace(tokens=replicate(tokens, encoder.mesh))
  if METHODS[config.method].fixed_text:
    classes_NxE = encoder.class_features(names, config.eval.template)
    frozen = frozen._replace(classes=replicate(classes_NxE, encoder.mesh))
  return frozen


def accuracy_of_learner(
  config: Settings, encoder: Encoder, module: PromptContext
) -> Callable[[Any, SplitFeatures, Source], Accuracy]:
  """Returns a function (parameters, features of a split, its images) -> top-1 and top-5."""
  learner = make_learner(config, encoder, module, encoder.text_tower(), None)
  per_image = METHODS[config.method].per_image_text
  recognition = Recognition(encoder, learner, per_image=per_image)
  frozen = functools.lru_cache(maxsize=1)(lambda names: frozen_arrays(config, encoder, names))

  def accuracy(params, split, source):
    return recognition.accuracy(params, frozen(split.names), split, source)

  return accuracy
