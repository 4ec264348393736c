"""The samplers of negatives, in one registry: from a batch's classes to a draw.

A sampler is a row of SAMPLERS with a function that proposes probabilities q [N]. The
draw mixes q with the uniform distribution. The importance weights of the draw keep sums
over all classes unbiased. A sampler that draws in another way has its own `draw`, see
docs/studies/other_samplers.py.

Shapes: B images of a draw, S sampled negatives, N classes, E embedding, G sibling
groups of a class, A sibling groups in all, D relatives of a class, H levels.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pomp_jax.array_types import Array, Bool, Float, Int32
from pomp_jax.prompt.sampling.without_replacement import (
  n_negatives,
  sample_uniform,
  sample_weighted,
)

# Features that `hard` compares the bank with: of the images' classes, or of the images.
ANCHORS = ("classes", "images")
# Rules for near-synonyms of an image's class, which are never the image's negatives:
# classes with similar text features, or the kin of the class. The values are the fields
# of SamplingArrays that each rule reads.
EXCLUSIONS: dict[str, tuple[str, ...]] = {
  "none": (),
  "similar": ("bank",),
  "kin": ("kin",),
}


class SamplingArrays(NamedTuple):
  """Facts about the classes that samplers read; None if the run's sampler does not."""

  # Any, not jax.Array: JAX also builds this tree from shapes and shardings.
  # text features of all classes under recent prompts, a `prompt.bank.Bank`
  bank: Any = None
  frequency: Any = None  # q of `frequency`, float32 [N]; adds up to 1
  # sibling groups of each class, distinct, padded with -1, int32 [N,G]
  groups: Any = None
  group_sizes: Any = None  # classes in each group, 2 or more, int32 [A]
  # classes that are as right as each class, padded with -1, int32 [N,D]
  kin: Any = None
  # kind of each class on each level of a hierarchy, -1 for none, int32 [N,H]
  levels: Any = None


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
  """How negatives are chosen; static for a run."""

  name: str = "uniform"  # one of SAMPLERS
  # Share of the uniform draw in every other sampler, above 0 and at most 1. Every class
  # can be drawn, and no weight exceeds N / (mix S).
  mix: float = 0.1
  logit_scale: float = 100.0  # the loss's factor of the cosine, for `posterior`
  temperature: float = 0.05  # T of `hard`, in units of the cosine
  anchors: str = "classes"  # anchors of `hard`, one of ANCHORS
  exclude: str = "none"  # one of EXCLUSIONS, with any sampler
  exclude_threshold: float = 0.95  # cosine above which `similar` excludes
  batch_positives: bool = False  # whether the other images' classes are negatives too

  @property
  def is_plain(self) -> bool:
    """Whether the draw is the published uniform one.

    `correction_margin` in `loss.py` corrects it.
    """
    row = SAMPLERS[self.name]
    is_uniform = row.propose is None and row.draw is None
    return is_uniform and self.exclude == "none" and not self.batch_positives

  @property
  def needs(self) -> frozenset[str]:
    """Fields of SamplingArrays that this sampler and this exclusion read."""
    return frozenset(SAMPLERS[self.name].needs + EXCLUSIONS[self.exclude])


def propose_posterior(
  settings: SamplingSettings, arrays: SamplingArrays, labels_B: Array, images_BxE: Array
) -> Float[Array, " N"]:
  """Proposes each class by its share of the batch's exact gradient.

  q_c is proportional to sum_i [c != y_i] p_i(c), with p_i(c) = softmax_c(s f(x_i) . g_c)
  the weight of class c in the gradient of image i's exact loss. An image that is certain
  of its class proposes next to nothing.

  Args:
    settings: settings with s, the logit scale.
    arrays: arrays with the bank, whose rows are the unit features g_c.
    labels_B: classes y_i of the images.
    images_BxE: unit features f(x_i) of the images.

  Returns:
    q, which adds up to 1; all zeros if all images are certain.
  """
  temperature = 1.0 / settings.logit_scale
  # The denominator contains the own class, as the denominator of the loss does.
  shares_N = arrays.bank.mean_softmax(images_BxE, labels_B, temperature, own_class=True)
  total = jnp.sum(shares_N)
  # If all images are certain, no proposal is left and the uniform share draws alone.
  return shares_N / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)


