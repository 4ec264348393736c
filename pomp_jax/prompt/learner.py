"""What is learned: parameters, and the features of images and classes under them.

The step (`prompt.step`) contrasts the features of a learner. POMP's is `ContextLearner`: a context
beside the class names, and image features of the frozen CLIP.
Shapes: B images of a draw, R classes that a device computes, M context vectors, D width, E
embedding.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.clip.packed import kept_rows
from pomp_jax.clip.text import TextTower, token_embeddings
from pomp_jax.prompt.context import ClassTokens, PromptContext, Sequences
from pomp_jax.prompt.sampling.samplers import SamplingArrays


class Frozen(NamedTuple):
  """The arrays that a step reads and no gradient moves; placed on the devices once."""

  text: Any  # parameters of the text tower
  image: Any  # parameters of the image tower; empty when batches bring features
  sos: Any  # embedding of the start token [1,D], or [0,D] of a tokenizer without one
  tokens: ClassTokens  # own tokens of all N classes
  classes: Any = None  # text features of all N classes [N,E], for learners whose text side is fixed
  anchors: Any = None  # unit text features [N,E] that those of the learner are held near
  # Facts about the classes for the sampler. Its bank is recomputed between steps.
  sampling: SamplingArrays = SamplingArrays()


class TextFeatures(NamedTuple):
  """Text features of some classes."""

  # Of any length, [R,E], or [R,B,E] where they depend on the image.
  features: Float[Array, "R ... E"]
  available: Bool[Array, " R"] | None = None  # rows that were computed; None for all


@runtime_checkable
class Learner(Protocol):
  """Parameters, and features of images and classes as functions of them.

  The functions are pure and run inside the step's `shard_map`, without collectives. Image features
  come from the frozen tower or from the batch, outside of what is differentiated, except for an
  `ImageLearner`.
  """

  def init(self, key: jax.Array) -> Any:
    """Returns the initial parameters, a function of the key."""

  def text_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> TextFeatures:
    """Features of some classes; only some learners read the images'."""


@runtime_checkable
class ImageLearner(Learner, Protocol):
  """A learner whose image features depend on the parameters too."""

  def image_features(self, params: Any, frozen: Frozen, images_B: jax.Array) -> jax.Array:
    """Features [B,E] of images, uint8 [B,H,W,3]."""


@runtime_checkable
class TaughtLearner(Learner, Protocol):
  """A learner from a teacher's probabilities, and not from labels."""

  def lesson(self, frozen: Frozen, rows_BxF: jax.Array) -> tuple[Array, Array, Array, Callable]:
    """Image features [B,E]; the teacher's, for the sampler, and its classes [B]; the contrast."""


@dataclasses.dataclass(frozen=True)
class ContextLearner:
  """POMP's and CoOp's learner: the context alone, {"context": [M,D] or [N,M,D]}."""

  module: PromptContext  # the context and its layout
  text_tower: TextTower  # result of `clip.text.text_tower`, with the same budget
  # Result of `step.step_token_budget`; rows beyond it are not available. None for no limit.
  token_budget: int | None = None
  # Own tokens that a block of the text tower holds, see `Encoder.capacity`; None without blocks.
  capacity: int | None = None

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    return self.module.init(key, method=lambda m: m.context)["params"]

  def text_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> TextFeatures:
    """See `Learner`; the same for all images."""
    del image_features_BxE
    sequences = class_sequences(self.module, params, frozen, class_ids_R)
    features_RxE = self.text_tower(frozen.text, *sequences)
    return TextFeatures(features_RxE, self.available(sequences.lengths))

  def available(self, lengths_R: Int32[Array, " R"]) -> Bool[Array, " R"] | None:
    """The rows that the text tower computes, by their own tokens; None for all."""
    if self.token_budget is None:
      return None
    return kept_rows(lengths_R, self.token_budget, self.capacity)


def class_sequences(
  module: PromptContext, params: Any, frozen: Frozen, class_ids_C: Int32[Array, " C"]
) -> Sequences:
  """Lays out some classes under a prompt as inputs of a text tower."""
  tokens_C = jax.tree.map(lambda rows: rows[class_ids_C], frozen.tokens)
  return sequences_of_tokens(module, params, frozen, tokens_C, class_ids_C)


def sequences_of_tokens(
  module: PromptContext,
  params: Any,
  frozen: Frozen,
  tokens_C: ClassTokens,
  class_ids_C: Int32[Array, " C"],
) -> Sequences:
  """Lays out classes by their own tokens, which need not be those of `frozen`.

  Args:
    module: context and its layout.
    params: {"context": [M,D] or [N,M,D]}.
    frozen: embeddings of the tokens and of the start token.
    tokens_C: own tokens of C classes.
    class_ids_C: their rows of a class-specific context.
  """
  sequences: Any = module.apply(
    {"params": params},
    frozen.sos,
    token_embeddings(frozen.text, tokens_C.ids),
    tokens_C.name_lengths,
    tokens_C.lengths,
    class_ids_C,
  )
  return sequences
