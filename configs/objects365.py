r"""Objects365 v2 val, 365 classes: POMP's Detic, trained on LVIS.

The annotations are Detic's zhiyuan_objv2_val_fixname.json, whose names the vectors
have; DUMP is written (docs/concepts/regions.md) from
Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp.pth:

python -m pomp_jax.main --config=configs/objects365.py --workdir=runs/objects365 \
  --config.detect.annotations=zhiyuan_objv2_val_fixname.json --config.regions.path=DUMP \
  --config.detect.prompts="o365_fixname_clip_pomp+cname.npy;o365_clip_a+cnamefix.npy;PROMPT.npz"

Published (POMP, docs/MODELS.md): AP50 23.4 under the first. Cost: 62 GB of embeddings
for 80,000 images (arithmetic); `:n=5000` takes every sixteenth image, and only these
must be in DUMP.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.lvis import SHORT, recipe

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values."""
  return with_argument(recipe(), argument, **SHORT)
