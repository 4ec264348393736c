r"""Tip-Adapter (Zhang et al., 2022), training-free, or `tuned`: Tip-Adapter-F.

  python -m pomp_jax.main --config=configs/tip_adapter.py:tuned --workdir=runs/tip_adapter_f \
    --config.clip.model=openai/clip-vit-base-patch16 --config.data.source=coop \
    --config.data.root=DATA --config.data.dataset=dtd --config.data.shots=16
  python -m pomp_jax.main --config=configs/tip_adapter.py:world --workdir=runs/tip_adapter_world

Numbers: the released configs, ImageNet's: alpha 1.17 and beta 1 while the keys are learned, 20
epochs of batches of 256, AdamW at 0.001 with a cosine; then 20 alphas up to 3 and 200 betas up to 7
are tried. There keys are means over ten augmented views, here features of the centre crop; and
there the best epoch is that on test images, here on validation images.
"""

from configs.world_size import SMALL
from pomp_jax.config import base, with_argument

_TUNED = {"method": "tip_adapter_f"}
WORLD = SMALL | {"method": "tip_adapter", "tip.betas": 30}
WORLD_TUNED = WORLD | _TUNED | {"batch_size": 256, "epochs": 5, "optim.lr": 0.001}


def get_config(argument: str = ""):
  """The published recipe; `tuned`: the keys are learned; `world`: a size for two cores."""
  config = base()
  config.method = "tip_adapter"
  config.batch_size = 256
  config.epochs = 20
  config.optim.lr = 0.001
  tuned = "tuned" in (argument or "").split(",")
  variants = {"tuned": _TUNED, "world": WORLD_TUNED if tuned else WORLD}
  return with_argument(config, argument, variants=variants)
