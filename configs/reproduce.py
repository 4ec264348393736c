r"""Is it the paper? One command that answers, table by table.

The rehearsal, on the embedded world, without data or weights:

  python -m pomp_jax.main --config=configs/reproduce.py:table=world \
    --workdir=runs/reproduce_world

A table of the paper, with the released prompts; `quick=true` takes 200 images a set:

  python -m pomp_jax.main --config=configs/reproduce.py:table=cross_dataset,root=DATA \
    --workdir=runs/r --config.reproduce.prompts="m4.pth.tar;m16.pth.tar"
  python -m pomp_jax.main --config=configs/reproduce.py:table=imagenet21k,root=RECORDS \
    --workdir=runs/r21k --config.reproduce.train=3

Other methods' rows of table 2, and the order of an ablation's arms (tables 8, 9, 12),
from finished trainings; segmentation and detection (4 to 7, 13) from stored regions:

  python -m pomp_jax.main --config=configs/reproduce.py:table=baselines,root=DATA \
    --workdir=runs/methods --config.reproduce.runs="runs/coop_1;runs/coop_2"
  python -m pomp_jax.main --config=configs/reproduce.py:table=ablation,root=RECORDS,data=DATA \
    --workdir=runs/arms --config.reproduce.runs="runs/k1000;runs/k500;runs/k100"
  python -m pomp_jax.main --config=configs/reproduce.py:table=segmentation,root=PIXELS \
    --workdir=runs/pixels
  python -m pomp_jax.main --config=configs/reproduce.py:table=detection,root=BOXES \
    --workdir=runs/boxes

A folder that somebody else made, with nothing computed again:

  python -m pomp_jax.main --config=configs/reproduce.py:verify=runs/r

A table of the paper sets the CLIP of its figures, OpenAI's ViT-B/16; `clip` sets
another. docs/reproduce/index.md says what each table needs.
"""

from pomp_jax.config import base, with_argument
from pomp_jax.files.prompt_file import PUBLISHED_CLIP

ROOMS = ("reproduce",)


def get_config(argument: str = ""):
  """The base config of the job, with the CLIP of the table."""
  config = base("reproduce")
  short = {name: f"reproduce.{name}" for name in config.reproduce} | {
    "clip": "clip.model"
  }
  with_argument(config, argument, **short)
  if config.reproduce.table != "world":
    config.clip.model = PUBLISHED_CLIP
  return with_argument(config, argument, **short)
