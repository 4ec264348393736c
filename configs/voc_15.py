r"""PASCAL VOC, 15 base and 5 novel classes: ZSSeg's network and POMP's tuned prompt in
one file.

LABELS holds the label images of the 1,449 validation images:

mkdir LABELS; for i in $(cat VOC2012/ImageSets/Segmentation/val.txt); do
  cp VOC2012/SegmentationClass/$i.png LABELS; done
python -m pomp_jax.main --config=configs/voc_15.py --workdir=runs/voc_15 \
  --config.segment.images=VOC2012/JPEGImages --config.segment.labels=LABELS \
  --config.propose.network=model_final.pth

model_final.pth is the published voc-11k-15_zero_shot_maskformer_R101c_pomp_tuned model.
Published (POMP, docs/MODELS.md): hIoU 84.4, novel mIoU 76.8. Differences, other
prompts, stored regions: coco_stuff_156.py. The shorter side is 512 pixels, as in
ZSSeg's test.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.coco_stuff_156 import SHORT, recipe

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values; background, 0 in the label images, is not evaluated."""
  config = recipe(512)
  config.segment.names = "voc"
  config.segment.label_values = "reduce_zero_label"
  config.regions.e_base, config.regions.e_novel = 0.3, 0.7
  return with_argument(config, argument, **SHORT)
