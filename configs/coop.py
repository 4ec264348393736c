r"""CoOp (Zhou et al., 2022, "Learning to Prompt for Vision-Language Models").

POMP's own learner, with all classes as negatives. On a data set in CoOp's layout, on
ImageNet, and on the embedded world in a minute:

  python -m pomp_jax.main --config=configs/coop.py --workdir=runs/coop \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/coop.py:imagenet --workdir=runs/coop_imagenet \
    --config.data.root=DATA
  python -m pomp_jax.main --config=configs/coop.py:world --workdir=runs/coop_world

Numbers: section 4.1 and the released configs (vit_b16; vit_b16_ep50 for ImageNet): M =
16, SGD at 0.002, cosine after an epoch at 1e-5, batches of 32, random crops and flips;
200 epochs with 8 or 16 shots, 100 with 2 or 4 (`:epochs=100,shots=4`), 50 with one and
on ImageNet. docs/reproduce/recipes.md has every value beside ours. The world's images
are not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("data_sets",)

WORLD = SMALL | {"method": "pomp", "negatives": "all", "prompt.m": 16}
IMAGENET = {"data.dataset": "imagenet1k", "epochs": 50}


def get_config(argument: str = ""):
  """The published recipe; `imagenet`: its epochs there; `world`: a size for two
  cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED)
  config.method = "pomp"
  config.negatives = "all"
  config.prompt.m = 16
  config.batch_size = 32
  config.epochs = 200
  config.optim.lr = 0.002
  variants = {"world": WORLD, "imagenet": IMAGENET}
  short = {"m": "prompt.m", "lr": "optim.lr", "shots": "data.shots"}
  return with_argument(config, argument, variants=variants, **short)
