r"""Names for pictures that have none, under a prompt and any list of names.

A run's prompt on the CLIP that it was trained with, and a published checkpoint on ViT-B/16:

  python -m pomp_jax.main --config=configs/predict.py:prompt=runs/own,images=NEW,names=names.txt \
    --workdir=runs/names
  python -m pomp_jax.main --config=configs/predict.py:prompt=model.pth.tar-5,images=NEW \
    --workdir=runs/names --config.predict.names=lvis_v1_val.json

NEW is a picture, or a folder of pictures and of such folders. names.txt has one name a line; a
file of COCO's or LVIS's annotations gives its categories, and `imagenet1k` is a packaged list.

Variants are strings behind the colon, separated by commas, so that no value may contain one:
`prompt`, `images`, `names`, `top` (names a picture), and `clip`. The CLIP is that which the
prompt's file names if the prompt is given behind the colon, else OpenAI's ViT-B/16.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, recorded_clip


def get_config(argument: str = ""):
  """The base config with the job; `images` and `names` remain to be given."""
  config = base()
  config.job = "predict"
  short = {name: f"predict.{name}" for name in config.predict} | {"clip": "clip.model"}
  with_argument(config, argument, **short)
  config.clip.model = recorded_clip(config.predict.prompt) or PUBLISHED_CLIP
  return with_argument(config, argument, **short)
