r"""Bias and variance of the sampled gradient against the exact one, by K, correction
and sampler.

At the first prompt of seed 0, or at a learned one:

  python -m pomp_jax.main --config=configs/gradient_bias.py --workdir=runs/gradient_bias
  python -m pomp_jax.main --config=configs/gradient_bias.py --workdir=runs/gradient_bias_trained \
    --config.gradient_bias.prompt=runs/demo/prompt.npz

With the bank as training had it, from a checkpoint (`n_classes=0`: all 21,841 classes):

  python -m pomp_jax.main --config=configs/demo.py:k=256,steps=100 --workdir=runs/posterior \
    --config.data.n_classes=4096 --config.sampling.name=posterior --config.checkpoint.every=50 \
    --config.eval.images=64
  python -m pomp_jax.main --workdir=runs/bias_100 --config.data.n_classes=4096 \
    "--config=configs/gradient_bias.py:k=64+256,samplers=uniform;posterior,corrections=log" \
    --config.gradient_bias.prompt=runs/posterior/checkpoints/100
"""

from pomp_jax.config import base, with_argument

ROOMS = ("analysis",)


def get_config(argument: str = ""):
  """The base config with the job, on the embedded world."""
  config = base("gradient_bias")
  short = {name: f"gradient_bias.{name}" for name in config.gradient_bias}
  return with_argument(config, argument, **short)
