r"""ADE20K, 150 classes: ZSSeg's network trained on COCO-Stuff, POMP's tuned prompt in
its file.

The 2,000 validation images and labels of ADEChallengeData2016, as distributed:

python -m pomp_jax.main --config=configs/ade20k.py --workdir=runs/ade20k \
  --config.segment.images=ADEChallengeData2016/images/validation \
  --config.segment.labels=ADEChallengeData2016/annotations/validation \
  --config.propose.network=model_final.pth

model_final.pth is the published
coco-stuff-164k-171_zero_shot_maskformer_R101c_pomp_tuned model. Published (POMP,
docs/MODELS.md): mIoU 20.7; NACLIP reaches 19.1 untrained
(configs/segment_training_free.py). Differences, other prompts, stored regions:
coco_stuff_156.py. The shorter side is 512 pixels, as in ZSSeg's test. A class's text is
its whole line, as published: 41 are lines such as "road, route".
--config.segment.names=ade20k takes 225 texts, the best of which counts.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs.coco_stuff_156 import SHORT, recipe

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """The published values; one exponent, since ZSSeg marks no class as trained here."""
  config = recipe(512)
  config.segment.names = "ade20k:lines"
  config.segment.label_values = "reduce_zero_label"
  config.regions.e_base = config.regions.e_novel = 0.5
  config.regions.mask_threshold = 0.4
  return with_argument(config, argument, **SHORT)
