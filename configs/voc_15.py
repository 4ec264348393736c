r"""PASCAL VOC, 15 base and 5 novel classes: masks of ZSSeg's network, POMP's tuned prompt.

LABELS holds the label images of the 1,449 validation images:

mkdir LABELS; for i in $(cat VOC2012/ImageSets/Segmentation/val.txt); do
  cp VOC2012/SegmentationClass/$i.png LABELS; done
python -m pomp_jax.main --config=configs/voc_15.py --workdir=runs/voc_15 \
  --config.segment.images=VOC2012/JPEGImages --config.segment.labels=LABELS \
  --config.segment.prompts="model_final.pth;a photo of a {}." --config.regions.path=REGIONS

Published (POMP, docs/MODELS.md): hIoU 84.4, novel mIoU 76.8. Files, differences: coco_stuff_156.py.
Cost (arithmetic): 144,900 crops of 35 GFLOP.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.coco_stuff_156 import SHORT, recipe


def get_config(argument: str = ""):
  """The published values; background, 0 in the label images, is not evaluated."""
  config = recipe()
  config.segment.names = "voc"
  config.segment.label_values = "reduce_zero_label"
  config.regions.e_base, config.regions.e_novel = 0.3, 0.7
  return with_argument(config, argument, **SHORT)
