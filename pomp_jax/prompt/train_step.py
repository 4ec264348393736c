"""One training step over a mesh, for one device, eight, or a pod.

Mesh axes: `data` (images; each index draws its own negatives) and `class` (splits the text
tower's rows; features are gathered, they are tiny).
Shapes: B images of a draw, K negatives of a draw, C = B + K classes of a step, L own tokens of a
class, D width, E embedding.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from pomp_jax.clip import shared
from pomp_jax.clip.text import TextTower, token_embeddings
from pomp_jax.prompt import sampling
from pomp_jax.prompt.context import ClassTokens, PromptContext, Sequences
from pomp_jax.prompt.contrast import Contrast, local_contrast

DATA, CLASS = "data", "class"


def make_mesh(class_size: int = 1, devices: Any = None) -> Mesh:
  """A mesh [data, class] of all devices.

  Args:
    class_size: how many devices split one draw's classes.
    devices: instead of all.

  Raises:
    ValueError: the devices do not divide by `class_size`.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  if devices.size % class_size:
    raise ValueError(f"{devices.size} devices do not divide by a class axis of {class_size}")
  return Mesh(devices.reshape(-1, class_size), (DATA, CLASS))


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes, and the seed it draws from.

  Attributes:
    step: steps taken.
    params: the prompt's, {"context": [M,D] or [N,M,D]}; nothing of the frozen CLIP.
    opt_state: optax's, for the same.
    seed_key: key data of the seed; a step derives its draws from it.
  """

  # Any, not jax.Array: JAX and Orbax also build this tree from shapes and shardings.
  step: Any
  params: Any
  opt_state: Any
  seed_key: Any


class Frozen(NamedTuple):
  """What a step reads and never changes; an argument of the step, placed on the devices once.

  Attributes:
    text: parameters of the text tower.
    image: parameters of the image tower; empty when batches bring features.
    sos: embedding of the start token [D].
    tokens: own tokens of all N classes.
  """

  text: Any
  image: Any
  sos: jax.Array
  tokens: ClassTokens


@dataclasses.dataclass(frozen=True)
class ContrastSettings:
  """The numbers of the method.

  Attributes:
    k: K, 2..N; N is the full softmax.
    n_classes: N.
    correction: `log`, `log10` or `none`.
    logit_scale: what multiplies the cosine.
  """

  k: int
  n_classes: int
  correction: str
  logit_scale: float


def create_state(
  module: PromptContext, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """The state before the first step, all of it a function of the seed."""
  seed_key = jax.random.key(seed)
  # The draws fold in the step, 0, 1, ..; the first context has a stream of its own.
  init_key = jax.random.fold_in(seed_key, 2**32 - 1)
  params = module.init(init_key, method=lambda m: m.context)["params"]
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(seed_key)
  )


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Places a tree, the same on every host, on every device of the mesh."""
  sharding = NamedSharding(mesh, P())

  def place(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(place, tree)


def class_sequences(
  module: PromptContext, params: Any, frozen: Frozen, class_ids_C: jax.Array
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


def class_features(
  module: PromptContext,
  text_tower: TextTower,
  params: Any,
  frozen: Frozen,
  class_ids_C: jax.Array,
) -> jax.Array:
  """Text features of some classes under a prompt: ids [C] -> [C,E], not normalised."""
  return text_tower(frozen.text, *class_sequences(module, params, frozen, class_ids_C))


def step_token_budget(
  module: PromptContext,
  lengths_N: np.ndarray,
  *,
  settings: ContrastSettings,
  group_size: int,
  class_size: int = 1,
) -> int:
  """The own tokens that one device's rows of a step may take; see `clip.shared.token_budget`.

  At K = N every class is in every draw, and the budget holds them all.

  Args:
    module: the prompt; vectors that classes do not share count as their own tokens.
    lengths_N: own tokens of every class.
    settings: K and N.
    group_size: B, images of a draw.
    class_size: devices that split a draw's rows.
  """
  lengths_N = np.asarray(lengths_N) + module.n_own
  size = sampling.n_negatives(settings.k, settings.n_classes)
  n_given = -(-group_size // class_size)
  if size == settings.n_classes:
    shares = [lengths_N[first::class_size].sum() for first in range(class_size)]
    return int(max(shares) + n_given * lengths_N.max())
  return shared.token_budget(lengths_N, -(-size // class_size), n_given)


def make_train_step(
  *,
  mesh: Mesh,
  module: PromptContext,
  text_tower: TextTower,
  image_tower: Callable[[Any, jax.Array], jax.Array] | None,
  optimizer: optax.GradientTransformation,
  settings: ContrastSettings,
  accumulate: int = 1,
  token_budget: int | None = None,
) -> Callable[[TrainState, Frozen, dict[str, jax.Array]], tuple[TrainState, dict]]:
  """Compiles the step `(state, frozen, batch) -> (state, metrics)`; the state is donated.

  The global batch is split into groups, `accumulate` for each data index; every group draws its
  own negatives. So eight devices and one device with `accumulate=8` compute the same.

  Args:
    mesh: from `make_mesh`.
    module: the prompt.
    text_tower: from `clip.text_tower`, with the same budget.
    image_tower: from `clip.image_tower`; None when batches bring features.
    optimizer: moves the context.
    settings: the method's numbers.
    accumulate: groups that a data index computes one after the other.
    token_budget: from `step_token_budget`. Negatives of a draw that do not fit it are left out
      of that step, and the margin counts the rest. None: every row is computed.

  Returns:
    The step. A batch is {"image": uint8 [G*B,H,W,3] or float32 features [G*B,E], "label": int32
    [G*B]}, sharded over `data`. Metrics are scalars on the device: `loss`, `accuracy`,
    `grad_norm`, `context_norm` (before the update).
  """
  group_loss = _make_group_loss(mesh, module, text_tower, settings, accumulate, token_budget)
  # Outside of what is differentiated: nothing of the image tower is kept.
  image_features = image_tower and _over_all_devices(mesh, image_tower)

  def mean_gradient(state, frozen, batch):
    def group_gradient(total, group):
      features, labels, micro = group
      (_, contrast), gradient = jax.value_and_grad(group_loss, has_aux=True)(
        state.params, frozen, features, labels, state.step, state.seed_key, micro
      )
      return jax.tree.map(jnp.add, total, (contrast, gradient)), None

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
    total, _ = jax.lax.scan(group_gradient, zero, groups)
    return jax.tree.map(lambda leaf: leaf / accumulate, total)

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(state, frozen, batch):
    contrast, gradient = mean_gradient(state, frozen, batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics = {
      "loss": contrast.loss,
      "accuracy": contrast.accuracy,
      "grad_norm": optax.tree.norm(gradient),
      "context_norm": optax.tree.norm(state.params),
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return train_step


def _over_all_devices(mesh: Mesh, image_tower: Callable) -> Callable:
  """The image tower over the rows of a data index, split over the class axis too."""
  class_size = mesh.shape[CLASS]

  def local(params, images):
    rows = -(-images.shape[0] // class_size)
    padding = [(0, rows * class_size - images.shape[0])] + [(0, 0)] * (images.ndim - 1)
    start = jax.lax.axis_index(CLASS) * rows
    mine = jax.lax.dynamic_slice_in_dim(jnp.pad(images, padding), start, rows)
    return image_tower(params, mine)

  def features(params, images):
    shares = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P((DATA, CLASS)))(
      params, images
    )
    shares = shares.reshape(mesh.shape[DATA], -1, shares.shape[-1])
    whole = shares[:, : images.shape[0] // mesh.shape[DATA]]
    return whole.reshape(images.shape[0], -1)

  return features


def _make_group_loss(mesh, module, text_tower, settings, accumulate, token_budget):
  """The mean loss over the data axis, each index with its own draw and its own classes."""

  def local_loss(params, frozen, features_BxE, labels_B, step, seed_key, micro):
    # The same on every device, but used with rows that differ: a custom gradient rule (those of
    # `clip.shared`) must see both as differing.
    frozen = jax.lax.pcast(frozen, (DATA, CLASS), to="varying")
    group = jax.lax.axis_index(DATA) * accumulate + micro
    key = sampling.draw_key(jax.random.wrap_key_data(seed_key), step, group)
    negatives_K = sampling.sample_uniform(key, settings.k, settings.n_classes)
    ids_C = jnp.concatenate([labels_B, negatives_K])
    class_size = mesh.shape[CLASS]
    rows = -(-ids_C.size // class_size)
    # Dealt out in turn, so that each device gets its share of the positives, and first.
    dealt_RxS = jnp.pad(ids_C, (0, rows * class_size - ids_C.size)).reshape(rows, class_size)
    mine_R = jax.lax.dynamic_index_in_dim(
      dealt_RxS, jax.lax.axis_index(CLASS), axis=1, keepdims=False
    )
    sequences = class_sequences(module, params, frozen, mine_R)
    features_RxE = text_tower(frozen.text, *sequences)

    def gather(mine):
      dealt = jax.lax.all_gather(mine, CLASS, axis=1)
      return dealt.reshape(-1, *mine.shape[1:])[: ids_C.size]

    features_CxE = gather(features_RxE)
    available_K = None
    if token_budget is not None:
      available_K = gather(shared.kept_rows(sequences.lengths, token_budget))[labels_B.size :]
    contrast = local_contrast(
      features_BxE,
      features_CxE[: labels_B.size],
      features_CxE[labels_B.size :],
      labels_B,
      negatives_K,
      logit_scale=settings.logit_scale,
      n_classes=settings.n_classes,
      correction=settings.correction,
      available_K=available_K,
    )
    return jax.lax.pmean(contrast, (DATA, CLASS))

  def group_loss(params, frozen, features, labels, step, seed_key, micro):
    contrast = jax.shard_map(
      local_loss,
      mesh=mesh,
      in_specs=(P(), P(), P(DATA), P(DATA), P(), P(), P()),
      out_specs=P(),
    )(params, frozen, features, labels, step, seed_key, micro)
    return contrast.loss, contrast

  return group_loss
