r"""COCO val2017, the 65 classes of open-vocabulary detection: POMP's Detic, trained on
LVIS.

The annotations are Detic's instances_val2017_all_2_oriorder.json (80 categories,
objects of 65), DUMP is written (docs/concepts/regions.md) from
Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp.pth:

python -m pomp_jax.main --config=configs/coco_65.py --workdir=runs/coco_65 \
  --config.detect.annotations=instances_val2017_all_2_oriorder.json --config.regions.path=DUMP \
  --config.detect.prompts="coco_clip_pomp+cname.npy;coco_clip_a+cname.npy;PROMPT.npz"

Published (POMP, docs/MODELS.md): AP50 58.0 under the first. `novel AP50` is that of the
17 classes that open-vocabulary COCO holds out. Cost: 3.9 GB of embeddings for 5,000
images (arithmetic).
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.lvis import SHORT, recipe

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values."""
  config = recipe()
  config.detect.names = "coco"
  return with_argument(config, argument, **SHORT)
