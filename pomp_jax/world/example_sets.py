"""Pictures of the world in folders, as a user's own data sets look: to try `evaluate` with.

  python -m pomp_jax.world.example_sets --out=runs/example_sets

`known` has classes that the demo's prompt was learned on, `mixed` such and novel ones together and
a list of each, `shifted` both in another rendering. `sets.toml` describes the three. The pictures
are those of the world's test splits, PNG files of 40 x 40 pixels, the same in every call.
"""

import argparse
import os
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.world.splits import source

_SETS_FILE = """\
# One's own data sets for `evaluate`: docs/evaluation.md. Paths are relative to this file.

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


def write_pictures(
  folder: str | os.PathLike, split: str, n_classes: int, images_per_class: int
) -> tuple[str, ...]:
  """Writes pictures of a split as FOLDER/CLASS/0000.png, ..

  Args:
    folder: where to; made if it is missing.
    split: of the world, as `splits.source` has them.
    n_classes: so many, spread evenly over the split's list.
    images_per_class: pictures of each.

  Returns:
    The names of the classes, in the order of the split's list.

  Raises:
    ValueError: more classes than the split has, or a size below 1.
    OSError: the folder can't be written.
  """
  pictures = source(split, images_per_class=images_per_class)
  n_all = len(pictures.names)
  if not 1 <= n_classes <= n_all:
    raise ValueError(f"{n_classes} classes are not between 1 and the {n_all} of {split!r}")
  kept = np.arange(n_classes) * n_all // n_classes
  for label in kept:
    own = pathlib.Path(folder, pictures.names[label])
    own.mkdir(parents=True, exist_ok=True)
    first = label * images_per_class  # they stand class by class
    for number, picture in enumerate(pictures.images(first + np.arange(images_per_class))):
      Image.fromarray(picture).save(own / f"{number:04}.png")
  return tuple(pictures.names[label] for label in kept)


def write_example_sets(
  out: str | os.PathLike, n_classes: int = 100, images_per_class: int = 8
) -> pathlib.Path:
  """Writes the three sets.

  Args:
    out: the folder.
    n_classes: of `shifted`; `mixed` has as many base and as many novel ones, `known` four times as
      many.
    images_per_class: pictures of each class; of `known` a quarter of that, but at least one.

  Returns:
    The file that describes them.

  Raises:
    ValueError, OSError: as `write_pictures`.
  """
  out = pathlib.Path(out)
  write_pictures(out / "known" / "test", "base", 4 * n_classes, max(1, images_per_class // 4))
  for part in ("base", "novel"):
    names = write_pictures(out / "mixed" / "test", part, n_classes, images_per_class)
    (out / "mixed" / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
  write_pictures(out / "shifted" / "test", "shifted", n_classes, images_per_class)
  file = out / "sets.toml"
  file.write_text(_SETS_FILE, encoding="utf-8")
  return file


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
  parser.add_argument("--classes", type=int, default=100, help="classes of a part")
  parser.add_argument("--images", type=int, default=8, help="pictures of a class")
  arguments = parser.parse_args()
  file = write_example_sets(arguments.out, arguments.classes, arguments.images)
  print(f"wrote three data sets, described in {file}")


if __name__ == "__main__":
  main()
