"""One training step over a mesh: draw, features, loss, mean gradient, update.

Mesh axes: `data` (images; each index draws its own negatives) and `class` (splits the
text tower's rows, whose small features are gathered). The same program runs on one
device and on a pod. Read from `make_train_step` down.

Shapes: B images of a draw, S sampled negatives, C = B + S classes of a draw, R of them
on a device, Z devices of the class axis, X classes whose features go to the bank, L own
tokens of a class, D width, E embedding.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from pomp_jax.array_types import Array, Int32
from pomp_jax.clip.packed import taken_of, token_budget
from pomp_jax.prompt import bank as banks
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ClassFeatures, Frozen, Learner, Seen, TextFeatures
from pomp_jax.prompt.loss import ContrastResult, ContrastSettings
from pomp_jax.prompt.mesh import CLASS, DATA, over_all_devices
from pomp_jax.prompt.sampling import samplers, without_replacement

Batch = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
  """Everything that a step changes, and the seed of its draws."""

  # Any, not jax.Array: JAX and Orbax also build this tree from shapes and shardings.
  step: Any  # steps taken
  # the learner's parameters, such as {"context": [M,D]}, without the frozen CLIP
  params: Any
  opt_state: Any  # optax's state for `params`
  seed_key: Any  # key data of the seed, from which a step derives its draws
  # Text features of all classes under recent prompts, sharded, see `prompt.bank`; None
  # if the sampler does not read them.
  bank: Any = None


def create_state(
  learner: Any, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """Builds the state before the first step, a function of the seed.

  Args:
    learner: object with the `init` of `Learner`; nothing else is read.
    optimizer: optax's transformation of the gradient.
    seed: seed of the initial parameters and of all draws.
  """
  seed_key = jax.random.key(seed)
  # The draws fold the step, 0, 1, .., into the seed. The initial parameters fold in a
  # number that no step reaches.
  init_key = jax.random.fold_in(seed_key, 2**32 - 1)
  params = learner.init(init_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    seed_key=jax.random.key_data(seed_key),
  )


def repeated(
  program: jax.stages.Compiled, state: TrainState, *others: Any
) -> Callable[[], None]:
  """Returns a function that takes the next step at each call, and waits for its result.

  Args:
    program: compiled step, which donates the state.
    state: state before the first call, which that call consumes.
    *others: the step's other arguments, the same at each call.
  """

  def take_step() -> None:
    nonlocal state
    state, metrics = program(state, *others)
    # The call returns before the program has run.
    jax.block_until_ready((state, metrics))

  return take_step


class Renewal(NamedTuple):
  """Rows of the bank that a step computes in turn, beside the classes of its draws."""

  learner: Learner  # learner with the token budget of `bank.renewal_token_budget`
  rows: int  # classes of a device and a micro-step, see `bank.renewed_classes`


def step_token_budget(
  module: PromptContext,
  lengths_N: np.ndarray,
  *,
  settings: ContrastSettings,
  group_size: int,
  class_size: int = 1,
  capacity: int | None = None,
) -> int:
  """Computes the token budget of a step: own tokens that a device's classes may take.

  At K = N every class is in every draw, and the budget holds all classes. Otherwise the
  budget holds a uniform draw, see `clip.packed.token_budget`. Names in the draws of
  other samplers have about the same mean length. If a draw exceeds the budget, its last
  few classes are dropped, and the weights of the others grow.

  Args:
    module: context. Vectors that the classes do not share count as own tokens.
    lengths_N: own tokens of the names.
    settings: settings with K, N and the sampler.
    group_size: images of a draw.
    class_size: devices that split the classes of a draw.
    capacity: own tokens of a block, `Encoder.capacity`; None without blocks.
  """
  own_N = np.asarray(lengths_N, np.int32) + np.int32(module.n_own)
  n_negatives = without_replacement.n_negatives(settings.k, settings.n_classes)
  n_positives = -(-group_size // class_size)  # of a device, rounded up
  if n_negatives == settings.n_classes:
    taken_N = taken_of(own_N, capacity)
    # The classes are dealt out in turn, see `_dealt`; any class may be a positive.
    shares = [taken_N[first::class_size].sum() for first in range(class_size)]
    return math.ceil(max(shares) + n_positives * taken_N.max())
  if samplers.SAMPLERS[settings.sampling.name].for_each_image:
    # Every image draws from a list of its own.
    own_N = np.tile(own_N, group_size)
    n_negatives *= group_size
  n_drawn = -(-n_negatives // class_size)  # of a device, rounded up
  return token_budget(own_N, n_drawn, n_positives, capacity)


class StepParts(NamedTuple):
  """Settings and functions that are compiled into a step."""

  mesh: Mesh
  learner: Learner
  optimizer: optax.GradientTransformation
  settings: ContrastSettings
  accumulate: int = 1  # groups of each data index, each with its own negatives
  renewal: Renewal | None = None


class _Group(NamedTuple):
  """One group of each data index, and the numbers that give the keys of its draws."""

  images: Any  # uint8 [data*B,H,W,3] or features [data*B,E]
  labels: Any  # int32 [data*B]
  step: Any
  seed_key: Any
  micro: Any  # number of the group among those that a data index accumulates
  frozen: Any  # features of the frozen tower [data*B,E] beside the images, or None


# Ids [X] of the classes that a device computed, and their features [X,E]; None without
# a bank.
_Computed = tuple[jax.Array, jax.Array] | None


def make_train_step(parts: StepParts) -> jax.stages.Wrapped:
  """Builds the jitted step `(state, frozen, batch) -> (state, metrics)`.

  The state is donated. The global batch is split into groups, `accumulate` for each
  data index, and every group draws its own negatives. Eight devices and one device with
  `accumulate=8` compute the same.

  Negatives beyond the learner's token budget are dropped for that step; the margin uses
  the number kept. If the state has a bank, the step writes the features of the draws to
  it, and the features of `renewal`, if given.

  A batch of G groups is {"image": uint8 [G*B,H,W,3] or float32 features [G*B,E],
  "label": int32 [G*B]}, sharded over `data`. Metrics are scalars on the device: `loss`,
  `accuracy`, `consistency` (if any: its share of the loss), `grad_norm`, and
  `param_norm` (of all learned parameters, before the update).
  """
  learner = parts.learner
  if learner.image_tower is not None:
    tower = over_all_devices(parts.mesh, learner.image_tower)
    learner = dataclasses.replace(learner, image_tower=tower)
    parts = parts._replace(learner=learner)
  return jax.jit(functools.partial(train_step, parts), donate_argnums=0)


def train_step(
  parts: StepParts, state: TrainState, frozen: Frozen, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes a step: draws, contrasts and updates.

  JAX's log of compilations shows the name of this function.

  Args:
    parts: mesh, learner, optimizer and numbers.
    state: state before the step.
    frozen: arrays that no gradient moves.
    batch: images and labels, see `make_train_step`.

  Returns:
    The state after the step, and the metrics.
  """
  mean = _mean_gradient(parts, state, frozen, batch)
  contrast = mean.contrast
  gradient = mean.gradient
  updates, opt_state = parts.optimizer.update(gradient, state.opt_state, state.params)
  metrics = {
    "loss": contrast.loss,
    "accuracy": contrast.accuracy,
    **contrast.terms,
    "grad_norm": optax.tree.norm(gradient),
    "param_norm": optax.tree.norm(state.params),
  }
  params = optax.apply_updates(state.params, updates)
  bank = None
  if mean.computed is not None:
    bank = _updated_bank(parts, state.bank, mean.computed)
  next_state = TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    seed_key=state.seed_key,
    bank=bank,
  )
  return next_state, metrics


