r"""The published recipe: ImageNet-21K, ViT-B/16, 16 images a class, K = 1000 (arXiv
2304.04704).

The data is that of the published code: the processed winter 2021 release, 10,450
classes, and its validation split of 50 images a class. As records, once
(docs/how-to/data.md), of its folder, which holds imagenet21k_train and imagenet21k_val,
or of winter21_whole.tar.gz, of which 50 images a class are then held out
(`data.source=folder` reads the release's folder as it is):

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --config.job=prepare \
    --workdir=RECORDS --config.prepare.input=imagenet21k_resized

What the run will take, on made-up data of the same shapes, with nothing written; then
the run:

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --workdir=runs/21k \
    --config.dry_run
  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --workdir=runs/21k \
    --config.data.root=RECORDS

From features computed once, before the first step, which are the views of `fresh`
epochs over and over. Any number of runs read them in FEATURES (without, every epoch has
views of its own):

  python -m pomp_jax.main --workdir=runs/21k_stored --config.data.root=RECORDS \
    --config=configs/imagenet21k_vit_b16.py:features=stored,fresh=5,store=FEATURES

A variant is a string behind a colon: `:m=16,epochs=20` (published too),
`:correction=log`, `:shots=4`, `:k=100`. The fall 2011 release is
imagenet21k_fall11_vit_b16.py. 128 rows share a draw of negatives, as on the paper's
eight devices: on d devices give `accumulate=8/d`.

Cost (arithmetic): 653 steps an epoch of 1,024 views; a step is 36 TFLOP of images (none
from stored features) and 8 x 0.7 TFLOP of text; 5 epochs are 0.14 EFLOP online, 0.02
stored. The 522,500 images that evaluate are 0.02 EFLOP, and are read twice: for the
validation and at the end. Published (released weights): top-1 24.9 with M = 4 and 5
epochs, 25.2 with M = 16 and 20; zero-shot CLIP 21.8.

What differs from the published run, value by value, is in docs/reproduce/recipes.md.
"""

from pomp_jax.config import base, with_argument

ROOMS = ("data_sets",)

SHORT = {
  "m": "prompt.m",
  "shots": "data.shots",
  "lr": "optim.lr",
  "store": "data.feature_store",
  "fresh": "data.view_epochs",
  "features": "data.features",
}


def get_config(argument: str = ""):
  """The base config with the published values."""
  return with_argument(recipe(), argument, **SHORT)


def recipe():
  """The numbers of the recipe that are not the base's; `with_argument` may still
  change them."""
  # The base has POMP's method, its softmax loss and its uniform draw.
  config = base("pretrain", "prepare")
  config.clip.model = "openai/clip-vit-base-patch16"
  config.clip.dtype = "bfloat16"  # float16 in the paper
  config.data.source = "tfds"
  config.data.dataset = "imagenet21k"
  config.data.names = "imagenet21k_p_w21"
  config.data.shots = 16
  config.data.augment = "recipe"
  config.data.views = 4
  config.prompt.m = 4
  config.k = 1000
  config.correction = "log10"  # as published; log is the unbiased one
  config.batch_size = 8 * 32 * 4  # devices, images, views
  config.epochs = 5
  config.optim.lr = 0.002
  config.eval.images = 522_500  # all: 50 a class
  config.checkpoint.every = 218  # three an epoch
  config.checkpoint.keep = 2
  config.checkpoint.select = "best"
  if "prepare" in config:
    config.prepare.dataset = "imagenet21k"
    config.prepare.names = "imagenet21k_p_w21"
    config.prepare.shots = 16
    config.prepare.held_out = 50
  return config
