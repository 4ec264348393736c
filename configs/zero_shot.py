r"""Zero-shot CLIP: its set's own text, the name alone, and CLIP's ensembles of 7 and of
80 texts.

  python -m pomp_jax.main --config=configs/zero_shot.py --workdir=runs/zero_shot \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/zero_shot.py:world --workdir=runs/zero_shot_world

All test images; ImageNet's ensembles on every set, as CoOp's ZeroshotCLIP2 has them. On
the world 1,000 images of each split.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

WORLD = SMALL | {"method": "zero_shot"}


def get_config(argument: str = ""):
  """CoOp's protocol; `world`: a size for two cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT)
  config.method = "zero_shot"
  return with_argument(config, argument, variants={"world": WORLD})
