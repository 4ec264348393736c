r"""MaPLe (Khattak et al., 2023).

  python -m pomp_jax.main --config=configs/maple.py --workdir=runs/maple \
    --config.clip.model=openai/clip-vit-base-patch16 --config.data.source=coop \
    --config.data.root=DATA --config.data.dataset=dtd --config.data.shots=16 \
    --config.data.classes=base
  python -m pomp_jax.main --config=configs/maple.py:world --workdir=runs/maple_world

Numbers: the released config (vit_b16_c2_ep5_batch4_2ctx): M = 2 in each of 9 layers, 5 epochs of
batches of 4, SGD at 0.0035, cosine after an epoch at 1e-5. Of "a photo of a" the first two words
are learned, and "of a" stays before the name. On the world the context starts from noise alone.
"""

from configs.world_size import SMALL
from pomp_jax.config import base, with_argument

# The world's CLIP has three layers.
WORLD = SMALL | {
  "method": "maple",
  "negatives": "all",
  "prompt.m": 2,
  "prompt.depth": 3,
  "optim.lr": 0.02,
}


def get_config(argument: str = ""):
  """The published recipe; `world`: a size for two cores."""
  config = base()
  config.method = "maple"
  config.negatives = "all"
  config.prompt.m = 2
  config.prompt.init = "a photo of a"
  config.prompt.depth = 9
  config.batch_size = 4
  config.epochs = 5
  config.optim.lr = 0.0035
  world = WORLD | {"prompt.init": ""}
  return with_argument(config, argument, variants={"world": world}, m="prompt.m", lr="optim.lr")
