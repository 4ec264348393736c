"""A folder of JPEGs in split and class folders, one of which is cut off."""

from collections.abc import Mapping
import pathlib

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
