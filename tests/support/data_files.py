"""Small data sets in CoOp's layout with the real class lists, and tar files."""

from collections.abc import Mapping
import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image

from pomp_jax.data.class_lists import load_class_list

_PLACES = {
  "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
  "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
}


def write_set(root: pathlib.Path, name: str, pictures: np.ndarray, labels: np.ndarray) -> None:
  """Writes a data set with the given test images as PNG files.

  Args:
    root: data root, `$DATA`.
    name: dtd, eurosat, or imagenet_a (pictures sorted by label).
    pictures: test images, uint8 [n,S,S,3].
    labels: class of each test image.
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


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
  """Packs members into a tar file, in order."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()
