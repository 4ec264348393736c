"""Small data sets in CoOp's layout: the real class lists, a few pictures of our choice."""

import json
import pathlib

import numpy as np
from PIL import Image

from pomp_jax.data.vocabularies import load_class_list

_PLACES = {
  "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
  "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
}


def write_set(root: pathlib.Path, name: str, pictures: np.ndarray, labels: np.ndarray) -> None:
  """Writes a set whose test images are uint8 [n,S,S,3], losslessly, with their labels.

  Args:
    root: `$DATA`.
    name: dtd, eurosat, or imagenet_a, whose images stand in the order of their labels.
    pictures: the test images.
    labels: of these.
  """
  classes = load_class_list(name)
  if name == "imagenet_a":
    folder = root / "imagenet-adversarial" / "imagenet-a"
    for synset in classes.synsets:
      (folder / synset).mkdir(parents=True, exist_ok=True)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
      Image.fromarray(picture).save(folder / classes.synsets[label] / f"{i:04}.png")
    return
  folder, images, file = _PLACES[name]
  (root / folder / images).mkdir(parents=True)
  Image.new("RGB", (8, 8)).save(root / folder / images / "other.png")
  test = []
  for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
    Image.fromarray(picture).save(root / folder / images / f"{i:04}.png")
    test.append([f"{i:04}.png", int(label), classes.names[label]])
  others = [["other.png", label, own] for label, own in enumerate(classes.names)]
  content = {"train": others, "val": others[:1], "test": test}
  (root / folder / file).write_text(json.dumps(content))
