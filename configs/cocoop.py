r"""CoCoOp (Zhou et al., 2022, "Conditional Prompt Learning for Vision-Language
Models").

  python -m pomp_jax.main --config=configs/cocoop.py --workdir=runs/cocoop \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/cocoop.py:world --workdir=runs/cocoop_world

Numbers: section 4 and the released config (vit_b16_c4_ep10_batch1_ctxv1): M = 4 from "a
photo of a", 10 epochs of single images (so on one device), SGD at 0.002, cosine after
an epoch at 1e-5, random crops and flips; docs/reproduce/recipes.md has every value
beside ours. On the world the context starts from noise, and the images are not
augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

# Every image has 500 class features of its own: few steps of few images.
WORLD = SMALL | {"method": "cocoop", "negatives": "all", "batch_size": 8, "steps": 60}


def get_config(argument: str = ""):
  """The published recipe; `world`: a size for two cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW)
  config.method = "cocoop"
  config.negatives = "all"
  config.prompt.m = 4
  config.prompt.init = "a photo of a"
  config.batch_size = 1
  config.epochs = 10
  config.optim.lr = 0.002
  world = WORLD | {"prompt.init": ""}
  return with_argument(
    config, argument, variants={"world": world}, m="prompt.m", lr="optim.lr"
  )
