"""Segmentation of the embedded world's scenes: true regions, 2,400 classes, three seeds of prompts.

Crops show a region with its surroundings, since the ground is part of a class's name.

python -m pomp_jax.main --config=configs/demo_seeds.py --workdir=runs/demo_seeds
python -m pomp_jax.main --config=configs/world_segment.py --workdir=runs/world_segment

Another folder of the three prompts: configs/world_segment.py:seeds=FOLDER
"""

from pomp_jax.config import base, with_argument

PROMPTS = ("a photo of a {}.", "{}.")


def get_config(argument: str = ""):
  """Learned prompts beside two hand-written ones on 400 scenes."""
  config = base()
  config.job = "segment"
  parts = [part for part in (argument or "").split(",") if part]
  seeds = [part.removeprefix("seeds=") for part in parts if part.startswith("seeds=")]
  folder = seeds[0] if seeds else "runs/demo_seeds"
  config.segment.prompts = (*PROMPTS, *(f"{folder}/seed_{seed}/prompt.npz" for seed in range(3)))
  config.segment.n_images = 400
  config.regions.source = "truth"
  config.regions.crop = "context"
  config.regions.expand = 1.4
  rest = ",".join(part for part in parts if not part.startswith("seeds="))
  short = {name: f"segment.{name}" for name in config.segment}
  return with_argument(config, rest, **short)
