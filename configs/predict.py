r"""Names for pictures, their pixels or their objects, under a prompt and any list of
names.

A run's prompt on the CLIP that it was trained with, with the names of its classes, and
a published checkpoint on ViT-B/16:

  python -m pomp_jax.main --config=configs/predict.py:prompt=runs/own,images=NEW \
    --workdir=runs/names
  python -m pomp_jax.main --config=configs/predict.py:prompt=model.pth.tar-5,images=NEW \
    --workdir=runs/names --config.predict.names=lvis_v1_val.json

NEW is a picture, or a folder of pictures and of such folders. `names=names.txt` gives
other names, one a line; a file of COCO's or LVIS's annotations gives its categories,
and `imagenet1k` is a packaged list. Pictures are turned as their EXIF says, unless the
prompt's training did not.

A name for every pixel, by dense CLIP or by the regions of a network, and for objects,
which take a network (or --config.regions.source=file):

  python -m pomp_jax.main --config=configs/predict.py:task=segment,prompt=prompt.npz,images=NEW \
    --workdir=runs/pixels --config.predict.names=names.txt
  python -m pomp_jax.main --config=configs/predict.py:task=detect,prompt=prompt.npz,images=NEW \
    --workdir=runs/objects --config.predict.names=names.txt --config.propose.network=runs/masks

Variants are strings behind the colon, separated by commas (`prompt=a photo of a {}, a
pet` is one): `task`, `prompt`, `images`, `names`, `top` (names a picture), `network`
and `clip`. The CLIP is that which the prompt's file names if the prompt is given behind
the colon, else OpenAI's ViT-B/16.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, recorded_clip, recorded_upright


def get_config(argument: str = ""):
  """The base config with the job; `images` remain to be given, and `names` where no
  run has any."""
  config = base("predict")
  # Of a network's regions those that are objects count most.
  if "regions" in config:
    config.regions.objectness = True
  short = {name: f"predict.{name}" for name in config.predict}
  short |= {"network": "propose.network", "clip": "clip.model"}
  with_argument(config, argument, **short)
  config.clip.model = recorded_clip(config.predict.prompt) or PUBLISHED_CLIP
  config.data.upright = recorded_upright(config.predict.prompt) is not False
  return with_argument(config, argument, **short)
