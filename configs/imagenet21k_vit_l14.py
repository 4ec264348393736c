r"""The recipe with a larger backbone: ImageNet-21K, ViT-L/14 (text width 768).

  python -m pomp_jax.main --config=configs/imagenet21k_vit_l14.py --workdir=runs/l14 \
    --config.data.root=RECORDS

Data, cache, dry run and variants as in imagenet21k_vit_b16.py.

Cost (arithmetic): 166 TFLOP of images and 8 x 1.6 TFLOP of text a step: over four times
ViT-B/16's, which stored features save every run but the first.
Published: none with this backbone.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import imagenet21k_vit_b16


def get_config(argument: str = ""):
  """The recipe with OpenAI's ViT-L/14."""
  config = imagenet21k_vit_b16.recipe()
  config.clip.model = "openai/clip-vit-large-patch14"
  return with_argument(config, argument, **imagenet21k_vit_b16.SHORT)
