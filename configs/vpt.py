r"""VPT (Jia et al., 2022) on CLIP, as MaPLe's code runs it; deep, or `shallow`.

  python -m pomp_jax.main --config=configs/vpt.py --workdir=runs/vpt \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/vpt.py:shallow,world --workdir=runs/vpt_world

Numbers: the config released with MaPLe (VPT/vit_b16_c2_ep5_batch4_4): 8 tokens in each
of 12 layers, text "a photo of a {}.", 5 epochs of batches of 4, SGD at 0.0025, cosine
after an epoch at 1e-5, random crops and flips; docs/reproduce/recipes.md has every
value beside ours. The world's images are not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

_DEEP, _SHALLOW = (
  {"method": "vpt_deep", "prompt.depth": 12},
  {"method": "vpt_shallow", "prompt.depth": 1},
)
# The world's CLIP has three layers.
WORLD = SMALL | {
  "method": "vpt_deep",
  "negatives": "all",
  "prompt.depth": 3,
  "optim.lr": 0.02,
}
WORLD_SHALLOW = WORLD | _SHALLOW


def get_config(argument: str = ""):
  """The published recipe; `shallow`: tokens before the first layer alone; `world`: a
  small size."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW | _DEEP)
  config.negatives = "all"
  config.prompt.visual_tokens = 8
  config.batch_size = 4
  config.epochs = 5
  config.optim.lr = 0.0025
  shallow = "shallow" in (argument or "").split(",")
  variants = {"shallow": _SHALLOW, "world": WORLD_SHALLOW if shallow else WORLD}
  return with_argument(config, argument, variants=variants, lr="optim.lr")
