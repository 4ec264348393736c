"""Image source `world`: a synthetic world of named things, and a small CLIP for it.

The world replaces ImageNet-21K if there is no data or network. Names are compositions
(`names`), and images are rendered on demand (`render`). The CLIP was trained on
web-like captions (`docs/generators`). The argument `data` of functions is
`config.data`, of which this source reads `n_classes` and `images_per_class`.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pomp_jax.errors import InputError
from pomp_jax.world import render
from pomp_jax.world.names import class_attributes, class_names
from pomp_jax.world.render import IMAGE_SIZE

__all__ = [
  "CLIP_PATH",
  "IMAGE_SIZE",
  "WorldSource",
  "class_names",
  "open_source",
  "source",
]

CLIP_PATH = pathlib.Path(__file__).parent / "clip"

# Group of classes, random stream and style of each split. The images that trained the
# CLIP come from yet another stream.
_SPLITS = {
  "train": ("base", 10, render.PHOTO),
  "validation": ("base", 11, render.PHOTO),
  "base": ("base", 12, render.PHOTO),
  "novel": ("novel", 13, render.PHOTO),
  "shifted": ("all", 14, render.SHIFTED),
}


@dataclasses.dataclass(frozen=True, eq=False)
class WorldSource:
  """Images of one split, a `data.source.Source`."""

  names: tuple[str, ...]
  labels: np.ndarray  # int32 [n]
  keys: np.ndarray  # uint64 [n], random keys of the images
  attributes_NxA: np.ndarray  # int32, A attributes of each of the N classes
  style: render.Style

  def __len__(self) -> int:
    return len(self.labels)

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Renders images by index: int [B] -> uint8 [B, S, S, 3]."""
    attributes_BxA = self.attributes_NxA[self.labels[indices]]
    return render.render(self.keys[indices], attributes_BxA, self.style)


def open_source(data: Any, split: str, n_images: int) -> WorldSource:
  """Opens a split with `data.n_classes` of its classes.

  Args:
    data: fields of `config.data`.
    split: name of the split, see `source`.
    n_images: total number of images; 0 for `data.images_per_class` of each class.
  """
  return source(
    split,
    images_per_class=0 if n_images else data.images_per_class,
    n_images=n_images,
    n_classes=data.n_classes,
  )


def n_training_classes(data: Any) -> int:
  """Number of classes to train on; InputError if the world has fewer."""
  n_all = len(class_names("base"))
  if data.n_classes > n_all:
    raise InputError(
      f"config.data.n_classes: got {data.n_classes}, expected at most {n_all}"
    )
  return data.n_classes or n_all


def evaluation_splits(data: Any) -> tuple[str, ...]:
  """Splits to evaluate a learned prompt on."""
  return ("base", "novel", "shifted")


def source(
  split: str,
  *,
  images_per_class: int = 0,
  n_images: int = 0,
  n_classes: int = 0,
  seed: int = 0,
) -> WorldSource:
  """Opens a split.

  Args:
    split: train, validation or base (three streams of base classes), novel, or shifted
      (all classes).
    images_per_class: number of images of every class, in the order of the classes.
    n_images: total number of images; read if `images_per_class` is 0. Without
      `n_classes` the classes are in random order, with equal numbers of images up to
      one. With `n_classes` every class has the same number of images, rounded up.
    n_classes: number of classes, spread evenly over the split's list. 0, or more than
      the list has, takes all.
    seed: random seed of the images.
  """
  group, stream, style = _SPLITS[split]
  every = class_names(group)
  n_kept = min(n_classes or len(every), len(every))
  classes = np.arange(n_kept) * len(every) // n_kept
  if n_images and not n_classes:
    # Go through all classes several times, each time in another random order.
    n_passes = -(-n_images // n_kept)  # rounded up
    # Random numbers by pass and class, from streams that no image uses.
    keys_of_passes = [
      render.image_keys(seed, (stream << 32) + number, classes)
      for number in range(n_passes)
    ]
    order = np.argsort(keys_of_passes, kind="stable")
    labels = order.ravel()[:n_images]
    positions = np.arange(n_images)
  else:
    n_each = images_per_class or -(-n_images // n_kept)  # rounded up
    labels = np.repeat(np.arange(n_kept), n_each)
    positions = (classes[:, None] * n_each + np.arange(n_each)).ravel()
  return WorldSource(
    names=tuple(every[c] for c in classes),
    labels=labels.astype(np.int32),
    keys=render.image_keys(seed, stream, positions),
    attributes_NxA=class_attributes(group)[classes],
    style=style,
  )
