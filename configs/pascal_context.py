r"""PASCAL Context, 59 classes: ZSSeg's network trained on COCO-Stuff, with POMP's tuned
prompt.

Images and labels of the validation set as ZSSeg's prepare_pcontext_sem_seg.py writes
them:

python -m pomp_jax.main --config=configs/pascal_context.py --workdir=runs/pascal_context \
  --config.segment.images=pcontext/val/image --config.segment.labels=pcontext/val/label \
  --config.propose.network=model_final.pth

model_final.pth is the published
coco-stuff-164k-171_zero_shot_maskformer_R101c_pomp_tuned model. Published (POMP,
docs/MODELS.md): mIoU 51.1. Differences, other prompts, stored regions:
coco_stuff_156.py. The shorter side is 512 pixels, as in ZSSeg's test.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.coco_stuff_156 import SHORT, recipe

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values; one exponent, since ZSSeg marks no class as trained here."""
  config = recipe(512)
  config.segment.names = "pascal_context"
  config.regions.e_base = config.regions.e_novel = 0.2
  return with_argument(config, argument, **SHORT)
