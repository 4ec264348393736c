r"""Prompts over data sets, a suite's or one's own: tables, plots, every figure.

The paper's fourteen, with CoOp's $DATA, on ViT-B/16 (docs/how-to/evaluation.md lists
the suites):

  python -m pomp_jax.main --config=configs/evaluate.py:suite=fourteen,root=DATA \
    --workdir=runs/fourteen --config.evaluate.prompts="hand_written;prompt.npz"

On the embedded world, a learned prompt beside the hand-written one, and all checkpoints
of a run:

  python -m pomp_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
    --config.evaluate.prompts="hand_written;runs/demo;runs/demo/checkpoints"

On one's own data sets, described in a file (docs/how-to/evaluation.md), on the CLIP of
the prompt:

  python -m pomp_jax.main --config=configs/evaluate.py:sets_file=sets.toml,clip=CLIP \
    --workdir=runs/own_sets --config.evaluate.prompts="hand_written;prompt.npz"

A suite of photographs that is given behind the colon sets the CLIP of the published
figures, OpenAI's ViT-B/16; `clip` sets another. Anything else leaves the embedded
world's. Learned prompts that are given behind the colon (`prompts=runs/a;runs/b`)
decide whether pictures are turned as their EXIF says: as in their trainings, where
these agree. Otherwise `data.upright` does.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP, recorded_upright

ROOMS = ("data_sets",)


def get_config(argument: str = ""):
  """The base config with the job; the prompts beside the hand-written one remain to
  be given."""
  config = base("evaluate")
  config.eval.images = 4096
  short = {name: f"evaluate.{name}" for name in config.evaluate} | {
    "clip": "clip.model"
  }
  with_argument(config, argument, **short)
  if config.evaluate.suite not in ("none", "world"):
    config.clip.model = PUBLISHED_CLIP
  turns = {recorded_upright(name) for name in config.evaluate.prompts} - {None}
  config.data.upright = turns == {True}
  return with_argument(config, argument, **short)