def propose_similar(
  settings: SamplingSettings, arrays: SamplingArrays, labels_B: Array, images_BxE: Array
) -> Float[Array, " N"]:
  """Proposes for each image the classes near its anchor.

  q_c = mean_i softmax_c(a_i . g_c / T) over c != y_i, with a_i the anchor of image i.

  Args:
    settings: settings with T and the kind of anchors. T < 0 proposes the classes far
      from the anchors.
    arrays: arrays with the bank, whose rows are the g_c.
    labels_B: classes y_i of the images. If `anchors` is "classes", a_i is the
      bank's row of y_i.
    images_BxE: unit features of the images. If `anchors` is "images", these are the
      a_i.
  """
  if settings.anchors == "classes":
    anchors_BxE = arrays.bank.of_classes(labels_B)
  else:
    anchors_BxE = images_BxE
  return arrays.bank.mean_softmax(
    anchors_BxE, labels_B, settings.temperature, own_class=False
  )


def propose_siblings(
  settings: SamplingSettings, arrays: SamplingArrays, labels_B: Array, images_BxE: Array
) -> Float[Array, " N"]:
  """Proposes siblings: q of drawing an image, a group of its class, and a sibling.

  An image whose class is in no group proposes all classes uniformly.

  Args:
    settings: settings, not read.
    arrays: arrays with `groups` [N,G] and `group_sizes` [A].
    labels_B: classes of the images.
    images_BxE: features of the images, not read.
  """
  del settings, images_BxE
  groups_NxG = arrays.groups
  group_sizes_A = arrays.group_sizes
  groups_BxG = groups_NxG[labels_B]
  n_groups_B = jnp.sum(groups_BxG >= 0, axis=1)
  share_BxG = jnp.where(groups_BxG >= 0, 1.0 / jnp.maximum(n_groups_B, 1)[:, None], 0.0)
  # The padding -1 reads the last group, which its share of 0 leaves unchanged.
  share_BxG /= labels_B.size * (group_sizes_A[groups_BxG] - 1)
  # Every member of a group gets the group's share, an image's own class too. The share
  # of the own class is then subtracted.
  share_A = jnp.zeros(group_sizes_A.shape).at[groups_BxG].add(share_BxG)
  q_N = jnp.sum(jnp.where(groups_NxG >= 0, share_A[groups_NxG], 0.0), axis=1)
  q_N = q_N.at[labels_B].add(-jnp.sum(share_BxG, axis=1))
  # Rounding may leave a negative number.
  return jnp.maximum(q_N, 0.0) + jnp.mean(n_groups_B == 0) / groups_NxG.shape[0]


def propose_frequent(
  settings: SamplingSettings, arrays: SamplingArrays, labels_B: Array, images_BxE: Array
) -> Float[Array, " N"]:
  """Proposes classes by their numbers of training images; computed once for a run.

  Args:
    settings: settings, not read.
    arrays: arrays with `frequency` [N], which adds up to 1.
    labels_B: classes of the images, not read.
    images_BxE: features of the images, not read.
  """
  del settings, labels_B, images_BxE
  return arrays.frequency


class Negatives(NamedTuple):
  """The classes that a group's images are contrasted with."""

  ids: Int32[Array, " S"]  # classes; distinct if all images share the draw
  # classes whose features were computed; None for all
  available: Bool[Array, " S"] | None = None
  # Log importance weights -log pi_c, with pi_c the probability that the draw holds c;
  # [B,S] if each image has its own draw, with -inf for the classes of other images'
  # draws. None after the plain uniform draw, which `correction_margin` in `loss.py`
  # corrects.
  log_weights: Float[Array, " S"] | Float[Array, "B S"] | None = None
  # Log importance weight of each image's own class, drawn or not. None if there are no
  # `log_weights`, and also if the sampler chose the classes instead of drawing them: the
  # weights of chosen classes stay the same if some of them are not available.
  own_log_weights: Float[Array, " B"] | None = None
  # Classes that an exclusion rejects as negatives of each image; None without one.
  rejected: Bool[Array, "B S"] | None = None
  # Kind of each image's class on each level of a hierarchy, -1 for none.
  own_kinds: Int32[Array, "B H"] | None = None
  kinds: Int32[Array, "S H"] | None = None  # kinds of the negatives


