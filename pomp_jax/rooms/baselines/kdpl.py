"""KDPL (Mistretta et al., 2024): a prompt learned from a teacher's probabilities,
without labels.

The teacher is another CLIP that sees the same views. A row of a batch holds the
student's image feature, then the teacher's. The samplers' bank holds the teacher's
class features. The teacher's most likely class replaces an image's label, and is
contrasted with the negatives. If the negatives are all classes, or those of the largest
mean probability under the teacher, this is the published loss. Shapes: B images of a
draw, N classes, S sampled negatives, C = B + S, M context vectors, D width, E and T
widths of the student's and the teacher's features, F either of these.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomp_jax import hosts
from pomp_jax.array_types import Array, Float, Int32
from pomp_jax.config import fields
from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.fields import Data, Prompt
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.named_prompts import read_prompt
from pomp_jax.prompt.bank import Bank
from pomp_jax.prompt.learner import ClassFeatures, ContextLearner, Frozen, Seen
from pomp_jax.prompt.loss import (
  ContrastResult,
  ContrastSettings,
  kept_with_margin,
  normalize,
)
from pomp_jax.prompt.mesh import CLASS
from pomp_jax.prompt.sampling.samplers import (
  Negatives,
  SamplingArrays,
  SamplingSettings,
  propose_posterior,
)
from pomp_jax.prompt.sampling.without_replacement import n_negatives
from pomp_jax.rooms.baselines.fields import LIKELIEST, Kdpl
from pomp_jax.train.methods import Pomp


@dataclasses.dataclass(frozen=True)
class KDPLLearner(ContextLearner):
  """Learns {"context": [M,D] or [N,M,D]} from the teacher's probabilities."""

  # whether `likeliest_classes` chooses the negatives in place of the sampler
  likeliest: bool = False

  def see(
    self,
    params: Any,
    frozen: Frozen,
    images_B: jax.Array,
    labels_B: jax.Array,
    frozen_BxE: jax.Array | None,
  ) -> Seen:
    """See `Learner`; the teacher's most likely classes take the place of the labels.

    Args:
      params: not read.
      frozen: the teacher's class features, as the sampler's bank.
      images_B: [B,E+T], the student's feature of each image, then the teacher's.
      labels_B: not read.
      frozen_BxE: features of the frozen image tower, passed on.
    """
    del params, labels_B
    teacher_classes_NxT = frozen.sampling.bank.rows
    student_width = images_B.shape[1] - teacher_classes_NxT.shape[1]
    student_BxE = images_B[:, :student_width]
    teacher_BxT = images_B[:, student_width:]
    cosines_BxN = _cosines(teacher_BxT, teacher_classes_NxT)
    labels_B = jnp.argmax(cosines_BxN, axis=1).astype(jnp.int32)
    return Seen(student_BxE, labels_B, for_sampler=teacher_BxT, frozen=frozen_BxE)

  def draw(
    self, key: jax.Array, settings: ContrastSettings, frozen: Frozen, seen: Seen
  ) -> Negatives:
    """Draws the negatives, or with `likeliest` chooses the teacher's likeliest classes.

    Args:
      key: random key of the draw, not read if the classes are chosen.
      settings: sampler and K.
      frozen: arrays of the sampler.
      seen: the teacher's features and most likely classes.
    """
    size = n_negatives(settings.k, settings.n_classes)
    takes_all_classes = size == settings.n_classes
    if takes_all_classes or not self.likeliest:
      return super().draw(key, settings, frozen, seen)
    teacher_BxT = normalize(seen.for_sampler)
    return likeliest_classes(
      settings.sampling,
      frozen.sampling,
      labels_B=seen.labels,
      teacher_BxT=teacher_BxT,
      size=size,
    )

  def contrast(
    self,
    settings: ContrastSettings,
    frozen: Frozen,
    seen: Seen,
    classes: ClassFeatures,
    negatives: Negatives,
  ) -> ContrastResult:
    """Compares the student's probabilities with the teacher's, see `distillation`.

    Args:
      settings: logit scale, and the weights of the negatives.
      frozen: the teacher's class features, as the sampler's bank.
      seen: the student's image features (`features`), the teacher's (`for_sampler`),
        and the teacher's most likely class of each image (`labels`).
      classes: the student's features of the teacher's most likely classes, and of the
        negatives.
      negatives: ids and weights of the negatives.
    """
    return distillation(
      frozen.sampling.bank,
      teacher_BxT=seen.for_sampler,
      settings=settings,
      student_BxE=seen.features,
      own_BxE=classes.own,
      others_SxE=classes.negatives,
      labels_B=seen.labels,
      negatives=negatives,
    )


