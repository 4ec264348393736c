r"""Tip-Adapter (Zhang et al., 2022), training-free, or `tuned`: Tip-Adapter-F.

  python -m pomp_jax.main --config=configs/tip_adapter.py:tuned --workdir=runs/tip_adapter_f \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/tip_adapter.py:world --workdir=runs/tip_adapter_world

Numbers: the released configs. Crops show half of an image or more; a key is the mean
feature over ten views; the keys are learned on fresh views for 20 epochs (EuroSAT: 100)
of batches of 256, AdamW at 0.001 with a cosine; then 20 alphas and 200 betas are tried.
The first alpha and the ends of both searches are those of `data.dataset`
(`pomp_jax/rooms/baselines/tip_adapter.json`); docs/reproduce/recipes.md has them beside
ours. The released code keeps the epoch that is best on test images and reports the
better of it and of the search; here validation images decide both. The world has values
of its own: crops of 90% or more (its CLIP has seen no crops: under those of half an
image the keys know little more than the text), 5 views and 5 epochs, and keys learned
at the weights that the search finds for the training-free adapter.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

_TUNED = {"method": "tip_adapter_f"}
_VIEWS = {"data.augment": "crop_flip", "data.crop_area": 0.5}
WORLD = SMALL | {
  "method": "tip_adapter",
  "data.augment": "crop_flip",
  "data.crop_area": 0.9,
  "tip.views": 5,
  "tip.beta_steps": 30,
}
WORLD_TUNED = (
  WORLD
  | _TUNED
  | {
    "batch_size": 256,
    "tip.epochs": 5,
    "tip.alpha": 2.855,
    "tip.beta": 6.31,
    "optim.lr": 0.001,
  }
)


def get_config(argument: str = ""):
  """The published recipe; `tuned`: the keys are learned; `world`: a size for two
  cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | _VIEWS)
  config.method = "tip_adapter"
  config.tip.views = 10
  config.tip.alpha_steps = 20
  config.tip.beta_steps = 200
  config.batch_size = 256
  config.optim.lr = 0.001
  tuned = "tuned" in (argument or "").split(",")
  variants = {"tuned": _TUNED, "world": WORLD_TUNED if tuned else WORLD}
  return with_argument(config, argument, variants=variants)
