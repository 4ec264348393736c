r"""Segmentation without training and without regions: NACLIP on the frozen ViT, 80
texts a class.

python -m pomp_jax.main --config=configs/segment_training_free.py --workdir=runs/naclip_ade \
  --config.segment.images=ADEChallengeData2016/images/validation \
  --config.segment.labels=ADEChallengeData2016/annotations/validation \
  --config.segment.names=ade20k --config.segment.label_values=reduce_zero_label

Other sets: the folders of coco_stuff_156.py, voc_15.py (with `:window=0`, whole images)
and pascal_context.py, with their names and values. Published with PAMR (NACLIP's
README): mIoU 83.0 on VOC's 20 classes, 38.4 on PASCAL Context's 59, 25.7 on
COCO-Stuff's 171, 19.1 on ADE20K's 150. It has lists with synonyms of its own; ours are
ZSSeg's names, and a file of names can have synonyms.

Other recipes, with their published window, stride and scale: `:recipe=sclip`,
`:recipe=clearclip,size=448,window=448,stride=224,logit_scale=50`
(docs/concepts/regions.md).
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values; a learned prompt goes beside the ensemble in
  `segment.prompts`."""
  config = base("segment")
  config.clip.model = "openai/clip-vit-base-patch16"
  config.segment.source = "folder"
  config.segment.prompts = ("ensemble:imagenet",)
  config.segment.recipe = "naclip"
  config.segment.size, config.segment.window, config.segment.stride = 336, 224, 112
  config.segment.logit_scale = 40.0
  config.segment.pamr = 10
  return with_argument(
    config, argument, **{name: f"segment.{name}" for name in config.segment}
  )
