"""One training step over a mesh: draw, features, loss, mean gradient of all devices,
update.

Mesh axes: `data` (images; each index draws its own negatives) and `class` (splits the
text tower's rows, whose small features are gathered). One program for one device or a
pod. Shapes: B images of a draw, S sampled negatives, C = B + S classes of a step, L own
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
from pomp_jax.prompt.loss import Contrast, ContrastSettings
from pomp_jax.prompt.mesh import CLASS, DATA, over_all_devices
from pomp_jax.prompt.sampling import draws, samplers

Batch = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
  """Everything that a step changes, and the seed of its draws."""

  # Any, not jax.Array: JAX and Orbax also build this tree from shapes and shardings.
  step: Any  # steps taken
  # the learner's parameters, such as {"context": [M,D]}, without the frozen CLIP
  params: Any
  opt_state: Any  # optax's state for these
  seed_key: Any  # key data of the seed, from which a step derives its draws
  # Text features of all classes under recent prompts, sharded, see `prompt.bank`; None
  # where the sampler reads none.
  bank: Any = None


def create_state(
  learner: Any, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """Builds the state before the first step, a function of the seed; reads
  `learner.init` alone."""
  seed_key = jax.random.key(seed)
  # The draws fold in the step, 0, 1, ..; the initial parameters have a stream of their
  # own.
  init_key = jax.random.fold_in(seed_key, 2**32 - 1)
  params = learner.init(init_key)
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    optimizer.init(params),
    jax.random.key_data(seed_key),
  )


def repeated(
  program: jax.stages.Compiled, state: TrainState, *others: Any
) -> Callable[[], None]:
  """Calls that each take the next step with a compiled one, which donates the state."""

  def step() -> None:
    nonlocal state
    state, metrics = program(state, *others)
    jax.block_until_ready((state, metrics))

  return step


class Renewal(NamedTuple):
  """The rows of the bank that a step computes beside its own classes, in turn."""

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
  """Own tokens that one device's rows of a step may take; see
  `clip.packed.token_budget`.

  At K = N every class is in every draw, and the budget holds them all. Otherwise it
  holds a uniform draw of classes. Draws of the other samplers have about the same mean
  length; where names are longer, the last few classes of a draw are dropped, and the
  weights of the others grow.

  `lengths_N` are own tokens of the names; vectors that classes do not share are added
  to them. A draw of `group_size` images is split over `class_size` devices. `capacity`
  is `Encoder.capacity`.
  """
  lengths_N = np.asarray(lengths_N, np.int32) + np.int32(module.n_own)
  size = draws.n_negatives(settings.k, settings.n_classes)
  n_given = -(-group_size // class_size)
  if size == settings.n_classes:
    taken_N = taken_of(lengths_N, capacity)
    shares = [taken_N[first::class_size].sum() for first in range(class_size)]
    return math.ceil(max(shares) + n_given * taken_N.max())
  if samplers.SAMPLERS[settings.sampling.name].for_each_image:
    lengths_N, size = np.tile(lengths_N, group_size), size * group_size
  n_drawn = -(-size // class_size)
  return token_budget(lengths_N, n_drawn, n_given, capacity)


class StepParts(NamedTuple):
  """What a compiled step holds beside its arrays."""

  mesh: Mesh
  learner: Learner
  optimizer: optax.GradientTransformation
  settings: ContrastSettings
  accumulate: int = 1  # groups of each data index, each with its own negatives
  renewal: Renewal | None = None


class _Group(NamedTuple):
  """One group of each data index, and what its draws are derived from."""

  images: Any  # uint8 [data*B,H,W,3] or features [data*B,E]
  labels: Any  # int32 [data*B]
  step: Any
  seed_key: Any
  micro: Any  # number of the group among those that a data index accumulates
  frozen: Any  # features of the frozen tower [data*B,E] beside the images, or None


# Classes whose features a device computed, [X], and these, [X,E]; None without a bank.
_Computed = tuple[jax.Array, jax.Array] | None


def make_train_step(parts: StepParts) -> jax.stages.Wrapped:
  """Builds the jitted step `(state, frozen, batch) -> (state, metrics)`; the state is
  donated.

  The global batch is split into groups, `accumulate` for each data index, and every
  group draws its own negatives. Eight devices and one device with `accumulate=8`
  compute the same.

  Negatives beyond the learner's token budget are dropped for that step; the margin uses
  the number kept. A bank in the state gets the features of the draw, and those of
  `renewal`, if given.

  A batch is {"image": uint8 [G*B,H,W,3] or float32 features [G*B,E], "label": int32
  [G*B]}, sharded over `data`. Metrics are scalars on the device: `loss`, `accuracy`,
  `consistency` (if any: its share of the loss), `grad_norm`, and `param_norm` (of all
  learned parameters, before the update).
  """
  if parts.learner.image_tower is not None:
    tower = over_all_devices(parts.mesh, parts.learner.image_tower)
    parts = parts._replace(
      learner=dataclasses.replace(parts.learner, image_tower=tower)
    )
  return jax.jit(functools.partial(train_step, parts), donate_argnums=0)


def train_step(
  parts: StepParts, state: TrainState, frozen: Frozen, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Draws, contrasts and updates, see `make_train_step`; the log shows this name as
  compiled."""
  contrast, gradient, computed = _mean_gradient(parts, state, frozen, batch)
  updates, opt_state = parts.optimizer.update(gradient, state.opt_state, state.params)
  metrics = {
    "loss": contrast.loss,
    "accuracy": contrast.accuracy,
    **contrast.terms,
    "grad_norm": optax.tree.norm(gradient),
    "param_norm": optax.tree.norm(state.params),
  }
  params = optax.apply_updates(state.params, updates)
  bank = None if computed is None else _updated_bank(parts, state.bank, computed)
  return TrainState(state.step + 1, params, opt_state, state.seed_key, bank), metrics


