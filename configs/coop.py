r"""CoOp (Zhou et al., 2022, "Learning to Prompt for Vision-Language Models").

POMP's own learner, with all classes as negatives. In CoOp's layout, and on the embedded world in a
minute:

  python -m pomp_jax.main --config=configs/coop.py --workdir=runs/coop \
    --config.clip.model=openai/clip-vit-base-patch16 --config.data.source=coop \
    --config.data.root=DATA --config.data.dataset=dtd --config.data.shots=16
  python -m pomp_jax.main --config=configs/coop.py:world --workdir=runs/coop_world

Numbers: section 4.1 and the released configs (rn50_ep50, ctx 16, end): M = 16, SGD at 0.002, cosine
after an epoch at 1e-5, batches of 32; 50 epochs on ImageNet, 200 elsewhere with 16 shots.
"""

from configs.world_size import SMALL
from pomp_jax.config import base, with_argument

WORLD = SMALL | {"method": "pomp", "negatives": "all", "prompt.m": 16}


def get_config(argument: str = ""):
  """The published recipe; `world`: a size for two cores."""
  config = base()
  config.method = "pomp"
  config.negatives = "all"
  config.prompt.m = 16
  config.batch_size = 32
  config.epochs = 200
  config.optim.lr = 0.002
  return with_argument(config, argument, variants={"world": WORLD}, m="prompt.m", lr="optim.lr")
