"""Small data sets as files, folders of images of which some can't be read, and
damaged files."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import json
import pathlib
import resource
import tarfile

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.data.class_lists import load_class_list
from tests.support.pictures import encode, natural_image

NAMES = ("beaver", "castle", "daisy", "lamp", "owl", "violin")
_PLACES = {
  "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
  "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
}


def write_set(
  root: pathlib.Path, name: str, pictures: np.ndarray, labels: np.ndarray
) -> None:
  """Writes dtd, eurosat or imagenet_a below `$DATA`, with these test images uint8
  [n,S,S,3].

  Those of imagenet_a are sorted by label.
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
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def write_folder(
  root: pathlib.Path,
  names: Sequence[str],
  count: int,
  suffix: str = ".jpg",
  seed: int = 0,
) -> None:
  """Writes JPEG files of each class, named 0, 1, ..; another seed gives other
  pictures."""
  for label, name in enumerate(names):
    (root / name).mkdir(parents=True)
    for number in range(count):
      content = encode(natural_image(1000 * seed + 10 * label + number, 60, 80))
      (root / name / f"{number}{suffix}").write_bytes(content)


def write_world(
  root: pathlib.Path, split: str, count: int, names: Sequence[str], suffix: str = ".png"
) -> None:
  """Writes the world's own images of some of a split's classes, named 0, 1, .."""
  source = world.source(split, images_per_class=count)
  for name in names:
    (root / name).mkdir(parents=True, exist_ok=True)
    first = source.names.index(name) * count
    for number, image in enumerate(source.images(first + np.arange(count))):
      Image.fromarray(image).save(root / name / f"{number}{suffix}", quality=95)


def write_unreadable_set(root: pathlib.Path) -> tuple[str, ...]:
  """Writes the world's images under EuroSAT's names, which it returns.

  A class has 2 images to train on, 3 for validation and 5 for testing. One for
  validation is damaged, and two for testing.
  """
  names = load_class_list("eurosat").names
  pixels = iter(
    world.source("train", images_per_class=1).images(np.arange(len(names) * 10))
  )
  for name in names:
    for split, count in {"train": 2, "val": 3, "test": 5}.items():
      (root / split / name).mkdir(parents=True)
      for number in range(count):
        Image.fromarray(next(pixels)).save(root / split / name / f"{number}.png")
  for file in (
    f"val/{names[0]}/1.png",
    f"test/{names[3]}/0.png",
    f"test/{names[9]}/4.png",
  ):
    (root / file).write_bytes(b"no image")
  return names


def damage(file: pathlib.Path, how: str, rng: np.random.Generator) -> None:
  """Damages a file; `how` is "truncated", "bit-flipped" or "deleted"."""
  content = bytearray(file.read_bytes())
  if how == "deleted":
    file.unlink()
  elif how == "truncated" or not content:
    file.write_bytes(content[: rng.integers(len(content) or 1)])
  else:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


@contextlib.contextmanager
def small_files_only(size: int) -> Iterator[None]:
  """Lets no file of more bytes be written, which stands in for a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