class _MeanGradient(NamedTuple):
  """Result of the forward and backward passes of a step."""

  contrast: ContrastResult  # mean over all groups
  gradient: Any  # mean over all groups, a tree like the parameters
  # Features for the bank, with a first axis of micro-steps; None without a bank.
  computed: _Computed


def _mean_gradient(
  parts: StepParts, state: TrainState, frozen: Frozen, batch: Batch
) -> _MeanGradient:
  """Averages contrast and gradient over all groups.

  A scan takes the groups of a data index one after the other, so that only one group
  needs memory at a time.

  Args:
    parts: mesh, learner and numbers.
    state: state before the step.
    frozen: arrays that no gradient moves.
    batch: images and labels, see `make_train_step`.
  """
  # Outside of the differentiated function, so the image tower leaves no residuals.
  images, frozen_features = parts.learner.observe(frozen, batch["image"])
  in_groups = functools.partial(_in_groups, parts)
  images, labels, frozen_features = jax.tree.map(
    in_groups, (images, batch["label"], frozen_features)
  )
  groups = (images, labels, frozen_features, jnp.arange(parts.accumulate))

  no_terms = {name: jnp.zeros(()) for name in parts.learner.terms}
  no_contrast = ContrastResult(jnp.zeros(()), jnp.zeros(()), no_terms)
  no_gradient = jax.tree.map(jnp.zeros_like, state.params)
  add = functools.partial(_add_gradient, parts, state, frozen)
  total, computed = jax.lax.scan(add, (no_contrast, no_gradient), groups)
  contrast, gradient = jax.tree.map(lambda leaf: leaf / parts.accumulate, total)
  return _MeanGradient(contrast, gradient, computed)


