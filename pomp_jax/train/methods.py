"""What a method provides beside its step, and the context that a training starts from.

Shapes: N classes, M context vectors, F fixed tokens, T = M + F, L positions of a text,
D width.
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
from pomp_jax.config.errors import require
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

# Parameters, arrays of the classes, features of a split, its images -> top-1 and top-5.
Scorer = Callable[[Any, Frozen, SplitFeatures, Source], Accuracy]


@dataclasses.dataclass(frozen=True)
class Pomp:
  """POMP as a method that learns by steps; other methods override what differs."""

  name: str  # value of `config.method`
  contrast: Contrast = Contrast()  # with fields that a room adds for the method
  # `Encoder` of the training images; None for the encoder of the run
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
    """Returns the method with everything that it needs beside the run's CLIP.

    POMP needs nothing else. A method with a teacher opens it here.

    Args:
      clip: `config.clip`.
      data: `config.data`.
      encoder: CLIP of the run.
      classes: classes of the training, with their templates.

    Raises:
      InputError: a file or a field of the method can't be used.
    """
    return self

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """Builds the arrays that the method's steps read about a list of classes.

    Args:
      prompt: `config.prompt`, whose M vectors need places beside a name.
      template: hand-written prompt with {} for a name.
      encoder: CLIP of the run.
      names: names of the N classes.

    Raises:
      VocabularyError: a name does not fit beside the M vectors.
      TokenizeError: a name can't be tokenized.
    """
    vocabulary = encoder.vocabulary(names, prompt.m)
    return encoder.frozen(vocabulary)

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> Learner:
    """Builds the learner: POMP's learner is `plain`, which learns the context alone.

    Another method wraps `plain` or replaces it.

    Args:
      plain: learner with the context, text tower and token budget of a run.
      encoder: CLIP of the run.
      prompt: `config.prompt`.
      clip: `config.clip`.
    """
    return plain

  def accuracy(self, encoder: Encoder, learner: Learner, data: Data) -> Scorer | None:
    """Builds the function that scores the images of a split; None for a method that
    learns a prompt.

    The caller scores a prompt by its class features. A method without a prompt has its
    own image features or classifiers, and this function scores them.

    Args:
      encoder: CLIP of the run.
      learner: result of `make_learner`, without a token budget.
      data: `config.data`.
    """
    return None


def method_of(name: str, contrast: Contrast | None = None) -> Pomp:
  """Opens a method that learns by steps.

  Args:
    name: value of `config.method`.
    contrast: `config.contrast`; its defaults if None.
  """
  build = load(METHODS[name].steps)
  method: Pomp = build(name, contrast or Contrast())
  return method


def initial_words(
  prompt: Prompt, clip: Clip, fixed_words: bool = False
) -> Int[np.ndarray, " T"]:
  """Token ids of the words of `prompt.init`: T = M + F tokens.

  The first M tokens become the learned vectors. The F tokens after them stay fixed.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its tokenizer.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.

  Returns:
    int32 [T]; empty for a random start and for a prompt file.

  Raises:
    ConfigError: the words have fewer than M tokens, or more without `fixed_words`.
  """
  words = prompt.init
  if not words or _is_prompt(words):
    return np.zeros(0, np.int32)

  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_T = ids_1xL[0, :-1]  # without EOT
  n_tokens = len(ids_T)
  if fixed_words:
    fits = n_tokens >= prompt.m
    or_more = " or more"
  else:
    fits = n_tokens == prompt.m
    or_more = ""
  if not fits:
    expected = f"words of prompt.m = {prompt.m} tokens{or_more}; these have {n_tokens}"
    raise ConfigError("prompt.init", words, expected)
  return ids_T


def initial_context(
  prompt: Prompt, clip: Clip, n_classes: int, fixed_words: bool = False
) -> np.ndarray | None:
  """Context from which the training starts: words, or a prompt file.

  Args:
    prompt: `config.prompt`.
    clip: CLIP with its token embeddings.
    n_classes: N, for a class-specific context.
    fixed_words: whether words beyond M tokens are allowed, and stay fixed.

  Returns:
    float32 [M,D], or [N,M,D] for a class-specific file; None for a random start.

  Raises:
    ConfigError: the words don't have M tokens, or the file has no context, another M,
      another position, or class-specific contexts for a shared one.
    PromptFileError: the file can't be read, or its D or N differs.
  """
  if _is_prompt(prompt.init):
    return _context_of_file(prompt, clip, n_classes)
  ids_M = initial_words(prompt, clip, fixed_words)[: prompt.m]
  if not len(ids_M):
    return None
  return np.asarray(token_embeddings(clip.params, ids_M))


def _context_of_file(prompt: Prompt, clip: Clip, n_classes: int) -> np.ndarray:
  """Context of the prompt file `prompt.init`; see `initial_context`."""
  path = prompt.init
  stored = load_prompt(path)
  check_fits(stored, clip.text_width, clip.name, n_classes, path)
  if stored.sentences is not None:
    expected = "a context; this file holds sentences, or a mixture"
    raise ConfigError("prompt.init", path, expected)

  n_vectors = stored.context.shape[-2]
  require(n_vectors == prompt.m, "prompt.m", prompt.m, f"{n_vectors}, as in {path}")
  if stored.context.ndim == 3 and not prompt.class_specific:
    raise ConfigError("prompt.class_specific", False, f"True, as in {path}")
  # Checkpoints of other code do not record the position of the name.
  has_position = stored.clip_model != UNKNOWN_CLIP
  if has_position and stored.position != prompt.position:
    expected = f"{stored.position!r}, as in {path}"
    raise ConfigError("prompt.position", prompt.position, expected)
  return stored.context


def _is_prompt(text: str) -> bool:
  """Whether `prompt.init` names a prompt file or a folder; all other texts are
  words."""
  return format_of_name(prompt_path(text)) is not None
