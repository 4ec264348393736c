"""Segmentation of the embedded world's scenes: true regions, 2,400 classes, three seeds
of prompts.

Crops show a region with its surroundings, since the ground is part of a class's name.

python -m pomp_jax.main --config=configs/demo_seeds.py --workdir=runs/demo_seeds
python -m pomp_jax.main --config=configs/world_segment.py --workdir=runs/world_segment
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)


def get_config(argument: str = ""):
  """Learned prompts beside two hand-written ones on 400 scenes."""
  config = base("segment")
  learned = (f"runs/demo_seeds/seed_{seed}/prompt.npz" for seed in range(3))
  config.segment.prompts = ("a photo of a {}.", "{}.", *learned)
  config.segment.n_images = 400
  config.regions.source = "truth"
  config.regions.crop = "context"
  config.regions.expand = 1.4
  return with_argument(
    config, argument, **{name: f"segment.{name}" for name in config.segment}
  )
