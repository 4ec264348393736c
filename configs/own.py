r"""A prompt for one's own pictures: a folder a class, on any CLIP.

  python -m pomp_jax.main --config=configs/own.py:root=PICTURES --workdir=runs/own

PICTURES holds a folder a class, called by its name, or train/, val/ and test/ with such
folders in them. What is missing of validation and test is held out
(docs/how-to/data.md). Variants are strings behind the colon, separated by commas:

  :root=PICTURES,clip=FOLDER             another CLIP than ViT-B/16: a folder, a file, a hub id
  :root=PICTURES,base=a.txt,novel=b.txt  train on the names in a.txt, evaluate on both lists
  :root=PICTURES,lr=0.003,epochs=20      any field of the config, or a short name for it
  :root=PICTURES,store=FEATURES          features of the pictures there, for several trainings
  :root=PICTURES,m=4                     from 4 random vectors, as POMP, with no regard to sentences

Training starts from the best sentence of `prompt.candidates` on the validation images,
averages its steps, and is held near the sentence where the CLIP's logit scale is low.
The sentence stays unless training, or the mean of both, is better on the validation
images beyond chance. Where `prompt.m`, `prompt.init` or another method is given, or
there are no validation images, training is POMP's: from random vectors, without these.
docs/reproduce/better_than_words.md has the figures of both.

What follows from the pictures: up to 1,000 classes the contrast is exact over all of
them, which costs what a sampled one with K = N does; beyond, K = 1,000. Training takes
about 1,000 steps of 32 images, at most 200 epochs; of many images five epochs, in
batches of 256. docs/how-to/data.md has the study behind the learning rate, and what to
do where the loss does not fall. Images are not cropped or flipped, so that their
features are the same in each epoch: a run computes them once, before its first step.
`data.augment=crop_flip` suits photographs whose classes a part of the picture shows.
Behind the colon it also sets `data.features=online`.
"""

import os

from pomp_jax.config import METHODS, ConfigError, base, unpack, with_argument
from pomp_jax.evaluate import opening
from pomp_jax.hooks import WORDS

_SHORT = {
  "root": "data.root",
  "names": "data.names",
  "base": "data.base",
  "novel": "data.novel",
  "shots": "data.shots",
  "clip": "clip.model",
  "m": "prompt.m",
  "lr": "optim.lr",
  "consistency": "consistency_squared",
  "store": "data.feature_store",
  "features": "data.features",
}
_BETTER_THAN_WORDS = {
  "prompt.init": "best",
  "checkpoint.select": "best",
  "anchors": "best",
  "consistency_squared": -1.0,  # by the CLIP's logit scale
  "optim.average": "ema",
}
_STEPS, _EPOCHS = 1000, (5, 200)
_MOST_EXACT = 1000  # classes
_CHECKPOINTS = 10  # of a run


def get_config(argument: str = ""):
  """The config for the pictures in `root`, which are counted but not opened."""
  config = base()
  config.clip.model = "openai/clip-vit-base-patch16"
  config.data.source = "folder"
  config.data.upright = True
  config.data.max_corrupt = 0.05
  config.optim.lr = 0.01
  config.optim.schedule = "step"
  config.optim.warmup = 1.0
  config.optim.warmup_lr = 0.001
  config.eval.images = 0
  config.prompt.m = 0  # as many as the words have
  with_argument(config, argument, **_SHORT)
  if not os.path.isdir(config.data.root):
    takes = "a folder with a folder a class: --config=configs/own.py:root=PICTURES"
    raise ConfigError("data.root", config.data.root, takes)
  trains_on_features = (
    config.data.augment == "none" and not METHODS[config.method].pixels
  )
  config.data.features = "stored" if trains_on_features else "online"
  data = unpack(config).data
  # Another prompt than the default one has no place for words.
  given = config.prompt.m or config.prompt.init or config.prompt.position != "end"
  can_choose = (
    WORDS and METHODS[config.method].saves_prompt and opening.has_validation(data)
  )
  if given or not can_choose:
    config.prompt.m = config.prompt.m or 4
  else:
    config.update_from_flattened_dict(_BETTER_THAN_WORDS)
  train = opening.open_source(data, "train")
  config.negatives = "all" if len(train.names) <= _MOST_EXACT else "sampled"
  # Of larger sets an epoch has about as many steps.
  config.batch_size = 32 if len(train) < 12_800 else 256
  steps_per_epoch = max(1, len(train) // config.batch_size)
  config.epochs = min(max(round(_STEPS / steps_per_epoch), _EPOCHS[0]), _EPOCHS[1])
  # What is given counts more than what follows.
  with_argument(config, argument, **_SHORT)
  steps_per_epoch = max(1, len(train) * config.data.views // config.batch_size)
  n_steps = config.steps or config.epochs * steps_per_epoch
  config.checkpoint.every = max(1, n_steps // _CHECKPOINTS)
  return with_argument(config, argument, **_SHORT)
