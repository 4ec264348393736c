"""POMP beside every baseline on the embedded world, three seeds: one table of accuracy
and cost.

  python -m pomp_jax.main --config=configs/baselines.py --workdir=runs/baselines

All learn from the same images of the same classes, a subset of the world's, and are
evaluated on base, novel and shifted ones in that number. Where a method is expensive it
takes few steps (CoCoOp), few L-BFGS iterations (the probe) or few epochs
(Tip-Adapter-F): see the WORLD of its config.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs import (
  cocoop,
  coop,
  linear_probe,
  maple,
  tip_adapter,
  vpt,
  zero_shot,
)
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines",)

METHODS = {
  "zero_shot": zero_shot.WORLD,
  "pomp": SMALL | {"method": "pomp", "negatives": "sampled", "k": 64, "prompt.m": 4},
  "coop": coop.WORLD,
  "cocoop": cocoop.WORLD,
  "vpt_shallow": vpt.WORLD_SHALLOW,
  "vpt_deep": vpt.WORLD,
  "maple": maple.WORLD,
  "linear_probe": linear_probe.WORLD,
  "tip_adapter": tip_adapter.WORLD,
  "tip_adapter_f": tip_adapter.WORLD_TUNED,
}


def get_config(argument: str = ""):
  """Returns the job with the embedded-world config of every method."""
  config = base("baselines")
  config.update_from_flattened_dict(SMALL)
  # Values that equal SMALL are left out, so that overrides apply to all methods.
  config.baselines.methods = tuple(
    (label, {field: value for field, value in own.items() if SMALL.get(field) != value})
    for label, own in METHODS.items()
  )
  return with_argument(config, argument)
