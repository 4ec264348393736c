r"""The published recipe: ImageNet-21K, ViT-B/16, 16 images a class, K = 1000 (arXiv 2304.04704).

The images, once, as records (docs/data.md; `data.source=folder` reads the synset folders as well):

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --config.job=prepare \
    --workdir=RECORDS --config.prepare.input=fall11_whole.tar

What the run will take, on made-up data of the same shapes, with nothing written; then the run:

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --workdir=runs/21k \
    --config.dry_run
  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py --workdir=runs/21k \
    --config.data.root=RECORDS

From features computed once, the same views every five epochs, for any number of runs:

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py:cache=FEATURES \
    --workdir=runs/cache --config.data.root=RECORDS --config.job=cache
  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16.py:cache=FEATURES,features=cached \
    --workdir=runs/21k_cached --config.data.root=RECORDS

A variant is a string behind a colon: `:m=16,epochs=20`, `:correction=log`, `:shots=4`, `:k=100`,
`:names=imagenet21k_p` (the processed 11,221 classes). 128 rows share a draw of negatives, as on the
paper's eight devices: on d devices give `accumulate=8/d`.

Cost (arithmetic): 1,365 steps an epoch of 1,024 views; a step is 36 TFLOP of images (none from
cached features) and 8 x 0.7 TFLOP of text; 5 epochs are 0.28 EFLOP online, 0.04 cached.
Published (released weights): top-1 24.9 on ImageNet-21K with M = 4 and 5 epochs, 25.2 with M = 16
and 20; zero-shot CLIP 21.8.
"""

from pomp_jax.config import base, with_argument

SHORT = {
  "m": "prompt.m",
  "shots": "data.shots",
  "names": "data.names",
  "lr": "optim.lr",
  "cache": "data.feature_cache",
  "features": "data.features",
}


def get_config(argument: str = ""):
  """The base config as METHOD's recipe has it."""
  return with_argument(recipe(), argument, **SHORT)


def recipe():
  """The numbers of the recipe that are not the base's; `with_argument` may still change them."""
  config = base()
  config.clip.model = "openai/clip-vit-base-patch16"
  config.clip.dtype = "bfloat16"  # float16 in the paper
  config.data.source = "tfds"
  config.data.dataset = "imagenet21k"
  config.data.names = "imagenet21k"
  config.data.shots = 16
  config.data.augment = "recipe"
  config.data.views = 4
  config.data.fresh_epochs = 5  # with 20 epochs the views come four times
  config.prompt.m = 4
  config.k = 1000
  config.correction = "log10"  # as published; log is the unbiased one
  config.batch_size = 8 * 32 * 4  # devices, images, views
  config.epochs = 5
  config.optim.lr = 0.002
  config.eval.images = 109_205  # five a class
  config.checkpoint.every = 455  # three an epoch
  config.checkpoint.keep = 2
  config.prepare.dataset = "imagenet21k"
  config.prepare.shots = 16
  config.prepare.held_out = 5
  config.prepare.workers = 16
  return config
