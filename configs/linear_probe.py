r"""The linear probe of CLIP (Radford et al., 2021), on few shots as in CoOp's
comparison.

  python -m pomp_jax.main --config=configs/linear_probe.py --workdir=runs/linear_probe \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/linear_probe.py:world --workdir=runs/linear_probe_world

Numbers: appendix A.3: L-BFGS of at most 1,000 iterations; strengths of the penalty from
1e-6 to 1e6 by every second power of ten, then halving around the best down to eight
steps a decade. Features are the unit vectors of the embedding; CLIP's own probe has
those before the projection, and fits again with the validation images.
docs/reproduce/recipes.md has every value beside ours.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

WORLD = SMALL | {"method": "linear_probe", "probe.iterations": 50}


def get_config(argument: str = ""):
  """The published recipe; `world`: a size for two cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT)
  config.method = "linear_probe"
  config.probe.iterations = 1000
  return with_argument(config, argument, variants={"world": WORLD})
