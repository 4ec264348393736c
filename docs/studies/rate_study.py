"""Which learning rates are safe on CLIPs of several kinds: the table in
docs/how-to/data.md.

  python -m docs.studies.rate_study FOLDER

Writes small CLIPs (the embedded world's and random ones of two widths, each at several
logit scales) and pictures of 50 classes, ten each, and trains on them with
`job=ablate`, 8 seeds a rate. The first rate leaves the prompt as it is. A seed is lost
if its loss at the end is above that one.
"""

from collections.abc import Iterator
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.config import validate
from pomp_jax.rooms.ablation import ablate
from tests.support.clips import with_logit_scale, write_random_clip
from tests.support.small_run import small_config

CLASSES, IMAGES = 50, 10
RATES = (1e-6, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SEEDS = range(8)
MARGIN = 0.05  # nats, between two means over ten batches


def write_clips(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields each CLIP's folder, named for its kind and its logit scale."""
  for scale in (100, 50, 17, 5):
    for width in (32, 128):
      own = folder / f"random_{width}_{scale}"
      write_random_clip(own, text_width=width)
      yield with_logit_scale(own, scale)
    own = folder / f"world_{scale}"
    shutil.copytree(world.CLIP_PATH, own, dirs_exist_ok=True)
    yield with_logit_scale(own, scale)


def write_pictures(folder: pathlib.Path, *, short: bool) -> None:
  """A folder a class: the first classes of the world, which differ in little.

  Args:
    folder: where to.
    short: call them by two letters; a random CLIP's tokenizer has hardly any words.
  """
  source = world.source("train", images_per_class=IMAGES)
  for label, name in enumerate(source.names[:CLASSES]):
    name = f"{'abcde'[label // 10]}{'klmnopqrst'[label % 10]}" if short else name
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = label * IMAGES + np.arange(IMAGES)
    for row, image in zip(rows, source.images(rows), strict=True):
      Image.fromarray(image).save(folder / name / f"{row}.png")


def main(folder: pathlib.Path) -> None:
  """Prints a row a CLIP: of each rate the mean loss at the end, the worst seed's,
  seeds lost."""
  for kind in ("world", "random"):
    write_pictures(folder / "pictures" / kind, short=kind == "random")
  print("| CLIP | " + " | ".join(f"lr {rate:g}" for rate in RATES) + " |", flush=True)
  for clip in write_clips(folder / "clips"):
    config = small_config(
      **{
        "job": "ablate",
        "data.source": "folder",
        "data.root": str(folder / "pictures" / clip.name.split("_")[0]),
        "data.n_classes": 0,
        "clip.model": str(clip),
        "negatives": "all",
        "batch_size": 32,
        "steps": 80,
        "optim.warmup": 0.0,
        "ablate.grid": f"optim.lr={'|'.join(map(str, RATES))};seed={'|'.join(map(str, SEEDS))}",
      }
    )
    validate(config)
    workdir = str(folder / "runs" / clip.name)
    ablate.check(config, workdir)
    cells = ablate.run(config, workdir)["cells"]
    losses = {
      (cell["values"]["optim.lr"], cell["values"]["seed"]): cell["loss"]
      for cell in cells
    }
    row = []
    for rate in RATES:
      found = np.array([losses[rate, seed] for seed in SEEDS])
      lost = sum(losses[rate, seed] > losses[RATES[0], seed] + MARGIN for seed in SEEDS)
      row.append(
        f"{found.mean():.2f} ({found.max():.2f})" + (f", {lost} lost" if lost else "")
      )
    print(f"| {clip.name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
