r"""The exact contrast: ImageNet-21K, ViT-B/16, every step against all 10,450 classes.

  python -m pomp_jax.main --config=configs/imagenet21k_vit_b16_full.py --workdir=runs/full \
    --config.data.root=RECORDS

Data, cache, dry run and variants as in imagenet21k_vit_b16.py. No sample, so no
correction and no draw to share: a device computes the features of all classes once a
step for all of its views, and `mesh.class_size` splits that over devices.

Cost (arithmetic): 42,928 tokens of names and a repeated name a view: 7 TFLOP of text a
step, beside 36 of images (none from stored features). README.md has the cost over
21,841 classes. Published: none; so trains CoOp, which was out of reach there (over 300
GB).
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import imagenet21k_vit_b16

ROOMS = ("data_sets",)


def get_config(argument: str = ""):
  """The recipe with all negatives."""
  config = imagenet21k_vit_b16.recipe()
  config.negatives = "all"
  config.correction = "none"
  return with_argument(config, argument, **imagenet21k_vit_b16.SHORT)
