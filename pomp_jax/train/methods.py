"""What `config.method` names, of the methods that learn by gradient steps."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jaxtyping import Int
import numpy as np

from pomp_jax.baselines.cocoop import CoCoOpLearner
from pomp_jax.baselines.maple import MaPLeLearner
from pomp_jax.baselines.recognition import Recognition
from pomp_jax.baselines.vpt import VPTLearner
from pomp_jax.clip import Clip, TextTower, prompted_image_tower, tokenize
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import ConfigError, Settings
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.inference.evaluate import SplitFeatures
from pomp_jax.inference.metrics import Accuracy
from pomp_jax.prompt.context import ClassTokens, PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner
from pomp_jax.prompt.mesh import replicate

# Class features as they are, under the hand-written prompt.
_FIXED_TEXT = ("vpt_shallow", "vpt_deep")
# Learned tokens in the vision tower.
_IN_THE_IMAGE = (*_FIXED_TEXT, "maple")


def check(config: Settings, clip: ClipConfig) -> None:
  """Refuses what does not fit the CLIP.

  Raises:
    ConfigError: one line.
  """
  if config.method not in _IN_THE_IMAGE:
    return
  if isinstance(clip.vision_config, ResNetConfig):
    raise ConfigError("method", config.method, "a CLIP with a ViT; this one has a ResNet")
  layers = {"vision": clip.vision_config.num_hidden_layers}
  if config.method == "maple":
    layers["text"] = clip.text_config.num_hidden_layers
  if config.prompt.depth > min(layers.values()):
    takes = f"at most {min(layers.values())}, the layers of this CLIP's {' or '.join(layers)} tower"
    raise ConfigError("prompt.depth", config.prompt.depth, takes)


def make_learner(
  config: Settings,
  encoder: Encoder,
  module: PromptContext,
  text_tower: TextTower,
  token_budget: int | None,
) -> Learner:
  """The learner that `config.method` names.

  Args:
    config: the whole config.
    encoder: the CLIP.
    module: the context, for those that have one.
    text_tower: with the budget.
    token_budget: None: all rows are computed.
  """
  method, clip = config.method, encoder.clip
  if method == "pomp":
    return ContextLearner(module, text_tower, token_budget)
  if method == "cocoop":
    return CoCoOpLearner(module, text_tower, clip.config.projection_dim, token_budget)
  image_tower = prompted_image_tower(clip, config.clip.dtype, config.clip.image_chunk)
  width, depth = clip.config.vision_config.hidden_size, config.prompt.depth
  if method == "maple":
    return MaPLeLearner(module, text_tower, image_tower, width, depth, token_budget)
  return VPTLearner(image_tower, width, config.prompt.visual_tokens, depth)


def initial_words(
  config: Settings, clip: Clip
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " F"]]:
  """Token ids of `prompt.init`: those that the context starts from, and those behind them.

  The first M tokens are learned. MaPLe keeps the others as they are, between the context and the
  name, as the released code does with M = 2 and "a photo of a".

  Returns:
    ids [M], empty for a random start; ids [F], empty for other methods.

  Raises:
    ConfigError: words of fewer than M tokens; of more, where the method is not MaPLe.
  """
  words, n_vectors = config.prompt.init, config.prompt.m
  if not words:
    return np.zeros(0, np.int32), np.zeros(0, np.int32)
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]
  maple = config.method == "maple"
  if len(ids_T) < n_vectors or (len(ids_T) > n_vectors and not maple):
    takes = f"words of prompt.m = {n_vectors} tokens{' or more' if maple else ''}"
    raise ConfigError("prompt.init", words, f"{takes}; these are {len(ids_T)}")
  return ids_T[:n_vectors], ids_T[n_vectors:]


def frozen_of(config: Settings, encoder: Encoder, names: Sequence[str]) -> Frozen:
  """The frozen side of a method for a list of classes.

  Raises:
    ConfigError: see `initial_words`.
    VocabularyError, TokenizeError: names that can't be used.
  """
  _, fixed_F = initial_words(config, encoder.clip)
  frozen = encoder.frozen(encoder.vocabulary(names, config.prompt.m + len(fixed_F)))
  if len(fixed_F):
    tokens = _behind(fixed_F, jax.tree.map(np.asarray, frozen.tokens))
    frozen = frozen._replace(tokens=replicate(tokens, encoder.mesh))
  if config.method in _FIXED_TEXT:
    classes_NxE = encoder.class_features(names, config.eval.template)
    frozen = frozen._replace(classes=replicate(classes_NxE, encoder.mesh))
  return frozen


def _behind(fixed_F: np.ndarray, tokens: ClassTokens) -> ClassTokens:
  """The classes' own tokens with the same words in front of every name."""
  ids_NxF = np.tile(fixed_F, (len(tokens.ids), 1))
  return ClassTokens(
    np.concatenate([ids_NxF, tokens.ids], axis=1),
    tokens.name_lengths + len(fixed_F),
    tokens.lengths + len(fixed_F),
  )


def accuracy_of_learner(
  config: Settings, encoder: Encoder, module: PromptContext
) -> Callable[[Any, SplitFeatures, Source], Accuracy]:
  """A function (parameters, features of a split, its images) -> top-1 and top-5 on the split."""
  learner = make_learner(config, encoder, module, encoder.text_tower(), None)
  recognition = Recognition(encoder, learner, per_image=config.method == "cocoop")
  frozen = functools.lru_cache(maxsize=1)(lambda names: frozen_of(config, encoder, names))

  def accuracy(params, split, source):
    return recognition.accuracy(params, frozen(split.names), split, source)

  return accuracy
