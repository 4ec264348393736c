r"""The recipe with a ResNet: ImageNet-21K, CLIP's RN50 (text width 512, embedding
1,024).

  python -m pomp_jax.main --config=configs/imagenet21k_rn50.py:model=RN50.safetensors \
    --workdir=runs/rn50 --config.data.root=RECORDS

HuggingFace has no ResNet CLIP: `model` is OpenAI's checkpoint or open_clip's
(docs/how-to/weights.md). Data, cache, dry run and variants as in
imagenet21k_vit_b16.py.

Cost (arithmetic): 12.5 TFLOP of images and 8 x 0.7 TFLOP of text a step. Published: the
paper trains with RN50 too; no figure of it is among those that we compare with.
"""

from pomp_jax.config import with_argument
from pomp_jax.configs import imagenet21k_vit_b16

ROOMS = ("data_sets",)


def get_config(argument: str = ""):
  """The recipe; which file holds the weights remains to be given."""
  config = imagenet21k_vit_b16.recipe()
  config.clip.model = "RN50.safetensors"
  return with_argument(
    config, argument, model="clip.model", **imagenet21k_vit_b16.SHORT
  )