def likeliest_classes(
  settings: SamplingSettings,
  arrays: SamplingArrays,
  labels_B: Int32[Array, " B"],
  teacher_BxT: Float[Array, "B T"],
  size: int,
) -> Negatives:
  """Chooses the classes of the largest mean probability under the teacher (KDPL-CA).

  The classes are not drawn at random, so each has the importance weight 1.

  Args:
    settings: settings with the logit scale of the probabilities.
    arrays: arrays with the teacher's class features as the bank.
    labels_B: the teacher's most likely class of each image.
    teacher_BxT: unit features of the images.
    size: S, number of classes.
  """
  q_N = propose_posterior(settings, arrays, labels_B, teacher_BxT)
  _, ids_S = jax.lax.top_k(q_N, size)
  return Negatives(ids_S, log_weights=jnp.zeros(size))


def distillation(
  bank: Bank,
  teacher_BxT: Float[Array, "B T"],
  settings: ContrastSettings,
  student_BxE: Float[Array, "B E"],
  own_BxE: Float[Array, "B E"],
  others_SxE: Float[Array, "S E"],
  labels_B: Int32[Array, " B"],
  negatives: Negatives,
) -> ContrastResult:
  """Computes the symmetric divergence (KL(p || q) + KL(q || p)) / 2, in nats.

  p are the teacher's probabilities and q the student's, both with the student's logit
  scale s. The C = B + S classes are the teacher's class of each image, and the
  negatives. With cos_c the cosine of image and class c, and w_c the importance weight
  of a negative (1 for the image's class, 0 for the classes of other images),

    p_c = w_c exp(s cos_c) / sum_d w_d exp(s cos_d).

  Args:
    bank: the teacher's class features.
    teacher_BxT: the teacher's image features.
    settings: logit scale s, and the weights of the negatives.
    student_BxE: the student's image features.
    own_BxE: the student's features of the labels' classes.
    others_SxE: the student's features of the negatives.
    labels_B: the teacher's most likely class of each image.
    negatives: ids and weights of the negatives.

  Returns:
    The mean over the images as `loss`. The `accuracy` is the share of the images to
    which the student finds the teacher's class most similar.
  """
  # Columns 0 to B - 1 are the images' classes: log(1) = 0 for an image's own class,
  # log(0) = -inf for the classes of other images.
  log_weights_BxB = jnp.log(jnp.eye(len(labels_B)))
  kept_BxS, margin_BxS = kept_with_margin(settings, labels_B, negatives)
  log_weights_BxS = jnp.where(kept_BxS, margin_BxS, -jnp.inf)
  log_weights_BxC = jnp.concatenate([log_weights_BxB, log_weights_BxS], axis=1)
  has_class_BxC = log_weights_BxC > -jnp.inf

  ids_C = jnp.concatenate([labels_B, negatives.ids])
  teacher_classes_CxT = bank.of_classes(ids_C)
  teacher_BxC = settings.logit_scale * _cosines(teacher_BxT, teacher_classes_CxT)
  student_classes_CxE = jnp.concatenate([own_BxE, others_SxE])
  student_BxC = settings.logit_scale * _cosines(student_BxE, student_classes_CxE)
  log_p_BxC = jax.nn.log_softmax(teacher_BxC + log_weights_BxC)
  log_q_BxC = jax.nn.log_softmax(student_BxC + log_weights_BxC)

  # KL(p || q) + KL(q || p) = sum (p - q) (log p - log q). If a class is not among an
  # image's classes, both logarithms are -inf: replace their difference by 0.
  log_ratio_BxC = jnp.where(has_class_BxC, log_p_BxC - log_q_BxC, 0.0)
  difference_BxC = jnp.exp(log_p_BxC) - jnp.exp(log_q_BxC)
  divergence_B = jnp.sum(difference_BxC * log_ratio_BxC, axis=1) / 2

  # The student is right about image i if it chooses column i, the teacher's class.
  candidates_BxC = jnp.where(has_class_BxC, student_BxC, -jnp.inf)
  best_B = jnp.argmax(candidates_BxC, axis=1)
  is_right_B = best_B == jnp.arange(len(labels_B))
  return ContrastResult(jnp.mean(divergence_B), jnp.mean(is_right_B))


