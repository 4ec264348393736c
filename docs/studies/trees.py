"""Answers in trees of files on the example sets: accuracy against information, beside
DARTS. The table of trees in docs/how-to/certainty.md.

python -m docs.studies.trees --prompt runs/demo_seeds/seed_0 --workdir=runs/trees

Writes two trees above the classes of each example set (docs.generators.example_sets,
whose pictures it draws itself) and reads them as `certain.tree` does:

- `ranks.csv`: a column a rank, shape, texture, colour, name;
- `categories.json`: COCO's form, each name with its shape as `supercategory`.

One half of the pictures fits the temperature and chooses DARTS's lambda, the smallest
whose accuracy there reaches the guarantee. The other half is measured. The threshold on
sums is the guarantee itself and needs no labels.

Shapes: B images, N classes, E embedding.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import NamedTuple

import numpy as np

from docs.generators.example_sets import parts_of_sets
from docs.generators.hard_pictures import write_tree
from pomp_jax.clip.load import load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.classifier import open_prompt
from pomp_jax.evaluate.split_features import split_features
from pomp_jax.rooms.certainty import depth, heads
from pomp_jax.rooms.certainty.calibrate import halves
from pomp_jax.rooms.certainty.temperature import fit_temperature
from pomp_jax.rooms.certainty.trees import ClassTree, load_class_tree
from pomp_jax.world import source
from pomp_jax.world.names import SHAPES

SETS = parts_of_sets(n_classes=100, images_per_class=16)
GUARANTEES = (0.8, 0.9, 0.95)
WEIGHTS = tuple(np.geomspace(0.05, 500, 200).tolist())


class Pictures(NamedTuple):
  """An example set."""

  names: tuple[str, ...]
  attributes_NxA: np.ndarray  # colour, texture, shape, ground
  labels_B: np.ndarray
  features_BxE: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a row for each set and tree."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--prompt", required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  options = parser.parse_args(argv)
  encoder = Encoder(load_clip("world"))
  prompt = open_prompt(options.prompt)
  titles = [f"{guarantee:g}: sums, DARTS" for guarantee in GUARANTEES]
  print(f"| set | tree | top-1 (%) | bits of a name | {' | '.join(titles)} |")
  print("| --- " * (4 + len(titles)) + "|")
  for set_name in SETS:
    pictures = pictures_of(encoder, set_name)
    rows_NxE = encoder.class_features(pictures.names, prompt)
    folder = options.workdir / set_name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (write_ranks(folder, pictures), write_categories(folder, pictures)):
      tree = load_class_tree(str(file), pictures.names, str(file))
      cells = measured(encoder.clip.logit_scale, pictures, rows_NxE, tree)
      print(f"| {set_name} | `{file.name}` | {' | '.join(cells)} |", flush=True)


def pictures_of(encoder: Encoder, set_name: str) -> Pictures:
  """Features of an example set, and the attributes of its classes."""
  names: list[str] = []
  attributes = []
  labels = []
  features = []
  for part in SETS[set_name]:
    images = source(
      part.split, n_classes=part.n_classes, images_per_class=part.images_per_class
    )
    of_part = split_features(encoder, images)
    labels.append(of_part.labels + len(names))
    features.append(of_part.features)
    attributes.append(images.attributes_NxA)
    names.extend(of_part.names)
  return Pictures(
    names=tuple(names),
    attributes_NxA=np.concatenate(attributes),
    labels_B=np.concatenate(labels),
    features_BxE=np.concatenate(features),
  )


def write_ranks(folder: pathlib.Path, pictures: Pictures) -> pathlib.Path:
  """A CSV of ranks."""
  file = folder / "ranks.csv"
  write_tree(file, pictures.names, pictures.attributes_NxA)
  return file


def write_categories(folder: pathlib.Path, pictures: Pictures) -> pathlib.Path:
  """Categories in COCO's form."""
  categories = []
  for label, name in enumerate(pictures.names):
    shape = pictures.attributes_NxA[label, 2]
    category = {"id": label + 1, "name": name, "supercategory": SHAPES[shape]}
    categories.append(category)
  file = folder / "categories.json"
  file.write_text(json.dumps({"categories": categories}), encoding="utf-8")
  return file


def measured(
  logit_scale: float, pictures: Pictures, rows_NxE: np.ndarray, tree: ClassTree
) -> list[str]:
  """Cells of a row: top-1, bits of a name, and both methods at each guarantee.

  Args:
    logit_scale: the CLIP's factor on cosines.
    pictures: features and labels.
    rows_NxE: unit features of the classes.
    tree: tree above the classes.
  """
  first, second = halves(len(pictures.labels_B), 0)
  temperature = fit_temperature(
    pictures.features_BxE[first], rows_NxE, pictures.labels_B[first], logit_scale
  )
  rows = heads.rows_of(rows_NxE, "float32")
  probability_BxN = heads.probabilities(
    pictures.features_BxE, rows, logit_scale / temperature
  )
  of_half = [
    depth.curves(
      tree,
      probability_BxN[half],
      pictures.labels_B[half],
      leasts=GUARANTEES,
      weights=WEIGHTS,
    )
    for half in (first, second)
  ]
  chosen, tested = of_half
  answers_B = probability_BxN[second].argmax(axis=1)
  top1 = np.mean(answers_B == pictures.labels_B[second])
  cells = [f"{100 * top1:.1f}", f"{np.log2(len(pictures.names)):.2f}"]
  for place, guarantee in enumerate(GUARANTEES):
    sums = shown(tested["threshold"][place])
    reach = [point.accuracy >= guarantee for point in chosen["darts"]]
    darts = shown(tested["darts"][reach.index(True)]) if any(reach) else "none"
    cells.append(f"{sums}; {darts}")
  return cells


def shown(point: depth.Point) -> str:
  """Accuracy in percent, and bits."""
  return f"{100 * point.accuracy:.1f}, {point.bits:.2f}"


if __name__ == "__main__":
  main()
