r"""The recipe with a larger backbone: ImageNet-21K, ViT-L/14 (text width 768).

  python -m pomp_jax.main --config=configs/imagenet21k_vit_l14.py --workdir=runs/l14 \
    --config.data.root=RECORDS

Data, cache, dry run and variants as in imagenet21k_vit_b16.py, and `:dfn`: the same
architecture as Apple trained it (open_clip's table: 81.4 on ImageNet without a prompt,
OpenAI's 75.5).

Dry run of `:dfn,features=stored,fresh=5` on 2 cores: 1,559 h for the features, 53 h of
training, 487 h of validation and evaluation; 58 s a step, 475 MiB of weights and data,
5.5 GiB beside them. Cost (arithmetic): 166 TFLOP of images and 8 x 1.6 TFLOP of text a
step: over four times ViT-B/16's, which stored features save every run but the first.
Published: none with this backbone.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import imagenet21k_vit_b16

ROOMS = ("data_sets",)


def get_config(argument: str = ""):
  """The recipe with OpenAI's ViT-L/14, or with DFN's."""
  config = imagenet21k_vit_b16.recipe()
  config.clip.model = "openai/clip-vit-large-patch14"
  variants = {"dfn": {"clip.model": "open_clip:ViT-L-14-quickgelu/dfn2b"}}
  return with_argument(config, argument, variants=variants, **imagenet21k_vit_b16.SHORT)
