r"""Prompts over a suite of data sets: tables, plots, every figure.

On the embedded world, a learned prompt beside the hand-written one, and all checkpoints of a run:

  python -m pomp_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
    --config.evaluate.prompts="runs/demo/prompt.npz;hand_written;runs/demo"
"""

from pomp_jax.config import base, with_argument


def get_config(argument: str = ""):
  """The base config with the job; the prompts beside the hand-written one remain to be given."""
  config = base()
  config.job = "evaluate"
  config.eval.images = 4096
  short = {name: f"evaluate.{name}" for name in config.evaluate}
  return with_argument(config, argument, **short)
