r"""KgCoOp (Yao et al., 2023, "Visual-Language Prompt Tuning with Knowledge-guided
Context").

CoOp from the words "a photo of a", with class features held near those of the set's own
sentence: cross-entropy + 8 (1 - cosine).

  python -m pomp_jax.main --config=configs/kgcoop.py --workdir=runs/kgcoop \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/kgcoop.py:eurosat --workdir=runs/kgcoop_eurosat \
    --config.data.root=DATA
  python -m pomp_jax.main --config=configs/kgcoop.py:world --workdir=runs/kgcoop_world

Numbers: the released config (vit_b16_ep100_ctxv1) and scripts/base2new_train.sh: M = 4,
100 epochs of batches of 128, SGD at 0.002, cosine after an epoch at 1e-5, random crops
and flips. Its few-shot script trains on all classes: `:classes=all,shots=4`.
docs/reproduce/recipes.md has every value beside ours. `eurosat`: its 5 base classes
have 80 images, fewer than a batch. Dassl's batch is then these 80; a batch of 128 here
would have 48 of them twice. With 4 shots of all 10 classes it is `batch=40`. On the
world the context starts from noise, and the images are not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("data_sets", "regularisation")

_TERM = {"consistency_squared": 8.0, "anchors": "hand_written"}
EUROSAT = {"data.dataset": "eurosat", "batch_size": 80}
WORLD = SMALL | _TERM | {"method": "pomp", "negatives": "all", "prompt.init": ""}


def get_config(argument: str = ""):
  """The published recipe; `eurosat`: above; `world`: a size for two cores."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW | _TERM)
  config.negatives = "all"
  config.prompt.init = "a photo of a"
  config.batch_size = 128
  config.epochs = 100
  config.optim.lr = 0.002
  short = {"classes": "data.classes", "shots": "data.shots", "lr": "optim.lr"}
  short["batch"] = "batch_size"
  variants = {"world": WORLD, "eurosat": EUROSAT}
  return with_argument(config, argument, variants=variants, **short)