class Draw(Protocol):
  """A sampler's own draw, in place of the draw by a mixture of q and uniform."""

  def __call__(
    self,
    key: jax.Array,
    settings: SamplingSettings,
    arrays: SamplingArrays,
    labels_B: Array,
    images_BxE: Array,
    size: int,
  ) -> Negatives:
    """Returns classes and weights of a draw of `size` classes, fewer than all."""


class Sampler(NamedTuple):
  """A row of the registry."""

  # Function (settings, arrays, labels [B], unit image features [B,E]) -> q [N], which
  # adds up to 1. An image adds nothing to q of its own class. None for the uniform
  # draw.
  propose: Callable[[SamplingSettings, SamplingArrays, Array, Array], Array] | None = (
    None
  )
  needs: tuple[str, ...] = ()  # fields of SamplingArrays that it reads
  # Fields of `config.sampling` that the sampler reads; an ablation varies no others.
  reads: tuple[str, ...] = ("mix",)
  draw: Draw | None = None  # in place of the draw by q
  for_each_image: bool = False  # whether `draw` returns `size` classes for each image


SAMPLERS = {
  "uniform": Sampler(reads=()),
  "posterior": Sampler(propose_posterior, needs=("bank",)),
  "hard": Sampler(
    propose_similar, needs=("bank",), reads=("mix", "temperature", "anchors")
  ),
  "hierarchical": Sampler(propose_siblings, needs=("groups", "group_sizes")),
  "frequency": Sampler(propose_frequent, needs=("frequency",), reads=("mix", "power")),
}


def draw_negatives(
  key: jax.Array,
  settings: SamplingSettings,
  *,
  k: int,
  n_classes: int,
  labels_B: Int32[Array, " B"],
  images_BxE: Float[Array, "B E"],
  arrays: SamplingArrays,
) -> Negatives:
  """Draws the negatives of one group: K-1 classes, or all N when K = N.

  The classes are distinct. Under the sampler `uniform` every subset is equally likely.

  Args:
    key: key of the draw, see `without_replacement.draw_key`.
    settings: the sampler and its numbers.
    k: K, static.
    n_classes: N, static.
    labels_B: classes of the images.
    images_BxE: unit features of the images, for samplers that read them.
    arrays: facts about the classes, with the fields of `settings.needs`.

  Returns:
    Classes and weights, for `complete_negatives`.

  Raises:
    ValueError: K below 2 or above N.
  """
  size = n_negatives(k, n_classes)
  sampler = SAMPLERS[settings.name]
  # At K = N every class is drawn, whichever the sampler.
  all_classes = size == n_classes
  if sampler.draw is not None and not all_classes:
    return sampler.draw(key, settings, arrays, labels_B, images_BxE, size)
  if sampler.propose is None or all_classes:
    ids_S = sample_uniform(key, k, n_classes)
    if settings.is_plain:
      return Negatives(ids_S)
    weight = jnp.log(jnp.float32(n_classes / size))
    return Negatives(
      ids_S,
      log_weights=jnp.full(size, weight),
      own_log_weights=jnp.full(labels_B.shape, weight),
    )
  q_N = sampler.propose(settings, arrays, labels_B, images_BxE)
  q_N = settings.mix / n_classes + (1.0 - settings.mix) * q_N
  draw = sample_weighted(key, q_N, size)
  # Horvitz & Thompson: the weight of a class is 1 / pi_c.
  return Negatives(
    draw.ids,
    log_weights=-draw.log_pi[draw.ids],
    own_log_weights=-draw.log_pi[labels_B],
  )


def complete_negatives(
  settings: SamplingSettings,
  arrays: SamplingArrays,
  drawn: Negatives,
  labels_B: Int32[Array, " B"],
  available_S: Bool[Array, " S"] | None = None,
) -> Negatives:
  """Adds availability, the batch's positives, exclusions and kinds to a draw.

  Args:
    settings: the exclusion, and whether the batch's positives are negatives too.
    arrays: facts about the classes; with `levels` the negatives get kinds.
    drawn: result of `draw_negatives`.
    labels_B: classes of the images.
    available_S: whether the features of each drawn class were computed; None for all.
  """
  negatives = drawn._replace(available=available_S)
  log_weights = drawn.log_weights
  if log_weights is not None:
    is_sampled = drawn.own_log_weights is not None
    if available_S is not None and is_sampled:
      log_weights = _of_part(log_weights, available_S)
    negatives = negatives._replace(log_weights=log_weights)
    if settings.batch_positives:
      negatives = _with_batch_positives(negatives, log_weights, labels_B)
    rejected_BxS = _rejected(settings, arrays, labels_B, negatives.ids)
    negatives = negatives._replace(rejected=rejected_BxS)
  if arrays.levels is not None:
    own_kinds_BxH = arrays.levels[labels_B]
    kinds_SxH = arrays.levels[negatives.ids]
    negatives = negatives._replace(own_kinds=own_kinds_BxH, kinds=kinds_SxH)
  return negatives