def _in_groups(parts: StepParts, rows: jax.Array) -> jax.Array:
  """Splits the rows of a batch, [data * A * B, ..], into groups, [A, data * B, ..].

  A is `accumulate`. Group g of data index d is block d * A + g of the batch, so that no
  row moves to another device.

  Args:
    parts: mesh, and the groups of a data index.
    rows: array with a row for each image.
  """
  row_shape = rows.shape[1:]
  n_data = parts.mesh.shape[DATA]
  rows = rows.reshape(n_data, parts.accumulate, -1, *row_shape)
  rows = jnp.moveaxis(rows, 1, 0)
  rows = rows.reshape(parts.accumulate, -1, *row_shape)
  sharding = NamedSharding(parts.mesh, P(None, DATA))
  return jax.lax.with_sharding_constraint(rows, sharding)


def _add_gradient(
  parts: StepParts, state: TrainState, frozen: Frozen, total: Any, rows: tuple[Any, ...]
) -> tuple[Any, _Computed]:
  """Adds contrast and gradient of one group of each data index."""
  images, labels, frozen_features, micro = rows
  group = _Group(
    images=images,
    labels=labels,
    step=state.step,
    seed_key=state.seed_key,
    micro=micro,
    frozen=frozen_features,
  )
  loss_and_gradient = jax.value_and_grad(
    functools.partial(_mean_loss, parts), has_aux=True
  )
  (_, (contrast, computed)), gradient = loss_and_gradient(
    state.params, frozen, state.bank, group
  )
  return jax.tree.map(jnp.add, total, (contrast, gradient)), computed


def _mean_loss(
  parts: StepParts, params: Any, frozen: Frozen, bank: jax.Array | None, group: _Group
) -> tuple[jax.Array, tuple[ContrastResult, _Computed]]:
  """Mean loss over the data axis; each data index has its own draw."""
  # `group.frozen`, features of the images, is split over `data`; the argument `frozen`
  # is equal on all devices.
  group_specs = _Group(
    images=P(DATA),
    labels=P(DATA),
    step=P(),
    seed_key=P(),
    micro=P(),
    frozen=P(DATA),
  )
  device_contrast = jax.shard_map(
    functools.partial(_device_contrast, parts),
    mesh=parts.mesh,
    in_specs=(P(), P(), banks.SHARDED, group_specs),
    out_specs=(P(), banks.SHARDED),
  )
  contrast, computed = device_contrast(params, frozen, bank, group)
  return contrast.loss, (contrast, computed)


def _device_contrast(
  parts: StepParts, params: Any, frozen: Frozen, bank: jax.Array | None, group: _Group
) -> tuple[ContrastResult, _Computed]:
  """Mean contrast over all devices, and the class features that this device computed.

  Runs inside the `shard_map`.
  """
  settings = parts.settings
  learner = parts.learner
  # `frozen` is equal on all devices, but a custom VJP, such as those of `clip.packed`,
  # combines it with rows that differ, and must see both as varying.
  frozen = jax.lax.pcast(frozen, (DATA, CLASS), to="varying")
  if bank is not None:
    own_bank = banks.Bank(bank, settings.n_classes, sharded=True)
    frozen = frozen._replace(sampling=frozen.sampling._replace(bank=own_bank))
  seen = learner.see(params, frozen, group.images, group.labels, group.frozen)
  # Number of the group in the batch. The key of the draw is derived from it, the seed
  # and the step alone, so a resumed run draws the same classes.
  number = jax.lax.axis_index(DATA) * parts.accumulate + group.micro
  key = without_replacement.draw_key(
    jax.random.wrap_key_data(group.seed_key), group.step, number
  )
  drawn = learner.draw(key, settings, frozen, seen)
  ids_R = _dealt(jnp.concatenate([seen.labels, drawn.ids]))
  classes = learner.text_features(params, frozen, ids_R, seen.features)
  contrast = _contrast(parts, frozen, seen, drawn, classes)
  computed = None
  if bank is not None:
    features_of_ids = [(ids_R, classes)]
    if parts.renewal is not None:
      renewed = _renewed(parts, parts.renewal, params, frozen, group.step, number, seen)
      features_of_ids.append(renewed)
    # An id beyond the rows of the bank: N, rounded up to a multiple of the devices.
    no_row = settings.n_classes + parts.mesh.size
    computed = _available_rows(features_of_ids, no_row)
  return jax.lax.pmean(contrast, (DATA, CLASS)), computed


