r"""How many classes to contrast with: K against accuracy, time and memory, corrected or
not.

The embedded world, K of 16 to all of 4,096 classes, three seeds:

  python -m pomp_jax.main --config=configs/ablate_k.py --workdir=runs/ablate_k

Another grid, other steps:

  python -m pomp_jax.main --workdir=runs/ablate_m \
    --config="configs/ablate_k.py:steps=50,grid=prompt.m=2|4|16;seed=0|1"
"""

from pomp_jax.config import with_argument, with_jobs
from pomp_jax.configs import demo

ROOMS = ("ablation",)


def get_config(argument: str = ""):
  """The demo's set-up with fewer classes and steps: the whole grid takes less than
  ten minutes."""
  config = with_jobs(demo.get_config(), "ablate")
  config.data.n_classes = 4096
  config.steps = 100
  # What a processor's cache holds: beyond it the exact contrast over all classes takes
  # longer.
  config.clip.memory_gib = 0.1
  config.ablate.grid = "k=16|64|256|1024|all;correction=log|none;seed=0|1|2"
  short = {name: f"ablate.{name}" for name in config.ablate}
  return with_argument(config, argument, **short, m="prompt.m", lr="optim.lr")
