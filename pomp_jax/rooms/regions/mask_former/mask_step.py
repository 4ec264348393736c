"""Trains a MaskFormer over a mesh: its AdamW, and a step of forward, matching, losses,
update.

The batch is split over the axis `data`. Each device matches its own images. The sums of
the losses are over the whole batch, so the result does not depend on the number of
devices. Shapes: B images of a batch, S side of an image in pixels, J decoder layers, Q
queries, h x w pixels of a predicted mask, T targets, N classes, E embedding.
"""

import functools
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import optax

from pomp_jax.array_types import Array, Float, Int
from pomp_jax.prompt.mesh import DATA
from pomp_jax.prompt.step import Batch, TrainState
from pomp_jax.rooms.regions.mask_former.losses import (
  LossWeights,
  MaskLosses,
  Predictions,
  Targets,
  mask_losses,
  match,
)
from pomp_jax.rooms.regions.mask_former.model import (
  STRIDE,
  MaskFormer,
  Params,
  class_logits,
  normalized_pixels,
  parameter_groups,
)

# Parameters of torch's nn.Embedding: like norms, they have no weight decay.
_EMBEDDINGS = ("query_embed", "non_object")


def make_mask_step(
  *,
  mesh: Mesh,
  model: MaskFormer,
  optimizer: optax.GradientTransformation,
  weights: LossWeights,
) -> jax.stages.Wrapped:
  """Builds the jitted step `(state, classes_NxE, batch) -> (state, metrics)`.

  The state is donated. A batch has the fields of `mask_views.MaskViews.record`, sharded
  over the mesh's axis `data`. Metrics are scalars on the device: `loss`, `class_loss`,
  `focal_loss`, `dice_loss`, `accuracy`, `grad_norm`, and `param_norm` before the update.

  Args:
    mesh: devices, which split a batch.
    model: the network.
    optimizer: transformation of the gradient.
    weights: weights of the terms of the loss.
  """
  # Predictions are [J,B,..], targets [B,..]: devices split B.
  of_layers = P(None, DATA)
  # Each device matches alone: the loops of a matching take different numbers of
  # iterations, so devices can't communicate in them.
  matched = jax.shard_map(
    lambda predictions, targets: match(predictions, targets, weights),
    mesh=mesh,
    in_specs=(of_layers, P(DATA)),
    out_specs=of_layers,
    # The check would raise: the loops of optax start from values that are equal on all
    # devices and end with values that differ.
    check_vma=False,
  )

  def loss_of(
    params: Params,
    classes_NxE: Float[Array, "N E"],
    batch: Batch,
    dropout_key: jax.Array,
  ) -> tuple[Float[Array, ""], MaskLosses]:
    """The loss to minimise, and its terms."""
    pixels = normalized_pixels(batch["image"], batch["sides"])
    output: Any = model.apply(
      {"params": params},
      pixels,
      all_layers=True,
      train=True,
      rngs={"dropout": dropout_key},
    )
    logits = class_logits(output.embeddings_JxBxQxE, classes_NxE, output.non_object_E)
    predictions = Predictions(logits, output.masks_JxBxQxhxw)
    targets = targets_of(batch["owners"], batch["labels"])
    # As in DETR, no gradient flows through the choice of queries.
    queries_JxBxT = matched(jax.lax.stop_gradient(predictions), targets)
    losses = mask_losses(predictions, targets, queries_JxBxT, weights)
    return losses.loss, losses

  gradient_of = jax.value_and_grad(loss_of, has_aux=True)

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(
    state: TrainState, classes_NxE: Float[Array, "N E"], batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    # The key depends on seed and step alone, so a resumed run has the same dropout.
    seed_key = jax.random.wrap_key_data(state.seed_key)
    dropout_key = jax.random.fold_in(seed_key, state.step)
    (_, losses), gradient = gradient_of(state.params, classes_NxE, batch, dropout_key)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics = {
      **losses._asdict(),
      "grad_norm": optax.tree.norm(gradient),
      "param_norm": optax.tree.norm(state.params),
    }
    new_state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return new_state, metrics

  return train_step


def targets_of(owners: Int[Array, "B S S"], labels: Int[Array, "B T"]) -> Targets:
  """Makes target masks from region maps, padded to multiples of 32 like the network's
  input."""
  padding = -owners.shape[-1] % STRIDE
  owners = jnp.pad(owners, ((0, 0), (0, padding), (0, padding)), constant_values=-1)
  masks = (
    owners[:, None] == jnp.arange(labels.shape[1], dtype=owners.dtype)[:, None, None]
  )
  return Targets(jnp.maximum(labels, 0), masks, labels >= 0)


def poly_schedule(base: float, power: float, steps: int) -> optax.Schedule:
  """base * (1 - t / steps)^power at step t: detectron2's WarmupPolyLR without a warmup.

  Args:
    base: learning rate of the first step.
    power: exponent.
    steps: number of steps until the rate is 0.
  """

  def rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
    return base * (1 - jnp.minimum(step / steps, 1.0)) ** power

  return rate


def adamw(
  rate: optax.Schedule, *, weight_decay: float, backbone: float, clip_norm: float
) -> optax.GradientTransformation:
  """Builds AdamW as MaskFormer configures it for each of `model.parameter_groups`.

  Frozen parameters are not updated. Weight decay is decoupled, and norms and learned
  embeddings have none.

  Args:
    rate: learning rate of the heads at each step.
    weight_decay: weight decay; a step subtracts rate * weight_decay * parameter.
    backbone: factor on the learning rate, for the backbone.
    clip_norm: largest norm of the gradient over all parameters that are trained. A
      larger gradient is scaled down to this norm. 0: no clipping.
  """

  def decayed(params: Params) -> Params:
    return unflatten_dict({path: _is_decayed(path) for path in flatten_dict(params)})

  def frozen(params: Params) -> Params:
    return jax.tree.map(lambda group: group == "frozen", parameter_groups(params))

  heads = optax.adamw(rate, weight_decay=weight_decay, mask=decayed)
  transforms = {
    "heads": heads,
    "backbone": optax.chain(heads, optax.scale(backbone)),
    "frozen": optax.set_to_zero(),
  }
  # Optax also asks for the groups of trees with placeholders in place of parameters.
  # Their paths, on which the groups depend, are the same.
  by_group = optax.multi_transform(transforms, lambda params: parameter_groups(params))
  clip = optax.identity()
  if clip_norm:
    clip = optax.clip_by_global_norm(clip_norm)
  # Gradients of frozen parameters are dropped first: the norm must not count them.
  return optax.chain(optax.masked(optax.set_to_zero(), frozen), clip, by_group)


def _is_decayed(path: tuple[str, ...]) -> bool:
  """Whether a parameter has weight decay."""
  is_norm = any(part.startswith("norm") for part in path)
  return path[-1] not in _EMBEDDINGS and not is_norm
