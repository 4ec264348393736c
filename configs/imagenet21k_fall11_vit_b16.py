r"""The recipe on all of ImageNet-21K: the fall 2011 release, 21,841 classes, ViT-B/16.

  python -m pomp_jax.main --config=configs/imagenet21k_fall11_vit_b16.py --config.job=prepare \
    --workdir=RECORDS --config.prepare.input=fall11_whole.tar
  python -m pomp_jax.main --config=configs/imagenet21k_fall11_vit_b16.py --workdir=runs/fall11 \
    --config.data.root=RECORDS

Cache, dry run and variants as in imagenet21k_vit_b16.py; `:names=imagenet21k_p` trains
on its processed 11,221 classes, of the same records. The release has no validation
split: five images a class, of those that have enough, are held out for it.

Cost (arithmetic): 1,365 steps an epoch of 1,024 views, each as in
imagenet21k_vit_b16.py; 5 epochs are 0.28 EFLOP online, 0.04 stored. Published: none on
these classes. The paper counts over twenty thousand, its code trains on 10,450.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import imagenet21k_vit_b16

ROOMS = ("data_sets",)


def get_config(argument: str = ""):
  """The recipe with the classes of fall 2011."""
  config = imagenet21k_vit_b16.recipe()
  config.data.names = "imagenet21k"
  config.eval.images = 109_205  # five a class
  config.checkpoint.every = 455  # three an epoch
  if "prepare" in config:
    config.prepare.names = ""
    config.prepare.held_out = 5
  return with_argument(
    config, argument, names="data.names", **imagenet21k_vit_b16.SHORT
  )
