"""What a method provides beside its step.

Shapes: N classes, M context vectors.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.config import METHODS, fields
from pomp_jax.config.fields import Contrast, Data, Prompt
from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
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
  # For `pomp`, this is the class `Pomp` above.
  build = load(METHODS[name].steps)
  method: Pomp = build(name, contrast or Contrast())
  return method
