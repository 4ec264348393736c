r"""A learned prompt as the file of another program.

A published checkpoint as ours, and ours as one that torch and CoOp's code read:

  python -m pomp_jax.main --config=configs/export.py:format=npz --workdir=runs/export \
    --config.export.prompt=model.pth.tar-5
  python -m pomp_jax.main --config=configs/export.py:format=pth --workdir=runs/export \
    --config.export.prompt=runs/demo/prompt.npz

Rows for Detic's ZEROSHOT_WEIGHT_PATH (the prompt's own CLIP: --config.clip.model=..):

  python -m pomp_jax.main --config=configs/export.py:format=detic,synonyms=true \
    --workdir=runs/export --config.export.prompt=runs/demo/prompt.npz \
    --config.export.names=lvis_v1_val.json
"""

from pomp_jax.config import base, with_argument


def get_config(argument: str = ""):
  """The base config with the job; `prompt`, and for features `names`, remain to be given."""
  config = base()
  config.job = "export"
  short = {name: f"export.{name}" for name in ("prompt", "format", "names", "synonyms", "output")}
  return with_argument(config, argument, **short)
