"""The samplers by name: from a batch's classes to a draw and its weights.

Shapes: B images of a draw, K negatives drawn, N classes, E embedding.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pomp_jax.annotations import Array, Bool, Float, Int32
from pomp_jax.prompt.sampling.proposals import by_siblings, by_similarity
from pomp_jax.prompt.sampling.rejection import EXCLUSIONS
from pomp_jax.prompt.sampling.uniform import n_negatives, sample_uniform
from pomp_jax.prompt.sampling.weighted import sample_weighted

SAMPLERS = ("uniform", "hard", "easy", "hierarchical", "frequency")
# What `hard` and `easy` compare the bank with: the features of the images' classes, or the images'.
ANCHORS = ("classes", "images")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How negatives are chosen; every field is fixed for a run.

  Attributes:
    name: one of SAMPLERS.
    mix: share of the uniform draw in every other sampler, above 0 and at most 1: so every class
      can be drawn, and no weight is above N / (mix K).
    temperature: of `hard` and `easy`, in units of the cosine.
    anchors: of `hard` and `easy`, one of ANCHORS.
    exclude: one of `rejection.EXCLUSIONS`, with any sampler.
    exclude_threshold: for `similar`, a cosine.
    batch_positives: whether the other images' classes are negatives too.
  """

  name: str = "uniform"
  mix: float = 0.5
  temperature: float = 0.05
  anchors: str = "classes"
  exclude: str = "none"
  exclude_threshold: float = 0.95
  batch_positives: bool = False

  def __post_init__(self):
    for field, accepted in (("name", SAMPLERS), ("anchors", ANCHORS), ("exclude", EXCLUSIONS)):
      if getattr(self, field) not in accepted:
        raise ValueError(f"unknown {field} {getattr(self, field)!r}; accepted: {accepted}")
    if not 0 < self.mix <= 1:
      raise ValueError(f"mix = {self.mix} is not above 0 and at most 1")
    if not self.temperature > 0:
      raise ValueError(f"temperature = {self.temperature} is not above 0")

  @property
  def is_plain(self) -> bool:
    """Whether it is the method's own draw, whose margin `contrast.margin` has."""
    return self.name == "uniform" and self.exclude == "none" and not self.batch_positives

  @property
  def needs_bank(self) -> bool:
    """Whether it compares features of all classes."""
    return self.name in ("hard", "easy") or self.exclude == "similar"


class SamplingArrays(NamedTuple):
  """What samplers know of the classes; None what no sampler of the run reads.

  Attributes:
    bank: float32 [N,E], unit features of all classes, for `hard`, `easy` and `similar`.
    frequency: float32 [N], q of `frequency`; adds up to 1.
    groups: int32 [N,G], for `hierarchical`: see `proposals.by_siblings`.
    group_sizes: int32 [S], likewise.
    kin: int32 [N,D], for `exclude="kin"`: see `rejection.rejected`.
    levels: int32 [N,H], for the loss over ancestors: see `contrast.local_contrast`.
  """

  # Any, not jax.Array: JAX also builds this tree from shapes and shardings.
  bank: Any = None
  frequency: Any = None
  groups: Any = None
  group_sizes: Any = None
  kin: Any = None
  levels: Any = None


class Draw(NamedTuple):
  """The negatives of one group.

  Attributes:
    ids: distinct classes.
    log_weights: -log pi_c, pi_c the probability that the draw holds c. None: all alike, and
      `contrast.margin` has the correction.
    own_log_weights: likewise of each image's own class, drawn or not.
  """

  ids: Int32[Array, " K"]
  log_weights: Float[Array, " K"] | None = None
  own_log_weights: Float[Array, " B"] | None = None


def draw_negatives(
  key: jax.Array,
  sampling: Sampling,
  *,
  k: int,
  n_classes: int,
  labels_B: Int32[Array, " B"],
  images_BxE: Float[Array, "B E"],
  arrays: SamplingArrays,
) -> Draw:
  """Draws the K-1 negatives of one group; all N when K = N, whatever the sampler.

  Args:
    key: from `draw_key`.
    sampling: how.
    k: K of the method, static.
    n_classes: N, static.
    labels_B: the images' classes.
    images_BxE: their unit features.
    arrays: what the sampler reads.
  """
  size = n_negatives(k, n_classes)
  if sampling.name == "uniform" or size == n_classes:
    ids_K = sample_uniform(key, k, n_classes)
    if sampling.is_plain:
      return Draw(ids_K)
    weight = jnp.log(jnp.float32(n_classes / size))
    return Draw(ids_K, jnp.full(size, weight), jnp.full(labels_B.shape, weight))
  q_N = _proposal(sampling, labels_B, images_BxE, arrays)
  q_N = sampling.mix / n_classes + (1.0 - sampling.mix) * q_N
  ids_K, log_pi_N = sample_weighted(key, q_N, size)
  return Draw(ids_K, -log_pi_N[ids_K], -log_pi_N[labels_B])


def _proposal(sampling, labels_B, images_BxE, arrays: SamplingArrays) -> jax.Array:
  if sampling.name == "frequency":
    return arrays.frequency
  if sampling.name == "hierarchical":
    return by_siblings(labels_B, arrays.groups, arrays.group_sizes)
  anchors_BxE = arrays.bank[labels_B] if sampling.anchors == "classes" else images_BxE
  sign = 1.0 if sampling.name == "hard" else -1.0
  return by_similarity(anchors_BxE, arrays.bank, labels_B, sign * sampling.temperature)


def weights_of_available(
  log_weights_K: Float[Array, " K"], available_K: Bool[Array, " K"]
) -> Float[Array, " K"]:
  """Weights of a draw of which some classes were left out, by their place in it alone.

  A class stands at any place as likely, so what is left is a smaller draw by the same q.
  """
  n_available = jnp.maximum(jnp.sum(available_K), 1)
  return log_weights_K + jnp.log(log_weights_K.size / n_available)
