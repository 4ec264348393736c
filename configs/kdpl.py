r"""KDPL (Mistretta et al., 2024): CoOp that learns from a larger CLIP, without labels.

  python -m pomp_jax.main --config=configs/kdpl.py --workdir=runs/kdpl \
    --config.data.root=DATA --config.data.dataset=dtd
  python -m pomp_jax.main --config=configs/kdpl.py:cross --workdir=runs/kdpl_imagenet \
    --config.data.root=DATA
  python -m pomp_jax.main --config=configs/kdpl.py:agnostic --workdir=runs/kdpl_ca \
    --config.data.source=tfds --config.data.root=RECORDS --config.data.dataset=imagenet21k
  python -m pomp_jax.main --config=configs/kdpl.py:world --workdir=runs/kdpl_world

No class of a training image is read: the teacher's probabilities over all names stand
for it. Numbers: the released config (CoOp_KDPL/vit_b32_ctxv1 with its scripts): M = 4
from "a photo of a", 50 epochs of batches of 32, SGD at 0.002, cosine after an epoch at
1e-5, random crops and flips; docs/reproduce/recipes.md has every value beside ours. As
the scripts, it trains on a set's base classes (reproduce_base2new_train.sh), or with
`cross` on all of ImageNet (reproduce_cross_d_train.sh), from which the prompt is
transferred. `agnostic` keeps the 1,000 classes that the teacher finds most likely in a
batch (KDPL-CA), of a data set that has more. In the world the teacher is its own CLIP
under seven texts, and the student's context starts from noise. The world's images are
not augmented.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.configs.few_shot import AUGMENTED, BASE_TO_NEW, FEW_SHOT
from pomp_jax.configs.world_size import SMALL

ROOMS = ("baselines", "data_sets")

WORLD = SMALL | {
  "method": "kdpl",
  "negatives": "all",
  "prompt.init": "",
  "kdpl.teacher": "world",
  "kdpl.prompt": "ensemble:imagenet_7",
}
CROSS = {"data.dataset": "imagenet1k", "data.classes": "all"}
# K counts the teacher's class of an image, which is one of the 1,000.
AGNOSTIC = {"negatives": "sampled", "k": 1001, "kdpl.classes": "likeliest"}
AGNOSTIC |= {"data.classes": "all", "kdpl.prompt": "a photo of a {}."}


def get_config(argument: str = ""):
  """The recipe from base to new classes; `cross`, `agnostic`, `world`: above."""
  config = base()
  config.update_from_flattened_dict(FEW_SHOT | AUGMENTED | BASE_TO_NEW)
  config.method = "kdpl"
  config.clip.model = "openai/clip-vit-base-patch32"
  config.negatives = "all"
  config.prompt.m = 4
  config.prompt.init = "a photo of a"
  config.batch_size = 32
  config.epochs = 50
  config.optim.lr = 0.002
  variants = {"world": WORLD, "cross": CROSS, "agnostic": AGNOSTIC}
  return with_argument(config, argument, variants=variants, m="prompt.m", lr="optim.lr")
