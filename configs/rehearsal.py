r"""A rehearsal at the size of ImageNet-21K: 21,841 classes from their archive to
exported prompts.

The archive is laid out like the fall 2011 release: one tar for each of the 21,841
WordNet ids. Its JPEGs are the embedded world's, 21 a class. A list of names gives each
id the name of its world class, so that accuracy means something. CLIP is the world's.
This command writes the archive, runs all phases, stops the training halfway and resumes
it, and prints time and memory of each:

  python -m docs.studies.rehearsal runs/rehearsal                 3.6 GB; --classes=400: 1/50 of it

Two processes on 2 cores; memory is the sum over them:

  phase                 images    seconds  CPU seconds  peak GB  written GB
  write                458,661         93          182     0.7         1.56
  prepare              458,661         79          120     0.86        1.07
  features           1,747,280      1,126        2,147     2.21        0.89
  train to SIGTERM     894,976        449          815     4.55        0.05
  train, resumed       850,944        491          881     4.54
  evaluate             100,000         89          162     1.92
  two exports                          19           21     0.76        0.01

Top-1 of the learned prompt is 7.9%, of the hand-written one 24.8%, because RandAugment
recolours images, and a class of the world is named by its colours. Of 400 classes it is
72.2%, without augmentation 95.5%, hand-written 93.6%; 2 minutes on 2 cores, with
`--config.data.augment=none`:

  python -m pomp_jax.main --config=configs/rehearsal.py:train,classes=400 --workdir=runs/none \
    --config.data.features=online --config.data.view_epochs=0 --config.data.augment=none \
    --config.optim.lr=0.05 --config.optim.warmup=0

The phases by hand; with two processes, each command goes through launch/local.sh:

  python -m docs.studies.world_archive runs/rehearsal
  python -m pomp_jax.main --config=configs/rehearsal.py:prepare --workdir=runs/rehearsal/records
  python -m pomp_jax.main --config=configs/rehearsal.py:train --workdir=runs/rehearsal/train
  python -m pomp_jax.main --config=configs/rehearsal.py:evaluate --workdir=runs/rehearsal/evaluate
  python -m pomp_jax.main --config=configs/rehearsal.py:export --workdir=runs/rehearsal/export

Arguments follow the phase: `:train,folder=DIR,classes=400`. A comma can't be part of a
folder.

Values are those of imagenet21k_fall11_vit_b16.py, but for the CLIP, float32, one view
of an image an epoch (recipe: four), one checkpoint an epoch (three) and 100,000
validation images (109,205). Features of the views of all five epochs are stored. Two
processes of one device make two draws of 512 images a step; `accumulate=4` makes the
recipe's eight.
"""

import os

from pomp_jax.config import ConfigError, with_argument, with_jobs
from pomp_jax.configs import imagenet21k_fall11_vit_b16
from pomp_jax.configs.imagenet21k_vit_b16 import SHORT

ROOMS = ("data_sets",)

PHASES = ("prepare", "train", "evaluate", "export")
FOLDER = "runs/rehearsal"
CLASSES, SHOTS, HELD_OUT = 21_841, 16, 5


def get_config(argument: str = ""):
  """The config of a phase, the first item of the argument."""
  phase, *items = argument.split(",")
  if phase not in PHASES:
    raise ConfigError("job", phase, f"a phase behind the colon: {', '.join(PHASES)}")
  own = {"folder": FOLDER, "classes": str(CLASSES)}
  own |= dict(item.split("=", 1) for item in items if item.partition("=")[0] in own)
  folder, n_classes = own["folder"], _number_of_classes(own["classes"])
  job = "pretrain" if phase == "train" else phase
  config = imagenet21k_fall11_vit_b16.get_config()
  config = with_jobs(config, job, "pretrain", "prepare", "evaluate", "export")
  config.clip.model = "world"
  config.clip.dtype = "float32"
  config.data.names = os.path.join(folder, "names.json")
  if phase != "prepare":
    config.data.root = os.path.join(folder, "records")
  config.data.views = 1
  config.data.view_epochs = config.epochs
  config.data.features = "stored" if phase == "train" else "online"
  # The recipe's where there are enough classes.
  config.k = min(config.k, n_classes // 2)
  config.batch_size = min(config.batch_size, n_classes // 2 * 2)
  config.checkpoint.every = n_classes * SHOTS // config.batch_size
  config.eval.images = min(100_000, n_classes * HELD_OUT)
  config.prepare.input = os.path.join(folder, "fall11_whole.tar")
  prompt = os.path.join(folder, "train", "prompt.npz")
  config.evaluate.prompts = (prompt, "hand_written")
  config.evaluate.images = config.eval.images
  config.export.prompt = prompt
  config.export.format = "open_clip"
  config.export.names = os.path.join(folder, "names.txt")
  rest = ",".join(item for item in items if item.partition("=")[0] not in own)
  return with_argument(config, rest, **SHORT)


def _number_of_classes(text: str) -> int:
  if not (text.isdecimal() and 8 <= int(text) <= CLASSES):
    raise ConfigError("classes", text, f"8 to {CLASSES} classes of the archive")
  return int(text)
