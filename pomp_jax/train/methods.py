"""What a method is beside its step, and the context that it starts from.

Shapes: N classes, M context vectors, F fixed tokens, D width.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from jaxtyping import Int
import numpy as np

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import Clip
from pomp_jax.clip.text import token_embeddings
from pomp_jax.clip.tokens import tokenize
from pomp_jax.config import METHODS, ConfigError, fields
from pomp_jax.config.fields import Contrast, Data, Prompt
from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import (
  UNKNOWN_CLIP,
  check_fits,
  format_of_name,
  load_prompt,
)
from pomp_jax.files.run_folder import prompt_path
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner
from pomp_jax.registry import load


@dataclasses.dataclass(frozen=True)
class Pomp:
  """POMP as a method that learns by steps; others override what differs."""

  name: str  # value of `config.method`
  contrast: Contrast = Contrast()  # with fields that a room adds for the method
  # an `Encoder` of the training images other than the run's; None for that one
  images: Any = None

  # Whether words of `prompt.init` beyond `prompt.m` tokens stay fixed.
  fixed_words = False
  # Whether each image has class features of its own.
  per_image_text = False

  def check(self, prompt: Prompt, clip: ClipConfig) -> None:
    """Checks that the method fits the CLIP; ConfigError if it does not."""

  def opened(
    self, clip: fields.Clip, data: Data, encoder: Encoder, classes: ClassList
  ) -> "Pomp":
    """The method with what it opens beside the CLIP; errors of one line.

    Args:
      clip: `config.clip`.
      data: `config.data`.
      encoder: CLIP of the run.
      classes: classes of the training, with their templates.
    """
    return self

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """Arrays that the method's steps read, for a list of classes; errors as
    `vocabulary`'s.

    Args:
      prompt: `config.prompt`, with M.
      template: hand-written prompt with {} for a name.
      encoder: CLIP of the run.
      names: names of the classes.
    """
    return encoder.frozen(encoder.vocabulary(names, prompt.m))

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds what is learned; `plain` has the context, text tower and token budget
    of a run.

    Args:
      plain: learner with the context, text tower and token budget of a run.
      encoder: CLIP of the run.
      prompt: `config.prompt`.
      clip: `config.clip`.
    """
    return plain

  def accuracy(
    self, encoder: Encoder, learner: Learner, data: Data
  ) -> Callable[[Any, Frozen, SplitFeatures, Source], Accuracy]:
    """Returns (parameters, arrays, features of a split, its images) -> top-1 and top-5.

    Of methods that learn no prompt. The learner has no token budget.

    Args:
      encoder: CLIP of the run.
      learner: result of `make_learner`, without a token budget.
      data: `config.data`.
    """
    raise NotImplementedError


def method_of(name: str, contrast: Contrast | None = None) -> Pomp:
  """Returns a method that learns by steps, with the fields of its training or their
  defaults."""
  method: Pomp = load(METHODS[name].steps)(name, contrast or Contrast())
  return method


def initial_words(
  prompt: Prompt, clip: Clip, fixed_words: bool = False
) -> Int[np.ndarray, " T"]:
  """Token ids of `prompt.init`: of the M learned vectors, and of F fixed words behind
  them.

  Empty for a random start and a prompt file. ConfigError for words of fewer than M
  tokens, or of more without `fixed_words`.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its tokenizer.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.
  """
  words, n_vectors = prompt.init, prompt.m
  if not words or _is_prompt(words):
    return np.zeros(0, np.int32)
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]
  if len(ids_T) < n_vectors or (len(ids_T) > n_vectors and not fixed_words):
    or_more = " or more" if fixed_words else ""
    limit = f"words of prompt.m = {n_vectors} tokens{or_more}; these have {len(ids_T)}"
    raise ConfigError("prompt.init", words, limit)
  return ids_T


def initial_context(
  prompt: Prompt, clip: Clip, n_classes: int, fixed_words: bool = False
) -> np.ndarray | None:
  """Context [M,D] or [N,M,D] that `prompt.init` names for the start; None for a random
  one.

  ConfigError for another M or position than the file's, PromptFileError for another D
  or N.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its token embeddings.
    n_classes: N, of a class-specific context.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.
  """
  path = prompt.init
  if not _is_prompt(path):
    ids_M = initial_words(prompt, clip, fixed_words)[: prompt.m]
    return np.asarray(token_embeddings(clip.params, ids_M)) if len(ids_M) else None
  stored = load_prompt(path)
  check_fits(stored, clip.text_width, clip.name, n_classes, path)
  if stored.sentences is not None:
    raise ConfigError(
      "prompt.init", path, "a context; this file holds sentences, or a mixture"
    )
  if stored.context.shape[-2] != prompt.m:
    raise ConfigError("prompt.m", prompt.m, f"{stored.context.shape[-2]}, as in {path}")
  if stored.context.ndim == 3 and not prompt.class_specific:
    raise ConfigError("prompt.class_specific", False, f"True, as in {path}")
  # Checkpoints of other code do not tell their position.
  if stored.position != prompt.position and stored.clip_model != UNKNOWN_CLIP:
    raise ConfigError(
      "prompt.position", prompt.position, f"{stored.position!r}, as in {path}"
    )
  return stored.context


def _is_prompt(text: str) -> bool:
  """Whether `prompt.init` names a prompt file or a folder; all other texts are
  words."""
  return format_of_name(prompt_path(text)) is not None
