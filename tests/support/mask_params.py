"""A MaskFormer of few parameters, and random parameters without compiling an initialisation."""

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from pomp_jax.rooms.regions.mask_former.backbone import SmallSizes
from pomp_jax.rooms.regions.mask_former.model import MaskFormerConfig, Params, parameter_shapes

TINY = MaskFormerConfig(
  embedding=12,
  backbone=SmallSizes((8, 8, 8, 16), groups=2),
  width=16,
  mask_width=8,
  groups=4,
  n_queries=5,
  n_layers=2,
  n_heads=2,
  mlp=16,
  embedding_mlp=8,
  dropout=0.5,
)


def random_params(config: MaskFormerConfig = TINY, seed: int = 0) -> Params:
  """Draws all parameters: scales about 1, vectors about 0, kernels by their fan-in."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    values = rng.standard_normal(shape, np.float32)
    if path[-1] in ("scale", "var"):
      return 1 + 0.1 * np.abs(values)
    if path[-1] == "kernel":
      return values * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
    return values if len(shape) > 1 else 0.1 * values

  flat = flatten_dict(parameter_shapes(config))
  return unflatten_dict({path: draw(path, tuple(shape)) for path, shape in flat.items()})
