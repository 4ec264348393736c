r"""ProText (Khattak et al., 2024): a prompt learned from sentences about classes, without images.

  python -m docs.dump_sentences --sentences cupl.json --out FEATURES
  python -m pomp_jax.main --config=configs/protext.py:root=FEATURES --workdir=runs/protext

The prompt with a class's name is drawn to each of the class's sentences, of a JSON such as CuPL's
(docs/dump_sentences.py). `clip=` is the CLIP of the features. If FEATURES also has test images
(docs/dump_open_clip.py), 4,096 of them are evaluated, else 4,096 sentences in their place.

Numbers: the released config for transfer from ImageNet (configs/trainers/ProText/cross_datasets):
M = 4 from "a photo of a" in each of 9 layers of the text tower, squared distance, 10 epochs of
batches of 256, AdamW at 0.03 after 5 epochs at 1e-5. docs/recipes.md has every value beside ours.

  :root=FEATURES,shallow    vectors in the first layer alone: a prompt.npz, for all other jobs

docs/studies/world_sentences.py has sentences for the embedded world, and what is learned from them.
"""

from pomp_jax.config import base, with_argument

SHALLOW = {"method": "pomp", "prompt.depth": 1}


def get_config(argument: str = ""):
  """The published recipe; `root` remains to be given."""
  config = base()
  config.clip.model = "openai/clip-vit-base-patch16"
  config.clip.image_tower = False
  config.data.source = "features"
  config.data.features = "file"
  # All sentences are learned from.
  config.data.test_share = 0.0
  config.data.validation_share = 0.0
  config.eval.images = 4096
  config.method = "protext"
  config.loss = "l2"
  config.k = 2  # the distance has no negatives
  config.batch_size = 256
  config.epochs = 10
  config.prompt.m = 4
  config.prompt.init = "a photo of a"
  config.prompt.depth = 9
  config.optim.name = "adamw"
  config.optim.lr = 0.03
  config.optim.beta2 = 0.98
  config.optim.epsilon = 1e-11  # 1e-8 beside the published loss, which is 1,000 times ours
  config.optim.weight_decay = 0.1
  config.optim.warmup = 5.0
  config.optim.warmup_lr = 1e-5
  short = {"root": "data.root", "clip": "clip.model", "m": "prompt.m", "lr": "optim.lr"}
  return with_argument(config, argument, variants={"shallow": SHALLOW}, **short)
