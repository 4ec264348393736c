r"""Names whose class vectors are nearly equal; see docs/how-to/certainty.md.

  python -m pomp_jax.main --config=configs/near_names.py:names=imagenet21k \
    --workdir=runs/near_names --config.near_names.prompt="a photo of a {}."

Variants are strings behind the colon, separated by commas: the fields of `near_names`,
and `clip`. The CLIP is that which the prompt's file names if the prompt is given behind
the colon, else the embedded world's.
"""

from pomp_jax.config import WORLD, base, with_argument
from pomp_jax.files.prompt_file import recorded_clip

ROOMS = ("certainty",)


def get_config(argument: str = ""):
  """The base config with the job; `names` remain to be given where no run has any."""
  config = base("near_names")
  short = {name: f"near_names.{name}" for name in config.near_names}
  short |= {"clip": "clip.model"}
  with_argument(config, argument, **short)
  config.clip.model = recorded_clip(config.near_names.prompt) or WORLD
  return with_argument(config, argument, **short)
