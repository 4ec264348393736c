"""The demo over three seeds: mean and spread of what the prompt gains.

python -m pomp_jax.main --config=configs/demo_seeds.py --workdir=runs/demo_seeds
"""

from pomp_jax.config import with_argument, with_jobs
from pomp_jax.configs import demo

ROOMS = ("baselines",)


def get_config(argument: str = ""):
  """The demo's config as the `repeat` job."""
  config = with_jobs(demo.get_config(), "repeat")
  return with_argument(config, argument, m="prompt.m", lr="optim.lr")
