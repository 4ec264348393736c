r"""MaPLe (Khattak et al., 2023).

  python -m pomp_jax.main --config=configs/maple.py --workdir=runs/maple \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/maple.py:cross --workdir=runs/maple_imagenet \
    --config.data.root=DATA
  python -m pomp_jax.main --config=configs/maple.py:world --workdir=runs/maple_world

Numbers: the released config (vit_b16_c2_ep5_batch4_2ctx): M = 2 in each of 9 layers, 5
epochs of batches of 4, SGD at 0.0035, cosine after an epoch at 1e-5, random crops and
flips. Of "a photo of a" the first two words are learned, and "of a" stays before the
name. `cross` is the one for transfer from ImageNet (.._cross_datasets): 3 layers, 2
epochs, SGD at 0.0026. docs/reproduce/recipes.md has every value beside ours. On the
world the context starts from noise alone, and the images are not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

# The world's CLIP has three layers.
WORLD = SMALL | {
  "method": "maple",
  "negatives": "all",
  "prompt.m": 2,
  "prompt.depth": 3,
  "optim.lr": 0.02,
}
CROSS = {
  "data.dataset": "imagenet1k",
  "data.classes": "all",
  "prompt.depth": 3,
  "epochs": 2,
  "optim.lr": 0.0026,
}


def get_config(argument: str = ""):
  """The published recipe; `cross`: that for transfer; `world`: a size for two cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW)
  config.method = "maple"
  config.negatives = "all"
  config.prompt.m = 2
  config.prompt.init = "a photo of a"
  config.prompt.depth = 9
  config.batch_size = 4
  config.epochs = 5
  config.optim.lr = 0.0035
  variants = {"world": WORLD | {"prompt.init": ""}, "cross": CROSS}
  return with_argument(config, argument, variants=variants, m="prompt.m", lr="optim.lr")