def _cosines(images_BxF: jax.Array, classes_CxF: jax.Array) -> Float[Array, "B C"]:
  unit_images_BxF = normalize(images_BxF.astype(jnp.float32))
  unit_classes_CxF = normalize(classes_CxF.astype(jnp.float32))
  return jnp.einsum(
    "bf,cf->bc",
    unit_images_BxF,
    unit_classes_CxF,
    precision=jax.lax.Precision.HIGHEST,  # as in the contrast
  )


class _SideBySide(Encoder):
  """Encodes images by student and teacher: features [n,E+T], the student's first."""

  def __init__(self, *each: Encoder):
    self.each = each
    clip = each[0].clip
    width = sum(encoder.clip.config.projection_dim for encoder in each)
    config = dataclasses.replace(clip.config, projection_dim=width)
    self.clip = dataclasses.replace(clip, config=config)
    self.image_tower = self._image_tower

  def _image_tower(self, params: Any, images: jax.Array) -> jax.Array:
    features = []
    for encoder, encoder_params in zip(self.each, params, strict=True):
      features.append(encoder.image_tower(encoder_params, images))
    return jnp.concatenate(features, axis=-1)

  @property
  def image_fingerprint(self) -> str:
    return " ".join(encoder.image_fingerprint for encoder in self.each)

  def image_features(self, images: np.ndarray, *, unit: bool = True) -> np.ndarray:
    return np.concatenate(
      [encoder.image_features(images, unit=unit) for encoder in self.each], axis=-1
    )


@dataclasses.dataclass(frozen=True)
class KDPL(Pomp):
  """KDPL as a method of a training."""

  bank: Any = None  # the teacher's class features; None until `opened`

  def opened(
    self, clip: fields.Clip, data: Data, encoder: Encoder, classes: ClassList
  ) -> "KDPL":
    """Opens the teacher and computes its class features, see `Pomp`.

    Args:
      clip: fields of the student's CLIP.
      data: fields of the data: whether features are stored, and where.
      encoder: the student.
      classes: classes of the training.

    Raises:
      InputError: the teacher or its prompt is unusable, or features are stored.
    """
    kdpl = self.contrast.of(Kdpl)
    prompt = read_prompt(kdpl.prompt, "kdpl.prompt").prompt
    can_store = data.features == "stored" and hosts.n_processes() == 1
    require(
      data.features == "online" or can_store,
      "data.features",
      data.features,
      "'online': the teacher needs pixels, and several processes store no features for it",
    )
    clip = dataclasses.replace(clip, model=kdpl.teacher, activation="auto")
    try:
      teacher = opening.open_encoder(
        clip, encoder.mesh.shape[CLASS], data.feature_store
      )
    except InputError as error:
      raise ConfigError("kdpl.teacher", clip.model, str(error)) from error
    # The teacher sees the student's views, so both CLIPs need images of one size.
    size = encoder.clip.image_size
    accepted = f"a CLIP for the student's images of {size} pixels"
    require(teacher.clip.image_size == size, "kdpl.teacher", clip.model, accepted)
    bank_NxT = features_under(teacher, classes, prompt)
    bank = Bank(bank_NxT, len(classes.names), keeps_own=True)
    return dataclasses.replace(self, images=_SideBySide(encoder, teacher), bank=bank)

  def frozen_arrays(
    self, prompt: Prompt, template: str, encoder: Encoder, names: Sequence[str]
  ) -> Frozen:
    """Adds both image towers and the teacher's class features to `Pomp`'s arrays.

    Args:
      prompt: fields of the prompt.
      template: hand-written prompt.
      encoder: the student.
      names: names of the classes.
    """
    frozen = super().frozen_arrays(prompt, template, encoder, names)
    vision_params = tuple(clip.vision_params for clip in self.images.each)
    # The teacher's prompt is fixed, so no step changes the bank.
    sampling = SamplingArrays(bank=self.bank)
    return frozen._replace(image=vision_params, sampling=sampling)

  def make_learner(
    self, plain: ContextLearner, encoder: Encoder, prompt: Prompt, clip: fields.Clip
  ) -> KDPLLearner:
    """Builds the learner of the student's context, see `Pomp`.

    Args:
      plain: POMP's learner, whose context and text tower this learner uses.
      encoder: the student.
      prompt: fields of the prompt.
      clip: fields of the CLIP.
    """
    return KDPLLearner(
      plain.module,
      plain.text_tower,
      plain.token_budget,
      plain.capacity,
      likeliest=self.contrast.of(Kdpl).classes == LIKELIEST,
    )
