r"""Prompts over data sets, a suite's or one's own: tables, plots, every figure.

On the embedded world, a learned prompt beside the hand-written one, and all checkpoints of a run:

  python -m pomp_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
    --config.evaluate.prompts="runs/demo/prompt.npz;hand_written;runs/demo"

On one's own data sets, described in a file (docs/evaluation.md):

  python -m pomp_jax.main --config=configs/evaluate.py:sets_file=sets.toml \
    --workdir=runs/own_sets --config.evaluate.prompts="hand_written;runs/demo/prompt.npz"
"""

from pomp_jax.config import base, with_argument


def get_config(argument: str = ""):
  """The base config with the job; the prompts beside the hand-written one remain to be given."""
  config = base()
  config.job = "evaluate"
  config.eval.images = 4096
  short = {name: f"evaluate.{name}" for name in config.evaluate}
  return with_argument(config, argument, **short)
