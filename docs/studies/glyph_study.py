"""Samplers on other data than the embedded world: the table "On other data" in docs/sampling.md.

  python -m docs.studies.glyph_study FOLDER

Trains a CLIP on captioned pictures of characters (`docs.studies.glyphs`), writes pictures of them,
one folder a class, and trains prompts on the base classes with `job=ablate`: first the exact
contrast at three learning rates, then the samplers at the rate with the lowest training loss. All
that at the logit scale of OpenAI's CLIPs, and again at about the one that this CLIP was trained
with. An interrupted study resumes with the same command.
"""

from collections.abc import Mapping
import pathlib
import shutil
import sys
from typing import Any

from docs.studies import glyphs
from pomp_jax.analysis.ablation import Spread, groups
from pomp_jax.config import Settings, validate
from pomp_jax.jobs import ablate, cache
from pomp_jax.world import train_clip
from tests.support.clips import with_logit_scale
from tests.support.small_run import settings

# No caption is longer than 18 tokens but for about one in a hundred.
RECIPE = train_clip.Recipe(
  steps=1200, clean_until=0.6, noisy_from=0.7, short_tokens=18, vocabulary=2600, spelled=8000
)
IMAGES = {"train": 16, "val": 1, "test": 2}  # a class
RATES = (0.1, 0.03, 0.01)
SEEDS = (0, 1, 2)
SCALES = (100, 15)  # the training ended at 15.3
STEPS, RATE_STEPS = 300, 100
GRID = "k=all|64;sampling.name=uniform|posterior"
SPLITS = ("base", "novel")


def write_clips(folder: pathlib.Path) -> None:
  """Trains the CLIP, unless it is there, and stores it at each of the logit scales."""
  if not (folder / "clip" / "flax_model.msgpack").exists():
    pairs = train_clip.Pairs(glyphs.training_batch, glyphs.test_images)
    train_clip.train(RECIPE, folder / "clip", pairs=pairs)
  for scale in SCALES:
    shutil.copytree(folder / "clip", folder / f"clip_{scale}", dirs_exist_ok=True)
    with_logit_scale(folder / f"clip_{scale}", scale)


def write_data(folder: pathlib.Path) -> None:
  """Writes `pictures/`, `base.txt` and `novel.txt`, unless the lists are there."""
  lists = {folder / f"{group}.txt": glyphs.names(group) for group in SPLITS}
  if not all(file.exists() for file in lists):
    glyphs.write_pictures(folder / "pictures", IMAGES)
    for file, names in lists.items():
      file.write_text("\n".join(names) + "\n", encoding="utf-8")


def config_of(folder: pathlib.Path, scale: int, **changes: Any) -> Settings:
  """The study's settings, validated; `changes` by full field name."""
  config = settings(
    **{
      "clip.model": str(folder / f"clip_{scale}"),
      # As in configs/ablate_k.py: beyond a processor's cache the exact contrast takes longer.
      "clip.memory_gib": 0.1,
      "data.source": "folder",
      "data.root": str(folder / "pictures"),
      "data.base": str(folder / "base.txt"),
      "data.novel": str(folder / "novel.txt"),
      "data.feature_cache": str(folder / f"features_{scale}"),
      "batch_size": 128,
      "steps": STEPS,
      "optim.schedule": "step",
      "optim.warmup": 0.0,
      "correction": "log",
      "eval.images": 0,
    }
    | changes
  )
  validate(config)
  return config


def cache_features(folder: pathlib.Path, scale: int) -> None:
  """Computes the features of the training images that are not in the cache yet."""
  config, workdir = config_of(folder, scale, job="cache"), str(folder / f"runs_{scale}" / "cache")
  cache.check(config, workdir)
  cache.run(config, workdir)


def run_grid(
  folder: pathlib.Path, scale: int, name: str, grid: str, **changes: Any
) -> list[dict[str, Any]]:
  """Trains and evaluates a grid in `runs_SCALE/NAME`; returns its cells."""
  fixed = {"job": "ablate", "data.features": "cached", "ablate.grid": grid}
  config = config_of(folder, scale, **fixed, **changes)
  workdir = str(folder / f"runs_{scale}" / name)
  ablate.check(config, workdir)
  return ablate.run(config, workdir)["cells"]


def best_rate(folder: pathlib.Path, scale: int) -> float:
  """The learning rate at which the exact contrast's training loss ends lowest; prints all."""
  grid = f"k=all;optim.lr={'|'.join(map(str, RATES))};seed=0"
  cells = run_grid(folder, scale, "rates", grid, steps=RATE_STEPS)
  losses = {cell["values"]["optim.lr"]: cell["loss"] for cell in cells}
  print("training loss by rate:", ", ".join(f"{r:g}: {loss:.3f}" for r, loss in losses.items()))
  return min(losses, key=losses.__getitem__)


def _percent(spread: Spread) -> str:
  return f"{100 * spread.mean:.1f} ± {100 * spread.std:.1f}"


def print_table(cells: list[Mapping[str, Any]]) -> None:
  """Prints a row a sampler and K, and one for each hand-written prompt."""
  images = ", ".join(f"{n} {split}" for split, n in cells[0]["images"].items())
  print(f"{images} images of {', '.join(str(len(glyphs.names(s))) for s in SPLITS)} classes")
  print("| | K | base (%) | novel (%) |\n| --- | --- | --- | --- |")
  for prompt in cells[0]["by_hand"]["base"]:
    top1 = " | ".join(f"{100 * cells[0]['by_hand'][split][prompt]:.1f}" for split in SPLITS)
    print(f"| {prompt} | | {top1} |")
  for group in groups(cells):
    top1 = " | ".join(_percent(group.figures[f"{split}_top1"]) for split in SPLITS)
    print(f"| {group.values['sampling.name'] or 'exact'} | {group.values['k']} | {top1} |")


def main(folder: pathlib.Path) -> None:
  """Runs the study in `folder` and prints its tables."""
  write_clips(folder)
  write_data(folder)
  grid = f"{GRID};seed={'|'.join(map(str, SEEDS))}"
  for scale in SCALES:
    print(f"logit scale {scale}")
    cache_features(folder, scale)
    rate = best_rate(folder, scale)
    print_table(run_grid(folder, scale, "samplers", grid, **{"optim.lr": rate}))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
