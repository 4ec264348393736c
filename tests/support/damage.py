"""Damaged files, a full disk, and folders of images of which some can't be read."""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import resource

import numpy as np
from PIL import Image

from pomp_jax import world
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.synthetic import encode, natural_image

NAMES = ("beaver", "castle", "daisy", "lamp", "owl", "violin")


def write_damaged_folder(root: pathlib.Path, counts: Mapping[str, int]) -> None:
  """Writes images of six classes; the third one of daisies is damaged in `train`.

  Args:
    root: folder.
    counts: split -> images of a class.
  """
  for label, name in enumerate(NAMES):
    for split, count in counts.items():
      (root / split / name).mkdir(parents=True)
      for number in range(count):
        content = encode(natural_image(10 * label + number, 60, 80))
        damaged = (split, name, number) == ("train", "daisy", 2)
        (root / split / name / f"{number}.jpg").write_bytes(content[:300] if damaged else content)


def write_unreadable_set(root: pathlib.Path) -> tuple[str, ...]:
  """Writes the world's images under EuroSAT's names, which it returns.

  A class has 2 images to train on, 3 for validation and 5 for testing. One for validation is
  damaged, and two for testing.
  """
  names = load_class_list("eurosat").names
  pixels = iter(world.source("train", images_per_class=1).images(np.arange(len(names) * 10)))
  for name in names:
    for split, count in {"train": 2, "val": 3, "test": 5}.items():
      (root / split / name).mkdir(parents=True)
      for number in range(count):
        Image.fromarray(next(pixels)).save(root / split / name / f"{number}.png")
  for file in (f"val/{names[0]}/1.png", f"test/{names[3]}/0.png", f"test/{names[9]}/4.png"):
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