def _mean_gradient(
  parts: StepParts, state: TrainState, frozen: Frozen, batch: Batch
) -> tuple[Contrast, Any, _Computed]:
  """Means over all groups, which a scan takes one after the other."""
  # Outside of what is differentiated, so the image tower leaves no residuals.
  images, fixed = parts.learner.observe(frozen, batch["image"])
  rows = jax.tree.map(
    functools.partial(_in_groups, parts), (images, batch["label"], fixed)
  )
  groups = *rows, jnp.arange(parts.accumulate)
  no_terms = {name: jnp.zeros(()) for name in parts.learner.terms}
  no_contrast = Contrast(jnp.zeros(()), jnp.zeros(()), no_terms)
  no_gradient = jax.tree.map(jnp.zeros_like, state.params)
  add = functools.partial(_add_gradient, parts, state, frozen)
  total, computed = jax.lax.scan(add, (no_contrast, no_gradient), groups)
  contrast, gradient = jax.tree.map(lambda leaf: leaf / parts.accumulate, total)
  return contrast, gradient, computed


def _in_groups(parts: StepParts, rows: jax.Array) -> jax.Array:
  """[data * accumulate * B, ..] to [accumulate, data * B, ..].

  Group g of data index d is d * accumulate + g, a contiguous block of what that index
  holds.
  """
  rows = rows.reshape(parts.mesh.shape[DATA], parts.accumulate, -1, *rows.shape[1:])
  rows = jnp.moveaxis(rows, 1, 0)
  rows = rows.reshape(parts.accumulate, -1, *rows.shape[3:])
  return jax.lax.with_sharding_constraint(
    rows, NamedSharding(parts.mesh, P(None, DATA))
  )


def _add_gradient(
  parts: StepParts, state: TrainState, frozen: Frozen, total: Any, rows: tuple[Any, ...]
) -> tuple[Any, _Computed]:
  """Adds contrast and gradient of one group of each data index."""
  images, labels, fixed, micro = rows
  group = _Group(images, labels, state.step, state.seed_key, micro, fixed)
  loss = jax.value_and_grad(functools.partial(_mean_loss, parts), has_aux=True)
  (_, (contrast, computed)), gradient = loss(state.params, frozen, state.bank, group)
  return jax.tree.map(jnp.add, total, (contrast, gradient)), computed


def _mean_loss(
  parts: StepParts, params: Any, frozen: Frozen, bank: jax.Array | None, group: _Group
) -> tuple[jax.Array, tuple[Contrast, _Computed]]:
  """Mean loss over the data axis, each index with its own draw."""
  contrast, computed = jax.shard_map(
    functools.partial(_device_contrast, parts),
    mesh=parts.mesh,
    in_specs=(
      P(),
      P(),
      banks.SHARDED,
      _Group(P(DATA), P(DATA), P(), P(), P(), P(DATA)),
    ),
    out_specs=(P(), banks.SHARDED),
  )(params, frozen, bank, group)
  return contrast.loss, (contrast, computed)


