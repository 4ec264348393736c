"""AdamW of MaskFormer: polynomial decay, a slower backbone, clipped gradients."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import optax

from pomp_jax.rooms.regions.mask_former.model import parameter_groups

# Parameters of torch's nn.Embedding: like norms, they have no weight decay.
_EMBEDDINGS = ("query_embed", "non_object")


def poly_schedule(base: float, power: float, steps: int, warmup: int = 0) -> optax.Schedule:
  """base * (1 - t / steps)^power, detectron2's WarmupPolyLR; rises linearly over `warmup` steps."""

  def rate(step):
    decay = (1 - jnp.minimum(step / steps, 1.0)) ** power
    rise = jnp.minimum((step + 1) / (warmup + 1), 1.0)
    return base * rise * decay

  return rate


def adamw(
  rate: optax.Schedule, *, weight_decay: float, backbone: float, clip_norm: float
) -> optax.GradientTransformation:
  """AdamW as MaskFormer configures it, by the groups of `model.parameter_groups`.

  Gradients are scaled down where the norm over all of them exceeds `clip_norm`. Frozen parameters
  stay as they are. Norms and learned embeddings have no weight decay.

  Args:
    rate: learning rate of the heads.
    weight_decay: decoupled decay, a factor of the rate.
    backbone: factor on the rate of the backbone.
    clip_norm: largest norm; 0: any.
  """
  own = optax.adamw(rate, weight_decay=weight_decay, mask=decayed)
  groups = {
    "heads": own,
    "backbone": optax.chain(own, optax.scale(backbone)),
    "frozen": optax.set_to_zero(),
  }
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  # Other transformations pass trees with placeholders, whose paths are the same.
  multi = optax.multi_transform(groups, lambda params: parameter_groups(params))
  return optax.chain(optax.masked(optax.set_to_zero(), _is_frozen), clip, multi)


def decayed(params: Any) -> Any:
  """Whether each parameter has weight decay, as a tree."""

  def of_path(path):
    return path[-1] not in _EMBEDDINGS and not any(part.startswith("norm") for part in path)

  return unflatten_dict({path: of_path(path) for path in flatten_dict(params)})


def _is_frozen(params: Any) -> Any:
  return jax.tree.map(lambda group: group == "frozen", parameter_groups(params))