def _of_part(log_weights: Array, available_S: Bool[Array, " S"]) -> Array:
  """Raises the log importance weights of a draw if only a part of it is available.

  A class is equally likely at any place of a draw, so a part of it is a smaller draw:
  inclusion probabilities shrink by n_available / n_drawn.

  Args:
    log_weights: [S] of one draw for all images, or [B,S] with a draw for each image and
      -inf for the classes of other images' draws.
    available_S: whether the features of each class were computed.

  Returns:
    Log weights of the same shape, which count for the available classes alone.
  """
  if log_weights.ndim == 1:
    n_available = jnp.maximum(jnp.sum(available_S), 1)
    return log_weights + jnp.log(available_S.size / n_available)

  is_drawn_BxS = log_weights > -jnp.inf
  n_drawn_Bx1 = jnp.sum(is_drawn_BxS, axis=1, keepdims=True)
  n_available_Bx1 = jnp.sum(is_drawn_BxS & available_S, axis=1, keepdims=True)
  factor_Bx1 = n_drawn_Bx1 / jnp.maximum(n_available_Bx1, 1)
  return log_weights + jnp.log(factor_Bx1)


def _rejected(
  settings: SamplingSettings,
  arrays: SamplingArrays,
  labels_B: Int32[Array, " B"],
  ids_S: Int32[Array, " S"],
) -> Bool[Array, "B S"] | None:
  """Marks near-synonyms of each image's class; None without an exclusion."""
  if settings.exclude == "none":
    return None
  if settings.exclude == "similar":
    own_BxE = arrays.bank.of_classes(labels_B)
    drawn_SxE = arrays.bank.of_classes(ids_S)
    cosine_BxS = jnp.matmul(own_BxE, drawn_SxE.T, precision=jax.lax.Precision.HIGHEST)
    return cosine_BxS > settings.exclude_threshold
  # A class may list another as its kin without being listed by it: look both ways.
  kin_NxD = arrays.kin
  kin_of_label = jnp.any(kin_NxD[labels_B][:, None, :] == ids_S[None, :, None], axis=-1)
  kin_of_drawn = jnp.any(kin_NxD[ids_S][None, :, :] == labels_B[:, None, None], axis=-1)
  return kin_of_label | kin_of_drawn


def _with_batch_positives(
  negatives: Negatives, log_weights: Array, labels_B: Int32[Array, " B"]
) -> Negatives:
  """Puts the images' classes before the drawn ones, each class once.

  The images' classes are negatives with certainty, so their weight is 1. A drawn class
  that is the class of an image is dropped. The sum over all classes stays unbiased.

  Args:
    negatives: the draw, and which of its classes are available.
    log_weights: log importance weights of the draw, [S] or [B,S].
    labels_B: classes of the images.

  Returns:
    Negatives of B + S classes, of which the repeated ones are not available.
  """
  # Of equal labels the first one counts.
  equals_earlier_BxB = jnp.tril(labels_B[:, None] == labels_B[None, :], k=-1)
  is_label_SxB = negatives.ids[:, None] == labels_B[None, :]
  available_S = ~jnp.any(is_label_SxB, axis=1)
  if negatives.available is not None:
    available_S &= negatives.available

  ids = jnp.concatenate([labels_B, negatives.ids])
  # A weight of 1 is 0 as a logarithm.
  shape = (*log_weights.shape[:-1], labels_B.size)
  certain = jnp.zeros(shape, log_weights.dtype)
  all_log_weights = jnp.concatenate([certain, log_weights], axis=-1)
  is_repeat_B = jnp.any(equals_earlier_BxB, axis=1)
  available = jnp.concatenate([~is_repeat_B, available_S])
  return negatives._replace(ids=ids, log_weights=all_log_weights, available=available)
