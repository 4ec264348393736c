"""Regions, segmentation and detection in the embedded world by a network that is
trained there.

The network sees scenes of base classes alone, and learns their vectors under one
learned prompt. Then it runs once on the test scenes, and each prompt is judged by the
network alone, by CLIP alone (crops with their surroundings), and by both fused.

run() { python -m pomp_jax.main --config=configs/$1 --workdir=runs/$2; }
run demo_seeds.py demo_seeds                         # three prompts
run world_masks.py world_masks                       # the network
run world_masks.py:propose_segment world_masks/scenes
run world_masks.py:segment world_masks/segment
run world_masks.py:propose_detect world_masks/objects
run world_masks.py:detect world_masks/detect
"""

from pomp_jax.config import base, with_argument

ROOMS = ("regions",)

RUN = "runs/world_masks"
PROPOSE = {"job": "propose"}
FUSE = {
  "regions.source": "file",
  "regions.crop": "context",
  "regions.expand": 1.4,
  "regions.objectness": True,
  # The best of five pairs on scenes of another seed: the network knows classes less
  # than CLIP.
  "regions.e_base": 0.8,
  "regions.e_novel": 0.9,
  "regions.alone": True,
}
VARIANTS = {
  "propose_segment": PROPOSE | {"propose.images": "segment"},
  "propose_detect": PROPOSE | {"propose.images": "detect"},
  "segment": FUSE | {"job": "segment", "regions.path": f"{RUN}/scenes/regions"},
  "detect": FUSE | {"job": "detect", "regions.path": f"{RUN}/objects/regions"},
}
SHORT = {
  "lr": "train_masks.lr",
  "prompt": "train_masks.prompt",
  "network": "propose.network",
}


def get_config(argument: str = ""):
  """Training; the variants are the other jobs."""
  config = base("train_masks", "propose", "segment", "detect")
  config.batch_size = 8
  config.steps = 4000
  config.log.every = 100
  config.checkpoint.every = 500
  config.train_masks.n_images = 32_000  # each scene once
  config.train_masks.network = "small"
  config.train_masks.prompt = "runs/demo_seeds/seed_0/prompt.npz"
  config.train_masks.size = 120
  config.train_masks.augment = "none"
  config.train_masks.targets = 5
  config.train_masks.lr = 1e-3
  config.train_masks.backbone = 1.0  # from random parameters
  config.train_masks.clip_norm = 0.1
  config.train_masks.dice = 3.0  # with 1, masks learn more slowly than classes
  config.propose.network = RUN
  learned = tuple(f"runs/demo_seeds/seed_{seed}/prompt.npz" for seed in range(3))
  config.segment.prompts = config.detect.prompts = ("a photo of a {}.", *learned)
  config.segment.n_images = config.detect.n_images = 400
  for section in (config.train_masks, config.segment, config.detect):
    section.scene_classes = 240
  config = with_argument(config, argument, variants=VARIANTS, **SHORT)
  if config.propose.prompt == base("propose").propose.prompt:
    config.propose.prompt = config.train_masks.prompt
  return config
