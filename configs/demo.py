"""The demo: pre-train a prompt on the embedded world, over 20,000 classes, on two
cores.

  python -m pomp_jax.main --config=configs/demo.py --workdir=runs/demo

A variant is a string behind a colon:
`configs/demo.py:k=64,m=16,correction=log10,seed=1`.
"""

from pomp_jax.config import base, with_argument


def get_config(argument: str = ""):
  """The base config on the embedded world, short enough for a coffee."""
  config = base()
  config.k = 1000
  config.batch_size = 128
  config.steps = 240
  config.data.images_per_class = 16
  config.optim.lr = 0.1
  config.optim.schedule = "step"
  config.optim.warmup = 0.0
  config.eval.images = 4096
  config.checkpoint.every = 80
  return with_argument(
    config, argument, m="prompt.m", lr="optim.lr", shots="data.images_per_class"
  )
