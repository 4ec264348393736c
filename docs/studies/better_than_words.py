"""Is a learned prompt better than a good sentence? The tables of
docs/reproduce/better_than_words.md.

  python -m docs.studies.better_than_words FOLDER

Pictures of 400 classes of the embedded world, 16 of each to train on and 4 to validate,
and its three example sets; `own` with each addition alone and all of them, three seeds;
then each prompt beside each sentence of `prompt.candidates` on the world's splits and
the example sets.
"""

from collections.abc import Sequence
import pathlib
import re
import sys
from typing import Any

import numpy as np
from PIL import Image

from docs.generators.example_sets import write_example_sets
from pomp_jax import world
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.main import main as pomp

CLASSES, IMAGES, SEEDS = 400, {"train": 16, "val": 4}, (0, 1, 2)
ADDITIONS = {
  "as POMP": "m=4",
  "from the best words": "optim.average=none",
  "consistency": "m=4,consistency=1",
  "average": "m=4,optim.average=ema",
  "best words, average": "",
  "all": "consistency=1",
}
OWN = "best words, average"


def write_pictures(root: pathlib.Path) -> None:
  """A folder a class in train/ and val/: the world's training pictures of every 54th
  class."""
  source = world.source(
    "train", images_per_class=sum(IMAGES.values()), n_classes=CLASSES
  )
  for index, label in enumerate(source.labels):
    number = index % sum(IMAGES.values())
    split = "train" if number < IMAGES["train"] else "val"
    own_folder = root / split / source.names[label]
    own_folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(source.images(np.array([index]))[0])
    picture.save(own_folder / f"{number:02}.png")


def run(config: str, workdir: pathlib.Path, **fields: object) -> dict[str, Any]:
  """Runs a job unless it has finished, and returns its results."""
  given = [
    f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()
  ]
  if status := pomp([f"--config={config}", f"--workdir={workdir}", *given]):
    sys.exit(status)
  return read_json(workdir / "results.json")


def trained(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Trains with each addition and seed; returns the runs' folders."""
  runs = {}
  for name, fields in ADDITIONS.items():
    slug = re.sub(r"\W+", "_", name)
    runs[name] = [folder / "runs" / f"{slug}_{seed}" for seed in SEEDS]
    for seed, workdir in zip(SEEDS, runs[name], strict=True):
      argument = f"root={folder / 'pictures'},clip=world,seed={seed},{fields}"
      run(f"own:{argument}".strip(","), workdir)
  return runs


def trained_prompt(workdir: pathlib.Path) -> str:
  """What a run has learned, whatever it leaves as its prompt."""
  trained_file = RunFolder(workdir).other_prompts["trained"]
  return str(trained_file if trained_file.exists() else workdir)


def evaluated(
  folder: pathlib.Path, name: str, prompts: Sequence[object]
) -> dict[str, dict[str, Any]]:
  """Figures of each set and prompt, with the difference from the first prompt."""
  found = {}
  named = ";".join(map(str, prompts))
  for kind, argument in {
    "world": "suite=world",
    "sets": f"sets_file={folder / 'sets' / 'sets.toml'}",
  }.items():
    results = run(
      f"evaluate:{argument}",
      folder / "evaluate" / f"{kind}_{name}",
      evaluate__prompts=named,
    )
    for one, figures in results["sets"].items():
      found[f"{kind} {one}"] = dict(
        zip(map(str, prompts), figures["prompts"].values(), strict=True)
      )
  return found


def main(folder: pathlib.Path) -> None:
  """Prints the tables."""
  if not (folder / "pictures").exists():
    write_pictures(folder / "pictures")
  write_example_sets(folder / "sets", n_classes=100, images_per_class=16)
  runs = trained(folder)
  results = read_json(runs[OWN][0] / "results.json")
  print(results["words"]["remark"])
  words = list(results["words"]["candidates"])
  prompts = {
    name: list(map(trained_prompt, workdirs)) for name, workdirs in runs.items()
  }
  paths = [path for of_addition in prompts.values() for path in of_addition]
  figures = evaluated(folder, "all", [*words, *paths])
  rows = {name: [name] for name in words} | prompts
  print("| prompt | " + " | ".join(figures) + " |")
  for name, labels in rows.items():
    cells = []
    for found in figures.values():
      top1 = 100 * np.array([found[label]["top1"] for label in labels])
      cells.append(
        f"{top1.mean():.1f}" + (f" ± {top1.std(ddof=1):.1f}" if len(top1) > 1 else "")
      )
    print(f"| {name} | " + " | ".join(cells) + " |")
  for one, found in figures.items():
    best = max(words, key=lambda name: found[name]["top1"])
    for first in dict.fromkeys((results["words"]["best"], best)):
      slug = f"beside_{words.index(first)}"
      beside = evaluated(folder, slug, [first, *prompts[OWN]])[one]
      print(f"{one}: own less {first!r} {100 * found[first]['top1']:.1f}%:", end="")
      for path in prompts[OWN]:
        difference = beside[path]["difference"]
        low, high = (100 * end for end in difference["interval"])
        print(f" {100 * difference['top1']:+.2f} ({low:+.2f} to {high:+.2f})", end=";")
      print()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
