r"""A prompt's temperature, floor and sets from validation images; see docs/how-to/certainty.md.

On the embedded world, with known classes to measure the promises and novel ones to tell
apart:

  python -m pomp_jax.main --config=configs/calibrate.py:prompt=runs/demo,test=base,unknown=novel \
    --workdir=runs/demo_calibrated

On own pictures, with the CLIP and the data that the run was trained on:

  python -m pomp_jax.main --config=configs/calibrate.py:prompt=runs/own,test=test \
    --workdir=runs/own_calibrated --config.data.source=folder --config.data.root=PICTURES \
    --config.clip.model=openai/clip-vit-base-patch16 --config.data.upright

There have to be 40 validation images or more.

Variants are strings behind the colon, separated by commas: the fields of `calibrate`.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("certainty",)


def get_config(argument: str = ""):
  """The base config with the job; `prompt` remains to be given."""
  config = base("calibrate")
  config.eval.images = 4096
  return with_argument(
    config, argument, **{name: f"calibrate.{name}" for name in config.calibrate}
  )
