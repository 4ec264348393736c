"""Writes pictures that are hard to name, and a tree above the world's names.

  python -m docs.generators.hard_pictures --out=runs/hard_pictures

`pictures/` gets three pictures of the first of `--classes` names (as `data.n_classes`
takes them), three of the world's other rendering, three of classes that are in no
such list, and two of nothing: noise and one grey. The first part of a picture's name
says which. `tree.csv` has the ranks shape, texture, colour and name of the 21,841 base
classes, for `certain.tree`. The same in every call.
"""

import argparse
from collections.abc import Sequence
import csv
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.world import class_names, source
from pomp_jax.world.names import COLOURS, SHAPES, TEXTURES, class_attributes
from pomp_jax.world.render import IMAGE_SIZE

_OF_EACH = 3


def main() -> None:
  """Writes the pictures and the tree."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--classes", type=int, default=64)
  options = parser.parse_args()
  folder = options.out
  pictures = folder / "pictures"
  pictures.mkdir(parents=True)
  sources = {
    "in_the_list": source("base", n_classes=options.classes, images_per_class=1),
    "another_rendering": source("shifted", n_images=_OF_EACH),
    "off_the_list": source("novel", n_images=_OF_EACH),
  }
  for label, images in sources.items():
    for row, pixels in enumerate(images.images(np.arange(_OF_EACH))):
      name = images.names[images.labels[row]].replace(" ", "_")
      Image.fromarray(pixels).save(pictures / f"{label}_{name}.png")
  shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
  noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  Image.fromarray(noise).save(pictures / "nothing_noise.png")
  Image.fromarray(np.full(shape, 128, np.uint8)).save(pictures / "nothing_grey.png")
  write_tree(folder / "tree.csv", class_names("base"), class_attributes("base"))


def write_tree(
  file: pathlib.Path, names: Sequence[str], attributes_NxA: np.ndarray
) -> None:
  """Writes a CSV of ranks above classes of the world: shape, texture, colour, name."""
  with file.open("w", newline="", encoding="utf-8") as stream:
    writer = csv.writer(stream)
    writer.writerow(["all", "shape", "texture", "colour", "name"])
    for name, (colour, texture, shape, _) in zip(
      names, attributes_NxA.tolist(), strict=True
    ):
      textured = f"{TEXTURES[texture]} {SHAPES[shape]}"
      coloured = f"{COLOURS[colour]} {textured}"
      writer.writerow(["thing", SHAPES[shape], textured, coloured, name])


if __name__ == "__main__":
  main()