def _renewed(
  parts: StepParts,
  renewal: Renewal,
  params: Any,
  frozen: Frozen,
  step: jax.Array,
  number: jax.Array,
  seen: Seen,
) -> tuple[jax.Array, TextFeatures]:
  """Classes [X] that this device renews now, and their features, without gradient."""
  part = number * jax.lax.axis_size(CLASS) + jax.lax.axis_index(CLASS)
  n_parts = parts.mesh.size * parts.accumulate
  n_classes = parts.settings.n_classes
  ids_X = banks.renewed_classes(step, part, n_parts, renewal.rows, n_classes)
  fixed = jax.lax.stop_gradient(params)
  return ids_X, renewal.learner.text_features(fixed, frozen, ids_X, seen.features)


def _dealt(ids_C: Int32[Array, " C"]) -> Int32[Array, " R"]:
  """This device's classes of a draw.

  The classes are dealt out in turn, so that each device gets its share of the
  positives, which come first.
  """
  class_size = jax.lax.axis_size(CLASS)
  # Round up to equal shares; class 0 fills the rest.
  rows = -(-ids_C.size // class_size)
  padded_C = jnp.pad(ids_C, (0, rows * class_size - ids_C.size))
  dealt_RxZ = padded_C.reshape(rows, class_size)
  return jax.lax.dynamic_index_in_dim(
    dealt_RxZ, jax.lax.axis_index(CLASS), axis=1, keepdims=False
  )


def _gathered(rows_R: jax.Array, n_classes: int) -> jax.Array:
  """Rows of all classes in the order of the draw: the inverse of `_dealt`."""
  dealt = jax.lax.all_gather(rows_R, CLASS, axis=1)
  return dealt.reshape(-1, *rows_R.shape[1:])[:n_classes]


def _contrast(
  parts: StepParts,
  frozen: Frozen,
  seen: Seen,
  drawn: samplers.Negatives,
  text: TextFeatures,
) -> ContrastResult:
  """The contrast of a group's images with its draw, gathered over the class axis.

  `text` holds the features of the classes that this device was dealt.
  """
  settings = parts.settings
  learner = parts.learner
  n_images = seen.labels.size
  # C: the images' own classes come first, then the drawn ones.
  n_gathered = n_images + drawn.ids.size
  features_CxE = _gathered(text.features, n_gathered)
  own_BxE = features_CxE[:n_images]
  if features_CxE.ndim == 3:
    # Features [C,B,E] depend on the image: the diagonal pairs images and own classes.
    own_BxE = jnp.diagonal(own_BxE).T
  available_S = None
  if text.available is not None:
    available_S = _gathered(text.available, n_gathered)[n_images:]
  negatives = samplers.complete_negatives(
    settings.sampling, frozen.sampling, drawn, seen.labels, available_S
  )
  # The last S of the C classes: those that were drawn. If the classes of the batch's
  # other images are negatives too, S is C.
  negatives_SxE = features_CxE[n_gathered - negatives.ids.size :]
  classes = ClassFeatures(own_BxE, negatives_SxE)
  contrast = learner.contrast(settings, frozen, seen, classes, negatives)
  terms = {
    name: term.share(settings, frozen, seen, classes, negatives)
    for name, term in learner.terms.items()
  }
  loss = sum(terms.values(), contrast.loss)
  return ContrastResult(loss, contrast.accuracy, terms)


def _available_rows(
  features_of_ids: list[tuple[jax.Array, TextFeatures]], no_row: int
) -> tuple[jax.Array, jax.Array]:
  """Joins the pairs to ids [X] and features [X,E]; dropped classes get id `no_row`."""
  ids = []
  features = []
  for ids_R, text in features_of_ids:
    if text.available is not None:
      ids_R = jnp.where(text.available, ids_R, no_row)
    ids.append(ids_R)
    features.append(jax.lax.stop_gradient(text.features))
  return jnp.concatenate(ids), jnp.concatenate(features)


def _updated_bank(parts: StepParts, rows: jax.Array, computed: _Computed) -> jax.Array:
  """Writes the features of all groups to the bank, in the order of the groups."""

  def in_order(leaf: jax.Array) -> jax.Array:
    # [accumulate, data * X, ..] to [data * accumulate * X, ..].
    leaf = leaf.reshape(parts.accumulate, parts.mesh.shape[DATA], -1, *leaf.shape[2:])
    return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[3:])

  ids_X, features_XxE = jax.tree.map(in_order, computed)
  rows = banks.write_rows(rows, parts.mesh, ids_X, features_XxE)
  return jax.lax.with_sharding_constraint(rows, banks.bank_sharding(parts.mesh))
