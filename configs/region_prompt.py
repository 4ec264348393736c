r"""Tuning a pre-trained prompt on crops of base classes' regions, as POMP does for
segmentation.

COCO-Stuff, 156 base classes: train2017's images, and the label images of
stuffthingmaps_trainval2017.zip as distributed. PROMPT is the released M = 16 prompt, or
one's own:

python -m pomp_jax.main --config=configs/region_prompt.py --workdir=runs/region_prompt \
  --config.data.root=COCO/train2017 --config.data.annotations=COCO/stuffthingmaps/train2017 \
  --config.prompt.init=PROMPT --config.data.cache=CACHE

VOC, 15 base classes: `:voc`, with JPEGImages and the label images of the 11,000
training images. Own regions: a COCO or LVIS JSON as data.annotations, `:own`, and
data.names empty or a list.

The published numbers (zsseg.baseline's configs, `.._learn_prompt_pomp_..`): the context
alone is tuned; items are (image, class), 32 of a class (VOC: 128); SGD at 0.02,
momentum 0.9, weight decay 5e-4, the gradient's norm clipped at 0.01 (the base yaml, for
every optimizer), batches of 32, 16,000 steps (VOC: 3,200; the files' names say 10k),
100 of them at 1e-4, then a cosine; random crops and flips. The contrast is over all
base classes.

Not as published: outside a mask the colour is CLIP's mean, as it is in ZSSeg's test;
its training adds the mean after normalising, which is 0.41 to 0.48 where the mean is 0.
The cosine starts after the warm-up, not below it. The drawn items are others. A random
crop is 224 x 224 and bicubic, and the mask is filled before it; the published one is
224 x 244 and bilinear. Where a crop has no pixel of the mask, another item is drawn
there; here the view is of the fill alone. No row is published for the prompt alone:
configs/coco_stuff_156.py evaluates it.

Cost (arithmetic): 512,000 images of 35 GFLOP and 16,000 steps of 156 classes. The first
start reads all label images, which data.cache remembers.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)

VOC = {"data.names": "voc", "data.shots": 128, "steps": 3200, "optim.warmup": 100 / 60}
OWN = {"data.names": ""}
SHORT = {"shots": "data.shots", "lr": "optim.lr", "m": "prompt.m"}


def get_config(argument: str = ""):
  """The published values."""
  config = base()
  config.clip.model = "openai/clip-vit-base-patch16"
  config.data.source = "regions"
  config.data.names = "coco_stuff"
  config.data.shots = 32
  config.data.test_share = config.data.validation_share = 0.0
  config.data.augment = "crop_flip"
  config.prompt.m = 16
  config.negatives = "all"
  config.correction = "none"
  config.batch_size = 32
  config.steps = 16_000
  config.optim.lr = 0.02
  config.optim.schedule = "step"
  config.optim.warmup = 100 / 156  # epochs of 156 steps
  config.optim.warmup_lr = 1e-4
  config.optim.clip_norm = 0.01
  return with_argument(config, argument, variants={"voc": VOC, "own": OWN}, **SHORT)
