"""Tip-Adapter (Zhang et al., 2022): a cache of training features beside the text
features.

logits(f) = s f W^T + alpha * sum_k exp(-beta (1 - f . key_k)) onehot(label_k), with f
and the keys on the unit sphere, s the logit scale, W the text features. A key is the
mean feature of a training image over augmented views. Tip-Adapter-F trains these keys
by AdamW on new views, with alpha and beta fixed. Both methods search for alpha and beta
on validation images at the end. Shapes: n keys (cached images), V views of an image, B
other images, N classes, E embedding, S image size, a and b values of alpha and beta.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
import itertools
import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import optax
import scipy.sparse

from pomp_jax import hosts
from pomp_jax.config import SOURCES
from pomp_jax.config.fields import Data
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data.loader import Fetch
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.data.source import Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import ranks
from pomp_jax.evaluate.named_prompts import HAND_WRITTEN
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import steps_of
from pomp_jax.rooms.baselines import classifiers
from pomp_jax.rooms.baselines.classifiers import Training
from pomp_jax.rooms.baselines.fields import Tip
from pomp_jax.rooms.baselines.learner_accuracy import classifier_accuracy
from pomp_jax.train.batches import VIEWS, bytes_of_view, open_fetch, read_ahead

log = logging.getLogger(__name__)

# AdamW's epsilon and weight decay in the published code.
_EPSILON, _DECAY = 1e-4, 0.01
_PUBLISHED = pathlib.Path(__file__).with_suffix(".json")


class Published(NamedTuple):
  """Published settings for a data set."""

  alpha: float  # cache weight while the keys are trained
  alpha_max: float  # upper end of the search for alpha
  beta_max: float  # upper end of the search for beta
  epochs: int  # training epochs of the keys
  text: str  # name of the hand-written prompts, as `evaluate.named_prompts` reads it


def published(dataset: str) -> Published | None:
  """Returns the settings for one of CoOp's eleven data sets; None for others."""
  row = json.loads(_PUBLISHED.read_text())["sets"].get(dataset)
  if row is None:
    return None
  return Published(*(row[field] for field in Published._fields))


class TipAdapter(NamedTuple):
  """A cache and its weights."""

  keys: Float[np.ndarray, "n E"]
  labels: Int[np.ndarray, " n"]  # class of each key
  text_features: Float[np.ndarray, "N E"]  # W, unit rows
  scale: float  # logit scale s
  alpha: float  # cache weight
  beta: float  # sharpness of the affinity

  def scores(self, features_BxE: Float[np.ndarray, "B E"]) -> Float[np.ndarray, "B N"]:
    """Computes logits of unit features."""
    text_BxN, cache_of = self._parts(features_BxE)
    return text_BxN + self.alpha * cache_of(self.beta)

  def searched(
    self,
    features_BxE: Float[np.ndarray, "B E"],
    labels_B: Int[np.ndarray, " B"],
    alphas: Float[np.ndarray, " a"],
    betas: Float[np.ndarray, " b"],
  ) -> "TipAdapter":
    """Returns the adapter with the alpha and beta of the highest accuracy.

    Of equal accuracies the first wins; each beta is tried with all alphas before the
    next beta. Ties between classes, and scores that are not finite, count as wrong.

    Args:
      features_BxE: unit features of validation images.
      labels_B: classes of the images.
      alphas: cache weights to try.
      betas: sharpnesses to try.
    """
    text_BxN, cache_of = self._parts(features_BxE)
    best = self
    best_accuracy = -1.0
    for beta in steps_of(betas, "search of alpha and beta", "betas", len(betas)):
      cache_BxN = cache_of(beta)
      for alpha in alphas:
        is_right_B = ranks(text_BxN + alpha * cache_BxN, labels_B) == 0
        accuracy = float(np.mean(is_right_B))
        if accuracy > best_accuracy:
          best = self._replace(alpha=float(alpha), beta=float(beta))
          best_accuracy = accuracy
    return best

  def _parts(
    self, features_BxE: np.ndarray
  ) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
    """Computes text logits [B,N], and a function from beta to cache logits [B,N].

    The cache logits are not multiplied by alpha yet.
    """
    gap_nxB = 1 - self.keys @ features_BxE.T
    n_keys = len(self.labels)
    ones_n = np.ones(n_keys, gap_nxB.dtype)
    # The matrix is sparse, because each key has one class.
    onehot_Nxn = scipy.sparse.csr_matrix(
      (ones_n, (self.labels, np.arange(n_keys))), (len(self.text_features), n_keys)
    )
    text_BxN = self.scale * features_BxE @ self.text_features.T

    def cache_logits(beta: float) -> np.ndarray:
      return (onehot_Nxn @ np.exp(-beta * gap_nxB)).T

    return text_BxN, cache_logits


