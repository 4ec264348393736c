r"""What prompts do to the features of classes: alignment, uniformity, nearest tokens.

On the embedded world, a learned prompt beside the hand-written one:

  python -m pomp_jax.main --config=configs/analyse.py --workdir=runs/analyse \
    --config.analyse.prompts="hand_written;runs/demo/prompt.npz"

On other data sets, those that `config.evaluate` names: docs/how-to/evaluation.md.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("analysis",)


def get_config(argument: str = ""):
  """The base config with the job; the prompts beside the hand-written one remain to
  be given."""
  config = base("analyse")
  config.eval.images = 4096
  return with_argument(
    config, argument, **{name: f"analyse.{name}" for name in config.analyse}
  )
