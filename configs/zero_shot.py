r"""Zero-shot CLIP: its set's own text, the name alone, and CLIP's ensembles of 7 and of 80 texts.

  python -m pomp_jax.main --config=configs/zero_shot.py --workdir=runs/zero_shot \
    --config.clip.model=openai/clip-vit-base-patch16 --config.data.source=coop \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/zero_shot.py:world --workdir=runs/zero_shot_world
"""

from configs.world_size import SMALL
from pomp_jax.config import base, with_argument

WORLD = SMALL | {"method": "zero_shot"}


def get_config(argument: str = ""):
  """The base config; `world`: a size for two cores."""
  config = base()
  config.method = "zero_shot"
  return with_argument(config, argument, variants={"world": WORLD})
