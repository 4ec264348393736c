"""One training step over a mesh: draw, features, loss, mean gradient of all devices, update.

Mesh axes: `data` (images; each index draws its own negatives) and `class` (splits the text tower's
rows, whose small features are gathered). One program for one device or a pod.
Shapes: B images of a draw, S sampled negatives, C = B + S classes of a step, L own tokens of a
class, D width, E embedding.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from pomp_jax.array_types import Array, Int32
from pomp_jax.clip.packed import token_budget
from pomp_jax.prompt import bank as banks
from pomp_jax.prompt import sampling
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ImageLearner, Initialised, Learner
from pomp_jax.prompt.loss import Contrast, ContrastSettings, local_contrast, normalize
from pomp_jax.prompt.mesh import CLASS, DATA


class TrainState(struct.PyTreeNode):
  """Everything that a step changes, and the seed of its draws."""

  # Any, not jax.Array: JAX and Orbax also build this tree from shapes and shardings.
  step: Any  # steps taken
  params: Any  # the learner's parameters, such as {"context": [M,D]}, without the frozen CLIP
  opt_state: Any  # optax's state for these
  seed_key: Any  # key data of the seed, from which a step derives its draws
  # Text features of all classes under recent prompts, sharded, see `prompt.bank`; None where the
  # sampler reads none.
  bank: Any = None


def create_state(
  learner: Initialised, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """Builds the state before the first step, a function of the seed."""
  seed_key = jax.random.key(seed)
  # The draws fold in the step, 0, 1, ..; the initial parameters have a stream of their own.
  init_key = jax.random.fold_in(seed_key, 2**32 - 1)
  params = learner.init(init_key)
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(seed_key)
  )


class Renewal(NamedTuple):
  """The rows of the bank that a step computes beside its own classes, in turn."""

  learner: Learner  # learner with the token budget of `renewal_token_budget`
  rows: int  # classes of a device and a micro-step


def renewal_token_budget(lengths_N: np.ndarray, n_own: int, n_parts: int, rows: int) -> int:
  """Own tokens of the longest part of a renewal, see `renewed_classes`."""
  lengths_N = np.asarray(lengths_N) + n_own
  turn = -(-lengths_N.size // (n_parts * rows))
  ids = (np.arange(turn)[:, None] + turn * np.arange(n_parts * rows)) % lengths_N.size
  return int(lengths_N[ids].reshape(turn, n_parts, rows).sum(-1).max())


def renewed_classes(
  step: Int32[Array, ""], part: Int32[Array, ""], n_parts: int, rows: int, n_classes: int
) -> Int32[Array, " rows"]:
  """The classes that one part of a step renews; any ceil(N / (n_parts rows)) steps renew all N.

  Step t renews the classes t, t + T, t + 2T, .., with T = ceil(N / (n_parts rows)), of which each
  part, a device and micro-step, computes `rows`. Names that follow one another in a list are of
  similar lengths, so neighbours need a larger token budget: 912 tokens beside 582 for 128 of
  ImageNet-21K's classes.
  """
  # The remainder first, so that no number exceeds N + n_parts * rows.
  turn = -(-n_classes // (n_parts * rows))
  return (step % turn + turn * (part * rows + jnp.arange(rows, dtype=jnp.int32))) % n_classes


def step_token_budget(
  module: PromptContext,
  lengths_N: np.ndarray,
  *,
  settings: ContrastSettings,
  group_size: int,
  class_size: int = 1,
) -> int:
  """Own tokens that one device's rows of a step may take; see `clip.packed.token_budget`.

  At K = N every class is in every draw, and the budget holds them all. Otherwise it holds a uniform
  draw of classes. Draws of the other samplers have about the same mean length; where names are
  longer, the last few classes of a draw are dropped, and the weights of the others grow.

  `lengths_N` are own tokens of the names; vectors that classes do not share are added to them. A
  draw of `group_size` images is split over `class_size` devices.
  """
  lengths_N = np.asarray(lengths_N) + module.n_own
  size = sampling.n_negatives(settings.k, settings.n_classes)
  n_given = -(-group_size // class_size)
  if size == settings.n_classes:
    shares = [lengths_N[first::class_size].sum() for first in range(class_size)]
    return int(max(shares) + n_given * lengths_N.max())
  if settings.sampling.is_independent:
    # Each image draws from a list of its own.
    lengths_N, size = np.tile(lengths_N, group_size), size * group_size
  n_drawn = -(-size // class_size)
  return token_budget(lengths_N, n_drawn, n_given)


def make_train_step(
  *,
  mesh: Mesh,
  learner: Learner,
  image_tower: Callable[[Any, jax.Array], jax.Array] | None,
  optimizer: optax.GradientTransformation,
  settings: ContrastSettings,
  accumulate: int = 1,
  renewal: Renewal | None = None,
) -> jax.stages.Wrapped:
  """Builds the jitted step `(state, frozen, batch) -> (state, metrics)`; the state is donated.

  The global batch is split into groups, `accumulate` for each data index, and every group draws its
  own negatives. Eight devices and one device with `accumulate=8` compute the same.

  Args:
    mesh: result of `make_mesh`.
    learner: parameters and features. Negatives beyond its token budget are dropped for that step;
      the margin uses the number kept.
    image_tower: result of `clip.image_tower`; None when batches bring features, or when the
      learner has image features of its own.
    optimizer: update rule of the learner's parameters.
    settings: K, N, the loss and the sampler.
    accumulate: groups that a data index computes one after the other.
    renewal: rows of the bank to compute beside those of the draw; without it the bank gets the
      latter alone. Not read without a bank in the state.

  Returns:
    The step. A batch is {"image": uint8 [G*B,H,W,3] or float32 features [G*B,E], "label": int32
    [G*B]}, sharded over `data`. Metrics are scalars on the device: `loss`, `accuracy`,
    `grad_norm`, and `param_norm` (of all learned parameters, before the update).

  Raises:
    ValueError: a frozen image tower beside a learner that learns image features.
  """
  if isinstance(learner, ImageLearner) and image_tower is not None:
    raise ValueError("image_tower: got a tower, expected None with an ImageLearner")
  group_loss = _make_group_loss(mesh, learner, settings, accumulate, renewal)
  # Outside of what is differentiated, so the image tower leaves no residuals.
  image_features = image_tower and over_all_devices(mesh, image_tower)

  def mean_gradient(state, frozen, batch):
    def group_gradient(total, group):
      features, labels, micro = group
      (_, (contrast, computed)), gradient = jax.value_and_grad(group_loss, has_aux=True)(
        state.params, frozen, state.bank, features, labels, state.step, state.seed_key, micro
      )
      return jax.tree.map(jnp.add, total, (contrast, gradient)), computed

    def split(rows):
      # [data * accumulate * B, ..] -> [accumulate, data * B, ..]: group g of data index d is
      # d * accumulate + g, a contiguous block of what that index holds.
      rows = rows.reshape(mesh.shape[DATA], accumulate, -1, *rows.shape[1:])
      rows = jnp.moveaxis(rows, 1, 0)
      rows = rows.reshape(accumulate, -1, *rows.shape[3:])
      return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, P(None, DATA)))

    images = batch["image"]
    features = image_features(frozen.image, images) if image_features else images
    groups = (split(features), split(batch["label"]), jnp.arange(accumulate))
    zero = (Contrast(jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, state.params))
    total, computed = jax.lax.scan(group_gradient, zero, groups)
    return jax.tree.map(lambda leaf: leaf / accumulate, total), computed

  def updated_bank(rows, computed):
    # [accumulate, data * X, ..] -> [data * accumulate * X, ..]: in the order of the groups.
    def in_order(leaf):
      leaf = leaf.reshape(accumulate, mesh.shape[DATA], -1, *leaf.shape[2:])
      return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[3:])

    rows = banks.write_rows(rows, mesh, *jax.tree.map(in_order, computed))
    return jax.lax.with_sharding_constraint(rows, banks.bank_sharding(mesh))

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(state, frozen, batch):
    (contrast, gradient), computed = mean_gradient(state, frozen, batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics = {
      "loss": contrast.loss,
      "accuracy": contrast.accuracy,
      "grad_norm": optax.tree.norm(gradient),
      "param_norm": optax.tree.norm(state.params),
    }
    params = optax.apply_updates(state.params, updates)
    bank = None if state.bank is None else updated_bank(state.bank, computed)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, bank=bank)
    return state, metrics

  return train_step


def over_all_devices(mesh: Mesh, image_tower: Callable) -> Callable:
  """Splits the image tower's rows over all devices, those of the class axis too.

  Returns a function (params, images [G,H,W,3] sharded over `data`) -> features [G,E], not compiled.
  """

  def local(params, images):
    return image_tower(params, _own_share(mesh, images))

  def features(params, images):
    shares = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P((DATA, CLASS)))(
      params, images
    )
    shares = shares.reshape(mesh.shape[DATA], -1, shares.shape[-1])
    whole = shares[:, : images.shape[0] // mesh.shape[DATA]]
    return whole.reshape(images.shape[0], -1)

  return features


def _own_share(mesh: Mesh, images: jax.Array) -> jax.Array:
  """This device's share of a data index's images along the class axis, padded to equal sizes."""
  class_size = mesh.shape[CLASS]
  rows = -(-images.shape[0] // class_size)
  padding = [(0, rows * class_size - images.shape[0])] + [(0, 0)] * (images.ndim - 1)
  start = jax.lax.axis_index(CLASS) * rows
  return jax.lax.dynamic_slice_in_dim(jnp.pad(images, padding), start, rows)


def _make_group_loss(mesh, learner, settings, accumulate, renewal):
  """Builds the mean loss over the data axis, each index with its own draw.

  With a bank it also returns the classes whose features a step computed, and these: (ids [X],
  features [X,E]).
  """
  n_devices, n_classes = mesh.size, settings.n_classes

  def renewed(params, frozen, features_BxE, step, group):
    """The next classes in turn, and their features."""
    part = group * mesh.shape[CLASS] + jax.lax.axis_index(CLASS)
    ids_R = renewed_classes(step, part, n_devices * accumulate, renewal.rows, n_classes)
    return ids_R, renewal.learner.text_features(params, frozen, ids_R, features_BxE)

  def local_loss(params, frozen, bank, images, labels_B, step, seed_key, micro):
    # Equal on all devices, but used with rows that differ: a custom VJP (those of `clip.packed`)
    # must see both as varying.
    frozen = jax.lax.pcast(frozen, (DATA, CLASS), to="varying")
    features_BxE = images
    if isinstance(learner, ImageLearner):
      share = learner.image_features(params, frozen, _own_share(mesh, images))
      features_BxE = jax.lax.all_gather(share, CLASS, tiled=True)[: labels_B.size]
    group = jax.lax.axis_index(DATA) * accumulate + micro
    key = sampling.draw_key(jax.random.wrap_key_data(seed_key), step, group)
    arrays = frozen.sampling
    if bank is not None:
      arrays = arrays._replace(bank=banks.Bank(bank, n_classes, sharded=True))
    drawn = sampling.draw_negatives(
      key,
      settings.sampling,
      k=settings.k,
      n_classes=settings.n_classes,
      labels_B=labels_B,
      images_BxE=jax.lax.stop_gradient(normalize(features_BxE)),
      arrays=arrays,
    )
    ids_C = jnp.concatenate([labels_B, drawn.ids])
    class_size = mesh.shape[CLASS]
    rows = -(-ids_C.size // class_size)
    # Dealt out in turn, so that each device gets its share of the positives first.
    dealt_RxZ = jnp.pad(ids_C, (0, rows * class_size - ids_C.size)).reshape(rows, class_size)
    mine_R = jax.lax.dynamic_index_in_dim(
      dealt_RxZ, jax.lax.axis_index(CLASS), axis=1, keepdims=False
    )
    classes = learner.text_features(params, frozen, mine_R, features_BxE)

    def gather(mine):
      dealt = jax.lax.all_gather(mine, CLASS, axis=1)
      return dealt.reshape(-1, *mine.shape[1:])[: ids_C.size]

    features_CxE = gather(classes.features)
    positives_BxE, available_S = features_CxE[: labels_B.size], None
    if features_CxE.ndim == 3:
      # [C,B,E], one for each image: the diagonal pairs each image with its own class.
      positives_BxE = jnp.diagonal(positives_BxE).T
    if classes.available is not None:
      available_S = gather(classes.available)[labels_B.size :]
    negatives = sampling.complete_negatives(settings.sampling, arrays, drawn, labels_B, available_S)
    negative_features = features_CxE[ids_C.size - negatives.ids.size :]
    contrast = local_contrast(
      settings, features_BxE, positives_BxE, negative_features, labels_B, negatives
    )
    computed = None
    if bank is not None:
      computed = [(mine_R, classes)]
      if renewal is not None:
        fixed = jax.lax.stop_gradient(params)
        computed.append(renewed(fixed, frozen, features_BxE, step, group))
      computed = _known_rows(computed, beyond=n_classes + n_devices)
    return jax.lax.pmean(contrast, (DATA, CLASS)), computed

  def group_loss(params, frozen, bank, features, labels, step, seed_key, micro):
    contrast, computed = jax.shard_map(
      local_loss,
      mesh=mesh,
      in_specs=(P(), P(), banks.SHARDED, P(DATA), P(DATA), P(), P(), P()),
      out_specs=(P(), banks.SHARDED),
    )(params, frozen, bank, features, labels, step, seed_key, micro)
    return contrast.loss, (contrast, computed)

  return group_loss


def _known_rows(computed, beyond: int) -> tuple[jax.Array, jax.Array]:
  """Joins (ids, TextFeatures) to ids [X] and features [X,E]; dropped rows get the id `beyond`."""
  ids, features = [], []
  for ids_R, found in computed:
    ids.append(ids_R if found.available is None else jnp.where(found.available, ids_R, beyond))
    features.append(jax.lax.stop_gradient(found.features))
  return jnp.concatenate(ids), jnp.concatenate(features)
