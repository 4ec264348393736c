r"""A learned prompt as the file of another program.

A published checkpoint as ours, and ours as one that torch and CoOp's code read:

  python -m pomp_jax.main --config=configs/export.py:format=npz,prompt=model.pth.tar-5 \
    --workdir=runs/npz
  python -m pomp_jax.main --config=configs/export.py:format=pth,prompt=runs/demo/prompt.npz \
    --workdir=runs/pth

Rows for Detic's ZEROSHOT_WEIGHT_PATH, and the weights of a zero-shot classifier:

  python -m pomp_jax.main --config=configs/export.py:format=detic,prompt=model.pth.tar-5 \
    --workdir=runs/detic --config.export.names=lvis_v1_val.json
  python -m pomp_jax.main --config=configs/export.py:format=open_clip,prompt=runs/demo/prompt.npz \
    --workdir=runs/weights --config.export.names=names.txt

Variants are strings behind the colon, separated by commas, so that no value may contain
one: `prompt`, `format`, `names`, `synonyms`, `output`, and `clip`, the CLIP of
features: by default that which the prompt's file names if the prompt is given behind
the colon, else OpenAI's ViT-B/16.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, recorded_clip

_SHORT = {
  name: f"export.{name}" for name in ("prompt", "format", "names", "synonyms", "output")
} | {"clip": "clip.model"}


def get_config(argument: str = ""):
  """The base config with the job; `prompt`, and for features `names`, remain to be
  given."""
  config = base("export")
  with_argument(config, argument, **_SHORT)
  config.clip.model = recorded_clip(config.export.prompt) or PUBLISHED_CLIP
  return with_argument(config, argument, **_SHORT)
