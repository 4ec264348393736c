"""Seconds of training until a prompt is as good as that of the exact contrast, by sampler and K.

4,096 classes of the embedded world, and all 21,841:

  python -m pomp_jax.main --config=configs/time_to_accuracy.py --workdir=runs/time_4096
  python -m pomp_jax.main --config=configs/time_to_accuracy.py:all --workdir=runs/time_all

Run it alone: it measures time.
"""

from configs import ablate_k
from pomp_jax.config import with_argument

# All classes of the world: the exact contrast takes minutes.
_ALL = {
  "data.n_classes": 0,
  "steps": 50,
  "eval.images": 2048,
  "ablate.curve_every": 5,
  "ablate.grid": "sampling.name=uniform|posterior;k=64|256|1024|all;seed=0|1|2",
}


def get_config(argument: str = ""):
  """The exact contrast, uniform draws and draws by the posterior, with an old and a fresh bank."""
  config = ablate_k.get_config()
  config.ablate.grid = (
    "sampling.name=uniform|posterior;k=16|64|256|1024|all;sampling.renew=128|4096;seed=0|1|2"
  )
  config.ablate.curve_every = 10
  return with_argument(config, argument, variants={"all": _ALL}, grid="ablate.grid")