def mean_keys(epochs: Iterable[Float[np.ndarray, "n V E"]]) -> Float[np.ndarray, "n E"]:
  """Averages each image's features over its views in all epochs; normalises the mean.

  As in the published code, the features of the views are not normalised before.
  """
  total_nxE = sum(
    features_nxVxE.sum(axis=1, dtype=np.float64) for features_nxVxE in epochs
  )
  return unit(total_nxE).astype(np.float32)


def unit(features: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
  """Normalises rows to length 1."""
  return features / np.linalg.norm(features, axis=-1, keepdims=True)


def tune(
  adapter: TipAdapter,
  epochs: Iterable[Float[np.ndarray, "n E"]],
  labels_n: Int[np.ndarray, " n"],
  *,
  n_epochs: int,
  batch_size: int,
  rate: float,
  seed: int,
  validate: Callable[[TipAdapter], float],
) -> TipAdapter:
  """Trains the keys of Tip-Adapter-F by cross-entropy on the training images.

  Returns the adapter of the epoch with the highest validation accuracy (the published
  code uses test images), and never the training-free adapter. Training stops with a
  warning if the keys are not finite after a later epoch than the first.

  Args:
    adapter: training-free adapter, whose keys are the initial ones.
    epochs: unit features of the training images in each epoch.
    labels_n: classes of the images.
    n_epochs: number of epochs.
    batch_size: images of a step.
    rate: AdamW's first learning rate, under one cosine schedule.
    seed: random seed of the order.
    validate: validation accuracy of an adapter, 0..1.

  Raises:
    FloatingPointError: the keys of the first epoch are not finite.
  """
  # Round up: the last batch of an epoch may be smaller.
  steps_per_epoch = -(-len(labels_n) // batch_size)
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(rate, n_epochs * steps_per_epoch),
    eps=_EPSILON,
    weight_decay=_DECAY,
  )
  keys = jnp.asarray(adapter.keys)
  state = optimizer.init(keys)
  key_labels = jnp.asarray(adapter.labels)
  text_features = jnp.asarray(adapter.text_features)
  gradient = jax.grad(
    functools.partial(
      cross_entropy, scale=adapter.scale, alpha=adapter.alpha, beta=adapter.beta
    )
  )

  @jax.jit
  def step(
    keys: Float[Array, "n E"],
    state: optax.OptState,
    key_labels: Int[Array, " n"],
    text_features: Float[Array, "N E"],
    features_BxE: Float[Array, "B E"],
    labels_B: Int[Array, " B"],
  ) -> tuple[Float[Array, "n E"], optax.OptState]:
    slope = gradient(keys, key_labels, text_features, features_BxE, labels_B)
    updates, state = optimizer.update(slope, state, keys)
    return optax.apply_updates(keys, updates), state

  rng = np.random.default_rng(seed)
  best = adapter
  best_accuracy = -1.0
  for number, features_nxE in enumerate(itertools.islice(epochs, n_epochs), start=1):
    order = rng.permutation(len(labels_n))
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
      keys, state = step(
        keys, state, key_labels, text_features, features_nxE[rows], labels_n[rows]
      )
    tuned = adapter._replace(keys=np.asarray(keys))
    if not np.isfinite(tuned.keys).all():
      problem = f"the keys are not finite after epoch {number} of {n_epochs} at a rate of {rate:g}"
      if number == 1:
        raise FloatingPointError(f"{problem}; a lower one is the usual remedy")
      log.warning("%s: the best epoch before it is kept", problem)
      break
    accuracy = validate(tuned)
    log.info("epoch %d/%d  validation top-1 %.1f%%", number, n_epochs, 100 * accuracy)
    if accuracy > best_accuracy:
      best = tuned
      best_accuracy = accuracy
  return best


def cross_entropy(
  keys_nxE: Float[Array, "n E"],
  key_labels_n: Int[Array, " n"],
  text_features_NxE: Float[Array, "N E"],
  features_BxE: Float[Array, "B E"],
  labels_B: Int[Array, " B"],
  *,
  scale: float,
  alpha: float,
  beta: float,
) -> Float[Array, ""]:
  """Computes the mean cross-entropy over the images, in nats.

  With f an image, g_c the text of class c and k_j the keys of the cache (Zhang et al.,
  2022), the logit of class c is

    s f . g_c + alpha sum_{j of class c} exp(-beta (1 - f . k_j)).

  Args:
    keys_nxE: keys k_j of the cache, unit features of training images at the start.
    key_labels_n: class of each key.
    text_features_NxE: unit features g_c of the classes.
    features_BxE: unit features f of the images.
    labels_B: class of each image.
    scale: logit scale s.
    alpha: weight of the cache.
    beta: sharpness of the affinity.
  """
  n_classes = text_features_NxE.shape[0]
  # HIGHEST: accelerators would round the cosines, and the factors beta and scale would
  # enlarge the error.
  product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  affinity_nxB = jnp.exp(-beta * (1 - product(keys_nxE, features_BxE.T)))
  cache_NxB = jax.ops.segment_sum(affinity_nxB, key_labels_n, n_classes)
  text_BxN = product(scale * features_BxE, text_features_NxE.T)
  logits_BxN = text_BxN + alpha * cache_NxB.T
  loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxN, labels_B)
  return loss_B.mean()


