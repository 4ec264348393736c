"""A method as a step asks it: parameters, features of images and classes, the contrast.

`prompt.step` knows a `Learner` and nothing else of the method. POMP's is
`ContextLearner`: a context beside the class names, and image features of the frozen
CLIP. Shapes: G images of a step, B of a draw, S negatives, R classes that a device
computes, M context vectors, D width, E embedding.
"""

import abc
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.clip.packed import kept_rows
from pomp_jax.clip.text import TextTower, token_embeddings
from pomp_jax.prompt.context import ClassTokens, PromptContext, Sequences
from pomp_jax.prompt.loss import Contrast, ContrastSettings, local_contrast, normalize
from pomp_jax.prompt.mesh import ImageTower
from pomp_jax.prompt.sampling.samplers import Negatives, SamplingArrays, draw_negatives


class Frozen(NamedTuple):
  """The arrays that a step reads and no gradient moves; placed on the devices once."""

  text: Any  # parameters of the text tower
  image: Any  # parameters of the image tower; empty when batches bring features
  sos: Any  # embedding of the start token [1,D], or [0,D] of a tokenizer without one
  tokens: ClassTokens  # own tokens of all N classes
  # text features of all N classes [N,E], for learners whose text side is fixed
  classes: Any = None
  # unit text features [N,E] that those of the learner are held near
  anchors: Any = None
  # Facts about the classes for the sampler. Its bank is recomputed between steps.
  sampling: SamplingArrays = SamplingArrays()


class TextFeatures(NamedTuple):
  """Text features of some classes."""

  # Of any length, [R,E], or [R,B,E] where they depend on the image.
  features: Float[Array, "R ... E"]
  available: Bool[Array, " R"] | None = None  # rows that were computed; None for all


class Seen(NamedTuple):
  """What a learner sees of the images of a draw."""

  features: Float[Array, "B E"]  # contrasted with those of classes; of any length
  labels: Int32[Array, " B"]  # class of each image: the given one, or a teacher's
  # What the sampler compares with its bank: features of the student, or of the teacher.
  for_sampler: Float[Array, "B F"]
  # Features of the frozen tower, where `features` are learned and a term of the loss
  # reads both.
  frozen: Float[Array, "B E"] | None = None


class ClassFeatures(NamedTuple):
  """Features of the classes of a draw, of any length."""

  own: Float[Array, "B E"]  # of each image's class
  # [S,B,E] where they depend on the image
  negatives: Float[Array, "S E"] | Float[Array, "S B E"]


class Term(NamedTuple):
  """A term of the loss beside the contrast."""

  # (settings, frozen arrays, images, classes, draw) -> its share of the loss, a scalar.
  share: Callable[[ContrastSettings, Frozen, Seen, ClassFeatures, Negatives], jax.Array]
  # Whether it reads features of the frozen image tower beside learned ones.
  reads_frozen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner(abc.ABC):
  """Parameters, what a step contrasts as functions of them, and the contrast.

  The functions are pure. All but `init` and `observe` run inside the step's
  `shard_map`.
  """

  # Result of `clip.vision.image_tower`. None when batches bring features, and for a
  # learner that sees the pixels itself unless a term of its loss reads frozen features.
  image_tower: ImageTower | None = None
  # terms of the loss beside the contrast, by their names in the log
  terms: Mapping[str, Term] = dataclasses.field(default_factory=dict)

  # Whether image features depend on the parameters, so that images must be pixels.
  learns_images = False

  @abc.abstractmethod
  def init(self, key: jax.Array) -> Any:
    """Returns the initial parameters, a function of the key."""

  def observe(
    self, frozen: Frozen, images: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """Computes what no gradient moves, of all images of a step.

    It runs outside of what is differentiated, so that it leaves no residuals.

    Args:
      frozen: arrays with the image tower's parameters.
      images: uint8 [G,H,W,3], or float32 features [G,E].

    Returns:
      The images as `see` takes them, and features of the frozen tower beside them, or
      None.
    """
    if self.image_tower is None:
      return images, None
    return self.image_tower(frozen.image, images), None

  def see(
    self,
    params: Any,
    frozen: Frozen,
    images_B: jax.Array,
    labels_B: Int32[Array, " B"],
    frozen_BxE: Float[Array, "B E"] | None,
  ) -> Seen:
    """Computes what is contrasted of a draw's images.

    Args:
      params: parameters of the learner.
      frozen: arrays that no gradient moves.
      images_B: the draw's part of `observe`'s first result.
      labels_B: class of each image.
      frozen_BxE: the draw's part of `observe`'s second result.
    """
    del params, frozen
    return Seen(images_B, labels_B, for_sampler=images_B, frozen=frozen_BxE)

  def draw(
    self, key: jax.Array, settings: ContrastSettings, frozen: Frozen, seen: Seen
  ) -> Negatives:
    """Draws the classes that the images of a draw are contrasted with.

    Args:
      key: key of the draw.
      settings: settings with K, N and the sampler.
      frozen: arrays with those of the sampler.
      seen: result of `see`.
    """
    return draw_negatives(
      key,
      settings.sampling,
      k=settings.k,
      n_classes=settings.n_classes,
      labels_B=seen.labels,
      images_BxE=jax.lax.stop_gradient(normalize(seen.for_sampler)),
      arrays=frozen.sampling,
    )

  @abc.abstractmethod
  def text_features(
    self,
    params: Any,
    frozen: Frozen,
    class_ids_R: jax.Array,
    image_features_BxE: jax.Array,
  ) -> TextFeatures:
    """Computes features of some classes; has no collectives.

    Args:
      params: parameters of the learner.
      frozen: arrays with the tokens of all classes.
      class_ids_R: classes of this device.
      image_features_BxE: `Seen.features`, which only some learners read.
    """

  def contrast(
    self,
    settings: ContrastSettings,
    frozen: Frozen,
    seen: Seen,
    classes: ClassFeatures,
    negatives: Negatives,
  ) -> Contrast:
    """Loss and accuracy of a draw's images, without the terms.

    Args:
      settings: numbers of the loss.
      frozen: arrays that no gradient moves.
      seen: result of `see`.
      classes: features of the images' classes and of the negatives.
      negatives: result of `draw`, completed by the step.
    """
    del frozen
    return local_contrast(
      settings, seen.features, classes.own, classes.negatives, seen.labels, negatives
    )


@dataclasses.dataclass(frozen=True)
class ContextLearner(Learner):
  """POMP's and CoOp's learner: the context alone, {"context": [M,D] or [N,M,D]}."""

  module: PromptContext  # the context and its layout
  text_tower: TextTower  # result of `clip.text.text_tower`, with the same budget
  # Result of `step.step_token_budget`; rows beyond it are not available. None for no
  # limit.
  token_budget: int | None = None
  # Own tokens that a block of the text tower holds, see `Encoder.capacity`; None
  # without blocks.
  capacity: int | None = None

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    return self.module.init(key, method=lambda m: m.context)["params"]

  def text_features(
    self,
    params: Any,
    frozen: Frozen,
    class_ids_R: jax.Array,
    image_features_BxE: jax.Array,
  ) -> TextFeatures:
    """Computes features of some classes, the same for all images.

    Args: see `Learner`.
    """
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
  """Lays out some classes under a prompt as inputs of a text tower.

  Args:
    module: context and its layout.
    params: {"context": [M,D] or [N,M,D]}.
    frozen: arrays with the own tokens of all classes.
    class_ids_C: the classes.
  """
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
