"""Writes pictures of the world as folders of classes, as example data sets for
`evaluate`.

  python -m docs.generators.example_sets --out=runs/example_sets

`known` has classes that the demo's prompt was trained on. `mixed` has such classes and
novel ones, with a list of each. `shifted` has both in another rendering. `sets.toml`
describes the three. The pictures are from the world's test splits, PNG files of 40 x 40
pixels, and the same in every call.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from pomp_jax.world import source

_SETS_FILE = """\
# Data sets for `evaluate`: docs/how-to/evaluation.md. Paths are relative to this file.

[[set]]
name = "known"
root = "known"

[[set]]
name = "mixed"
root = "mixed"
base = "mixed/base.txt"
novel = "mixed/novel.txt"

[[set]]
name = "shifted"
root = "shifted"
templates = ["a drawing of a {}.", "a picture of a {}."]
"""


class Part(NamedTuple):
  """Classes of an example set that are of one split of the world."""

  split: str
  n_classes: int
  images_per_class: int


def parts_of_sets(n_classes: int, images_per_class: int) -> dict[str, tuple[Part, ...]]:
  """Parts of each example set.

  `shifted` and each half of `mixed` have n_classes. `known` has four times as many,
  with a quarter of the pictures of each, but at least one.
  """
  return {
    "known": (Part("base", 4 * n_classes, max(1, images_per_class // 4)),),
    "mixed": (
      Part("base", n_classes, images_per_class),
      Part("novel", n_classes, images_per_class),
    ),
    "shifted": (Part("shifted", n_classes, images_per_class),),
  }


def write_pictures(
  folder: pathlib.Path, split: str, n_classes: int, images_per_class: int
) -> tuple[str, ...]:
  """Writes pictures of n_classes, spread evenly over a split's list, as
  FOLDER/CLASS/0000.png, ..

  Returns:
    Names of the classes, in the order of the split's list.

  Raises:
    ValueError: more classes than the split has, or a size below 1.
  """
  every = source(split, images_per_class=1).names
  if not 1 <= n_classes <= len(every):
    raise ValueError(
      f"got {n_classes} classes of {split!r}, expected 1 to {len(every)}"
    )
  pictures = source(split, images_per_class=images_per_class, n_classes=n_classes)
  for index, label in enumerate(pictures.labels):
    own = folder / pictures.names[label]
    own.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pictures.images(np.array([index]))[0])
    picture.save(own / f"{index % images_per_class:04}.png")
  return pictures.names


def write_example_sets(
  out: pathlib.Path, n_classes: int, images_per_class: int
) -> pathlib.Path:
  """Writes the three data sets and `sets.toml`, whose path it returns.

  Their sizes are those of `parts_of_sets`.
  """
  for set_name, parts in parts_of_sets(n_classes, images_per_class).items():
    folder = out / set_name
    for part in parts:
      names = write_pictures(
        folder / "test", part.split, part.n_classes, part.images_per_class
      )
      # A set of several parts has a list of each.
      if len(parts) > 1:
        lines = [f"{name}\n" for name in names]
        (folder / f"{part.split}.txt").write_text("".join(lines), encoding="utf-8")
  file = out / "sets.toml"
  file.write_text(_SETS_FILE, encoding="utf-8")
  return file


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--out", type=pathlib.Path, required=True, help="folder to write to"
  )
  parser.add_argument("--classes", type=int, default=100, help="classes of a part")
  parser.add_argument("--images", type=int, default=8, help="pictures of a class")
  arguments = parser.parse_args()
  file = write_example_sets(arguments.out, arguments.classes, arguments.images)
  print(f"wrote three data sets, described in {file}")


if __name__ == "__main__":
  main()