def tip_settings(tip: Tip, data: Data) -> Published:
  """Returns `config.tip`, with published values in the place of zeros.

  The published values are the data set's, or ImageNet's if the data set has none.
  """
  settings = published(data.dataset) if SOURCES[data.source].stored else None
  if settings is None:
    log.info(
      "Tip-Adapter has no published settings for this data set: ImageNet's replace zeros"
    )
    settings = published("imagenet1k")
    assert settings is not None
    settings = settings._replace(text=HAND_WRITTEN)
  changes = {}
  for field in ("alpha", "alpha_max", "beta_max", "epochs"):
    value = getattr(tip, field)
    if value:
      changes[field] = value
  return settings._replace(**changes)


def grid(most: float, steps: int) -> np.ndarray:
  """Returns `steps` equidistant values from 0.1 towards `most`, which is left out.

  The published search has the same values.
  """
  return 0.1 + (most - 0.1) / steps * np.arange(steps)


class Epoch(NamedTuple):
  """Features of all training images in one epoch.

  The rows of unreadable images are undefined.
  """

  features: Float[np.ndarray, "n V E"]  # of the views of each image, not normalised
  readable: Bool[np.ndarray, " n"]


def view_features(
  data: Data, source: Source, encoder: Encoder, fetch: Fetch, n_epochs: int
) -> Iterator[Epoch]:
  """Yields the features of all training images, epoch by epoch, on each process.

  Without augmentation all epochs are equal, so only the first is computed.

  Args:
    data: views, augmentation, and how many images may be unreadable.
    source: training images.
    encoder: the CLIP.
    fetch: reads pixels [B,V,S,S,3] of images' views, or stored features [B,V,E].
    n_epochs: number of epochs.

  Raises:
    CorruptDataError: more images than `data.max_corrupt` allows can't be read.
  """
  if not n_epochs:
    return
  n_different = n_epochs if data.augment != "none" else 1
  size = max(1, VIEWS // data.views)
  parts = np.split(np.arange(len(source)), range(size, len(source), size))

  def read(number: int) -> tuple[np.ndarray, np.ndarray]:
    epoch, part = divmod(number, len(parts))
    indices = parts[part]
    return fetch(indices, np.full(len(indices), epoch))

  total = n_different * len(parts)
  part_bytes = 0
  if isinstance(source, StoredImages):
    part_bytes = size * data.views * bytes_of_view(fetch)
  batches = steps_of(
    read_ahead(data, total, read, part_bytes=part_bytes),
    description="features of the training's views",
    unit="batches",
    total=total,
  )
  skipped = SkippedImages(source, data.max_corrupt)
  for number in range(n_different):
    features = []
    readable = []
    # `batches` holds all epochs. With `parts` first, `zip` ends before it takes a batch
    # of the next epoch.
    for indices, (views, is_readable) in zip(parts, batches, strict=False):
      features.append(_encoded_views(encoder, views))
      readable.append(is_readable)
      skipped.note(indices[~is_readable].tolist())
      hosts.raise_if_preempted()
    if number == 0:
      skipped.gather()
    epoch = Epoch(np.concatenate(features), np.concatenate(readable))
    yield epoch
  yield from itertools.repeat(epoch, n_epochs - n_different)


def _encoded_views(encoder: Encoder, views: np.ndarray) -> np.ndarray:
  """Features [B,V,E] of pixels [B,V,S,S,3]; stored features are returned unchanged."""
  if views.ndim == 3:
    return views
  n_images, n_views = views.shape[:2]
  pixels = views.reshape(-1, *views.shape[2:])
  features = encoder.image_features(pixels, unit=False)
  return features.reshape(n_images, n_views, -1)


def fit_classifier(
  training: Training,
  tip: Tip,
  template: str,
  *,
  tuned: bool,
  batch_size: int,
  rate: float,
  seed: int,
) -> tuple[TipAdapter, dict[str, Any]]:
  """Caches the training images, and searches alpha and beta on validation images.

  Args:
    training: images, encoder and folder of the run.
    tip: fields of the method.
    template: hand-written prompt of the class list.
    tuned: whether to tune the keys first, as Tip-Adapter-F does.
    batch_size: images of a step of the tuning.
    rate: first learning rate of the tuning.
    seed: random seed of the order of the images.

  Returns:
    The adapter, and the result of the search for alpha and beta, as JSON.

  Raises:
    FloatingPointError: the keys of the first epoch are not finite.
  """
  data = training.data
  encoder = training.encoder
  source = training.source
  validation = training.validation
  settings = tip_settings(tip, data)
  # Without augmentation all views of an image are equal: one is enough.
  n_views = 1 if data.augment == "none" else tip.views
  n_epochs = settings.epochs if tuned else 0
  fetch = open_fetch(data, source, encoder, training.folder)
  epochs = view_features(data, source, encoder, fetch, n_views + n_epochs)
  cached = list(itertools.islice(epochs, n_views))
  readable = np.flatnonzero(np.logical_and.reduce([epoch.readable for epoch in cached]))
  classes = opening.class_list(data, template, source.names)
  adapter = TipAdapter(
    keys=mean_keys(epoch.features[readable] for epoch in cached),
    labels=np.asarray(source.labels)[readable],
    text_features=features_under(encoder, classes, settings.text),
    scale=encoder.clip.logit_scale,
    alpha=settings.alpha,
    beta=tip.beta,
  )
  if n_epochs:
    width = adapter.keys.shape[1]
    adapter = tune(
      adapter,
      (unit(epoch.features[readable]).reshape(-1, width) for epoch in epochs),
      np.repeat(adapter.labels, data.views),
      n_epochs=n_epochs,
      batch_size=batch_size,
      rate=rate,
      seed=seed,
      validate=lambda tuned: classifier_accuracy(tuned, validation)["top1"],
    )
  alphas = grid(settings.alpha_max, tip.alpha_steps)
  betas = grid(settings.beta_max, tip.beta_steps)
  adapter = adapter.searched(validation.features, validation.labels, alphas, betas)
  return adapter, {
    "alpha": adapter.alpha,
    "beta": adapter.beta,
    "validation_images": len(validation.labels),
  }


def run(config: TrainingConfig, folder: RunFolder) -> dict[str, Any]:
  """Fits Tip-Adapter, or Tip-Adapter-F with tuned keys, and evaluates it.

  Args:
    config: config of the training.
    folder: folder of the run.

  Returns:
    The results, see `classifiers.run`.
  """
  tunes_keys = config.method == "tip_adapter_f"
  fit = functools.partial(
    fit_classifier,
    tip=config.of(Tip),
    template=config.eval.template,
    tuned=tunes_keys,
    batch_size=config.batch_size,
    rate=config.optim.lr,
    seed=config.seed,
  )
  return classifiers.run(config, folder, fit)