def _device_contrast(
  parts: StepParts, params: Any, frozen: Frozen, bank: jax.Array | None, group: _Group
) -> tuple[Contrast, _Computed]:
  """The mean contrast, and the features that this device computed, inside the
  `shard_map`."""
  settings, learner = parts.settings, parts.learner
  # Equal on all devices, but used with rows that differ: a custom VJP (those of
  # `clip.packed`) must see both as varying.
  frozen = jax.lax.pcast(frozen, (DATA, CLASS), to="varying")
  if bank is not None:
    rows = banks.Bank(bank, settings.n_classes, sharded=True)
    frozen = frozen._replace(sampling=frozen.sampling._replace(bank=rows))
  seen = learner.see(params, frozen, group.images, group.labels, group.frozen)
  number = jax.lax.axis_index(DATA) * parts.accumulate + group.micro
  key = draws.draw_key(jax.random.wrap_key_data(group.seed_key), group.step, number)
  drawn = learner.draw(key, settings, frozen, seen)
  mine_R = _dealt(jnp.concatenate([seen.labels, drawn.ids]))
  classes = learner.text_features(params, frozen, mine_R, seen.features)
  contrast = _contrast(parts, frozen, seen, drawn, classes)
  computed = None
  if bank is not None:
    found = [(mine_R, classes)]
    if parts.renewal is not None:
      part = number * jax.lax.axis_size(CLASS) + jax.lax.axis_index(CLASS)
      n_parts, (other, n_rows) = parts.mesh.size * parts.accumulate, parts.renewal
      ids_R = banks.renewed_classes(
        group.step, part, n_parts, n_rows, settings.n_classes
      )
      fixed = jax.lax.stop_gradient(params)
      found.append((ids_R, other.text_features(fixed, frozen, ids_R, seen.features)))
    computed = _known_rows(found, beyond=settings.n_classes + parts.mesh.size)
  return jax.lax.pmean(contrast, (DATA, CLASS)), computed


def _dealt(ids_C: Int32[Array, " C"]) -> Int32[Array, " R"]:
  """This device's classes of a draw, dealt out in turn: each gets its share of the
  positives."""
  class_size = jax.lax.axis_size(CLASS)
  rows = -(-ids_C.size // class_size)
  dealt_RxZ = jnp.pad(ids_C, (0, rows * class_size - ids_C.size)).reshape(
    rows, class_size
  )
  return jax.lax.dynamic_index_in_dim(
    dealt_RxZ, jax.lax.axis_index(CLASS), axis=1, keepdims=False
  )


def _gathered(mine: jax.Array, n_classes: int) -> jax.Array:
  """Rows of all classes of a draw, in its order, from those that `_dealt` gave each
  device."""
  dealt = jax.lax.all_gather(mine, CLASS, axis=1)
  return dealt.reshape(-1, *mine.shape[1:])[:n_classes]


def _contrast(
  parts: StepParts,
  frozen: Frozen,
  seen: Seen,
  drawn: samplers.Negatives,
  mine: TextFeatures,
) -> Contrast:
  """The contrast of a group's images with its draw, gathered over the class axis."""
  settings, learner = parts.settings, parts.learner
  n_images = seen.labels.size
  n_classes = n_images + drawn.ids.size
  features_CxE = _gathered(mine.features, n_classes)
  own_BxE = features_CxE[:n_images]
  if features_CxE.ndim == 3:
    # [C,B,E], one for each image: the diagonal pairs each image with its own class.
    own_BxE = jnp.diagonal(own_BxE).T
  available_S = None
  if mine.available is not None:
    available_S = _gathered(mine.available, n_classes)[n_images:]
  negatives = samplers.complete_negatives(
    settings.sampling, frozen.sampling, drawn, seen.labels, available_S
  )
  classes = ClassFeatures(own_BxE, features_CxE[n_classes - negatives.ids.size :])
  contrast = learner.contrast(settings, frozen, seen, classes, negatives)
  terms = {
    name: term.share(settings, frozen, seen, classes, negatives)
    for name, term in learner.terms.items()
  }
  return Contrast(sum(terms.values(), contrast.loss), contrast.accuracy, terms)


def _known_rows(
  found: list[tuple[jax.Array, TextFeatures]], beyond: int
) -> tuple[jax.Array, jax.Array]:
  """Joins classes to ids [X] and features [X,E]; dropped rows get the id `beyond`."""
  ids, features = [], []
  for ids_R, rows in found:
    ids.append(
      ids_R if rows.available is None else jnp.where(rows.available, ids_R, beyond)
    )
    features.append(jax.lax.stop_gradient(rows.features))
  return jnp.concatenate(ids), jnp.concatenate(features)


def _updated_bank(parts: StepParts, rows: jax.Array, computed: _Computed) -> jax.Array:
  """Writes what all groups computed, in their order, into the bank."""

  def in_order(leaf: jax.Array) -> jax.Array:
    # [accumulate, data * X, ..] to [data * accumulate * X, ..].
    leaf = leaf.reshape(parts.accumulate, parts.mesh.shape[DATA], -1, *leaf.shape[2:])
    return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[3:])

  rows = banks.write_rows(rows, parts.mesh, *jax.tree.map(in_order, computed))
  return jax.lax.with_sharding_constraint(rows, banks.bank_sharding(parts.mesh))
