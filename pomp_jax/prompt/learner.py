"""What a step calls of a method: parameters, features, draw and contrast.

`prompt.step` knows only the `Learner` of a method. POMP's learner is `ContextLearner`:
a context beside the class names, and image features of the frozen CLIP.

Shapes: G images of a step of H x W pixels, B images of a draw, S negatives, R classes
that a device computes, N classes, C classes of a call, M context vectors, P tokens that
all classes share, L own tokens of a class, D width, E embedding, F features for the
sampler.
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
from pomp_jax.prompt.loss import (
  ContrastResult,
  ContrastSettings,
  local_contrast,
  normalize,
)
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
  # unit text features [N,E]; a term of the loss holds the learner's features near these
  anchors: Any = None
  # Facts about the classes for the sampler. Its `bank` is a teacher's, or None; a step
  # inserts the bank of recent prompts, which is part of the state.
  sampling: SamplingArrays = SamplingArrays()


class TextFeatures(NamedTuple):
  """Text features of some classes."""

  # Vectors of any length, [R,E], or [R,B,E] if they depend on the image.
  features: Float[Array, "R ... E"]
  available: Bool[Array, " R"] | None = None  # rows that were computed; None for all


class Seen(NamedTuple):
  """Features and labels of the images of a draw, as the learner sees them."""

  features: Float[Array, "B E"]  # contrasted with class features; of any length
  labels: Int32[Array, " B"]  # class of each image: the given one, or a teacher's
  # Image features that the sampler compares with its bank: the student's or a
  # teacher's.
  for_sampler: Float[Array, "B F"]
  # Features of the frozen tower; None unless `features` are learned and a term of the
  # loss reads both.
  frozen: Float[Array, "B E"] | None = None


class ClassFeatures(NamedTuple):
  """Features of the classes of a draw, of any length."""

  own: Float[Array, "B E"]  # features of each image's class
  # [S,B,E] if they depend on the image
  negatives: Float[Array, "S E"] | Float[Array, "S B E"]


class Term(NamedTuple):
  """A term of the loss beside the contrast."""

  # (settings, frozen arrays, images, classes, draw) -> its share of the loss, a scalar.
  share: Callable[[ContrastSettings, Frozen, Seen, ClassFeatures, Negatives], jax.Array]
  # Whether the term reads features of the frozen image tower beside learned features.
  reads_frozen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner(abc.ABC):
  """Parameters of a method, the features that a step contrasts, and the contrast.

  The functions are pure. All but `init` and `observe` run inside the step's
  `shard_map`.
  """

  # Result of `clip.vision.image_tower`. None when batches bring features. None also for
  # a learner that encodes pixels itself, unless a term of its loss reads frozen
  # features.
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
    """Computes what does not depend on the parameters, for all images of a step.

    A step calls it outside of the differentiated function, so it leaves no residuals.

    Args:
      frozen: arrays with the image tower's parameters.
      images: uint8 [G,H,W,3], or float32 features [G,E].

    Returns:
      The images in the form that `see` takes, and features of the frozen tower or None,
      see `Seen.frozen`.
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
    """Computes the features of a draw's images that are contrasted with classes.

    By default these are the features that `observe` has computed. Learners with
    parameters on the image side override this method.

    Args:
      params: parameters of the learner.
      frozen: arrays that no gradient moves.
      images_B: the draw's part of `observe`'s first result: features [B,E], or pixels
        uint8 [B,H,W,3] for a learner that encodes them itself.
      labels_B: class of each image.
      frozen_BxE: the draw's part of `observe`'s second result.
    """
    del params, frozen  # not read by a learner without parameters on the image side
    features_BxE = images_B
    return Seen(
      features=features_BxE,
      labels=labels_B,
      for_sampler=features_BxE,
      frozen=frozen_BxE,
    )

  def draw(
    self, key: jax.Array, settings: ContrastSettings, frozen: Frozen, seen: Seen
  ) -> Negatives:
    """Draws the classes that the images of a draw are contrasted with.

    Args:
      key: random key of the draw.
      settings: settings with K, N and the sampler.
      frozen: arrays with `sampling`, which the sampler reads.
      seen: result of `see`.

    Returns:
      Classes and weights, which `samplers.complete_negatives` completes.
    """
    # No gradient flows through the choice of classes to learned image features.
    images_BxE = jax.lax.stop_gradient(normalize(seen.for_sampler))
    return draw_negatives(
      key,
      settings.sampling,
      k=settings.k,
      n_classes=settings.n_classes,
      labels_B=seen.labels,
      images_BxE=images_BxE,
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
    """Computes features of the classes that a device was dealt.

    Each device of the `class` axis calls this function with other classes, so it must
    not contain collectives.

    Args:
      params: parameters of the learner.
      frozen: arrays with the tokens of all classes.
      class_ids_R: int32 [R], the classes of this device.
      image_features_BxE: `Seen.features`, read by learners whose text features depend
        on the image.

    Returns:
      Features in the order of the ids, [R,E] or [R,B,E], and which of them were
      computed.
    """

  def contrast(
    self,
    settings: ContrastSettings,
    frozen: Frozen,
    seen: Seen,
    classes: ClassFeatures,
    negatives: Negatives,
  ) -> ContrastResult:
    """Computes loss and accuracy of a draw's images, without the loss's `terms`.

    By default this is POMP's `local_contrast`. A learner with a teacher overrides this
    method.

    Args:
      settings: numbers of the loss.
      frozen: arrays that no gradient moves, such as a teacher's features.
      seen: result of `see`.
      classes: features of the images' classes and of the negatives.
      negatives: result of `draw`, completed by the step.
    """
    del frozen  # the contrast has no teacher
    return local_contrast(
      settings,
      image_features_BxE=seen.features,
      positive_features_BxE=classes.own,
      negative_features_SxE=classes.negatives,
      labels_B=seen.labels,
      negatives=negatives,
    )


@dataclasses.dataclass(frozen=True)
class ContextLearner(Learner):
  """POMP's and CoOp's learner: the context alone, {"context": [M,D] or [N,M,D]}."""

  module: PromptContext  # the context and its layout
  text_tower: TextTower  # result of `clip.text.text_tower`, with the same budget
  # Result of `step.step_token_budget`; classes beyond it are not available. None for no
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
    """Runs the text tower over the classes under the context, the same for all images.

    Args:
      params: {"context": [M,D] or [N,M,D]}.
      frozen: parameters of the text tower, and the tokens of all classes.
      class_ids_R: int32 [R], the classes of this device.
      image_features_BxE: not read.

    Returns:
      Features [R,E]. Classes beyond the token budget are not available.
    """
    del image_features_BxE
    sequences = class_sequences(self.module, params, frozen, class_ids_R)
    features_RxE = self.text_tower(
      frozen.text, sequences.prefix, sequences.suffix, sequences.lengths
    )
    available_R = self.available(sequences.lengths)
    return TextFeatures(features_RxE, available_R)

  def available(self, lengths_R: Int32[Array, " R"]) -> Bool[Array, " R"] | None:
    """Which classes the text tower computes within the token budget; None for all."""
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
    frozen: own tokens of all N classes, and the embeddings of tokens.
    class_ids_C: the classes, in any order.

  Returns:
    The prefix that all classes share [P,D], and each class's suffix [C,L,D] with its
    length.
  """
  all_tokens = frozen.tokens
  tokens_C = ClassTokens(
    ids=all_tokens.ids[class_ids_C],
    name_lengths=all_tokens.name_lengths[class_ids_C],
    lengths=all_tokens.lengths[class_ids_C],
  )
  return sequences_of_tokens(module, params, frozen, tokens_C, class_ids_C)


def sequences_of_tokens(
  module: PromptContext,
  params: Any,
  frozen: Frozen,
  tokens_C: ClassTokens,
  class_ids_C: Int32[Array, " C"],
) -> Sequences:
  """Lays out classes by the given tokens, for example of names outside of `frozen`.

  Args:
    module: context and its layout.
    params: {"context": [M,D] or [N,M,D]}.
    frozen: embeddings of the tokens and of the start token.
    tokens_C: own tokens of C classes.
    class_ids_C: row of each class in a class-specific context.

  Returns:
    The prefix that all classes share [P,D], and each class's suffix [C,L,D] with its
    length.
  """
  tokens_CxLxD = token_embeddings(frozen.text, tokens_C.ids)
  sequences: Any = module.apply(
    {"params": params},
    frozen.sos,
    tokens_CxLxD,
    tokens_C.name_lengths,
    tokens_C.lengths,
    class_ids_C,
  )
  return sequences
