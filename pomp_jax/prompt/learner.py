"""What is learned: parameters, and the features of images and classes under them.

The step (`prompt.step`) contrasts the features that a learner gives, whatever they are made
of. POMP's own learner is `ContextLearner`: a context before the class names, image features as the
frozen CLIP has them.
Shapes: B images of a draw, R classes that a device computes, M context vectors, D width, E
embedding.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from pomp_jax.annotations import Array, Bool, Float, Int32
from pomp_jax.clip import packed
from pomp_jax.clip.text import TextTower, token_embeddings
from pomp_jax.prompt.context import ClassTokens, PromptContext, Sequences
from pomp_jax.prompt.sampling import SamplingArrays


class Frozen(NamedTuple):
  """What a step reads and never changes; an argument of the step, placed on the devices once.

  Attributes:
    text: parameters of the text tower.
    image: parameters of the image tower; empty when batches bring features.
    sos: embedding of the start token [D].
    tokens: own tokens of all N classes.
    classes: text features of all N classes [N,E], for learners that leave the text side as it is.
    sampling: what the sampler of negatives knows of the classes; the bank in it is replaced
      between steps.
  """

  text: Any
  image: Any
  sos: Any
  tokens: ClassTokens
  classes: Any = None
  sampling: SamplingArrays = SamplingArrays()


class ClassFeatures(NamedTuple):
  """Features of some classes.

  Attributes:
    features: of any length, [R,E]; where they depend on the image [R,B,E].
    available: the rows that were computed; None: all of them.
  """

  features: Float[Array, "R ... E"]
  available: Bool[Array, " R"] | None = None


@runtime_checkable
class Learner(Protocol):
  """Parameters, and features of images and classes as functions of them.

  The functions are pure and run inside the step's `shard_map`, where collectives over the mesh's
  axes are not theirs to use. Image features are the frozen tower's, computed outside of what is
  differentiated, or the batch's; but see `ImageLearner`.
  """

  def init(self, key: jax.Array) -> Any:
    """The first parameters, a function of the key."""

  def class_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> ClassFeatures:
    """Features of some classes; the images' are for learners whose classes depend on them."""


@runtime_checkable
class ImageLearner(Learner, Protocol):
  """A learner whose image features depend on the parameters too."""

  def image_features(self, params: Any, frozen: Frozen, images_B: jax.Array) -> jax.Array:
    """Features [B,E] of images, uint8 [B,H,W,3]."""


@dataclasses.dataclass(frozen=True)
class ContextLearner:
  """POMP's and CoOp's: the context alone, {"context": [M,D] or [N,M,D]}.

  Attributes:
    module: the context and its layout.
    text_tower: from `clip.text_tower`, with the same budget.
    token_budget: from `train_step.step_token_budget`; rows beyond it are not available. None: all
      rows are computed.
  """

  module: PromptContext
  text_tower: TextTower
  token_budget: int | None = None

  def init(self, key: jax.Array) -> Any:
    """See `Learner`."""
    return self.module.init(key, method=lambda m: m.context)["params"]

  def class_features(
    self, params: Any, frozen: Frozen, class_ids_R: jax.Array, image_features_BxE: jax.Array
  ) -> ClassFeatures:
    """See `Learner`; the same for all images."""
    del image_features_BxE
    sequences = class_sequences(self.module, params, frozen, class_ids_R)
    return ClassFeatures(
      self.text_tower(frozen.text, *sequences),
      available_rows(sequences.lengths, self.token_budget),
    )


def class_sequences(
  module: PromptContext, params: Any, frozen: Frozen, class_ids_C: Int32[Array, " C"]
) -> Sequences:
  """Some classes under a prompt, as a text tower takes them."""
  tokens = jax.tree.map(lambda rows: rows[class_ids_C], frozen.tokens)
  return module.apply(
    {"params": params},
    frozen.sos,
    token_embeddings(frozen.text, tokens.ids),
    tokens.name_lengths,
    tokens.lengths,
    class_ids_C,
  )


def available_rows(
  lengths_C: Int32[Array, " C"], token_budget: int | None
) -> Bool[Array, " C"] | None:
  """Which rows of so many own tokens a text tower with this budget computes; None: all."""
  return None if token_budget is None else packed.kept_rows(lengths_C, token_budget)


def class_features(
  module: PromptContext,
  text_tower: TextTower,
  params: Any,
  frozen: Frozen,
  class_ids_C: jax.Array,
) -> jax.Array:
  """Text features of some classes under a prompt: ids [C] -> [C,E], not normalised."""
  return text_tower(frozen.text, *class_sequences(module, params, frozen, class_ids_C))
