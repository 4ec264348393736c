"""Seconds of training until a prompt is as good as that of the exact contrast, by
sampler and K.

4,096 classes of the embedded world; of these the README's four curves; banks of several
ages; and all 21,841 classes:

  python -m pomp_jax.main --config=configs/time_to_accuracy.py --workdir=runs/time_4096
  python -m pomp_jax.main --config=configs/time_to_accuracy.py:short --workdir=runs/time_short
  python -m pomp_jax.main --config=configs/time_to_accuracy.py:bank --workdir=runs/time_bank
  python -m pomp_jax.main --config=configs/time_to_accuracy.py:all --workdir=runs/time_all

Run it alone: it measures time.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import ablate_k

ROOMS = ("ablation",)

_SEEDS = "seed=0|1|2"
_EXACT = f"sampling.name=uniform;k=all;steps=100;{_SEEDS}"
_VARIANTS = {
  "short": {
    "ablate.grid": f"sampling.name=uniform|posterior;k=64;steps=400;{_SEEDS}"
    f" & sampling.name=uniform;k=1024;steps=100;{_SEEDS} & {_EXACT}",
  },
  "bank": {
    "ablate.grid": f"sampling.name=posterior;k=64|all;sampling.renew=0|128|4096;{_SEEDS}",
  },
  "all": {
    "data.n_classes": 0,
    "steps": 50,
    "eval.images": 2048,
    "ablate.curve_every": 10,
    "ablate.grid": f"sampling.name=uniform|posterior;k=64|256|1024|all;{_SEEDS}"
    f" & sampling.name=uniform|posterior;k=64|256|1024;steps=200;{_SEEDS}",
  },
}


def get_config(argument: str = ""):
  """The exact contrast, uniform draws and draws by the posterior at several K and
  lengths."""
  config = ablate_k.get_config()
  config.ablate.grid = (
    f"sampling.name=uniform|posterior;k=16|64|256|1024|all;{_SEEDS}"
    f" & sampling.name=uniform|posterior;k=16|64|256;steps=400;{_SEEDS}"
  )
  config.ablate.curve_every = 20
  return with_argument(config, argument, variants=_VARIANTS, grid="ablate.grid")
