"""Splits of labelled images of the world, rendered on demand."""

import numpy as np

from pomp_jax.files.weights import CLIPS
from pomp_jax.world import names, render

CLIP_PATH = CLIPS["world"]

# Class group and random stream of each split; `captions` has another stream.
_SPLITS = {
  "train": ("base", 10),
  "validation": ("base", 11),
  "base": ("base", 12),
  "novel": ("novel", 13),
  "shifted": ("all", 14),
}


class WorldSource:
  """Images of one split; a `data.source.Source`.

  Attributes:
    names: class names, indexed by the labels.
    labels: int32 [n], class of each image.
  """

  def __init__(self, split: str, labels: np.ndarray, seed: int):
    group, self._stream = _SPLITS[split]
    self.names = names.class_names(group)
    self.labels = labels.astype(np.int32)
    self._attributes_NxA = names.class_attributes(group)
    self._style = render.STYLES.index("shifted" if split == "shifted" else "photo")
    self._seed = seed

  def __len__(self) -> int:
    return len(self.labels)

  def render(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders images, masks and boxes; see `render.render`.

    Args:
      indices: int [B], in [0, len).

    Raises:
      IndexError: an index is out of range.
    """
    indices = np.asarray(indices, np.int64)
    if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
      raise IndexError(f"got images {indices.min()}..{indices.max()}, expected [0, {len(self)})")
    key_B = render.image_keys(self._seed, self._stream, indices)
    attributes_BxA = self._attributes_NxA[self.labels[indices]]
    return render.render(key_B, attributes_BxA, np.full(len(indices), self._style))

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Images by index, uint8 [B, S, S, 3]."""
    return self.render(indices)[0]


def source(
  split: str,
  *,
  images_per_class: int | None = None,
  n_images: int | None = None,
  seed: int = 0,
) -> WorldSource:
  """Opens a split.

  Args:
    split: "train", "validation", "base" (three disjoint streams of images of base classes),
      "novel" (novel classes) or "shifted" (all classes in the shifted rendering).
    images_per_class: images of every class, in the order of the classes.
    n_images: alternatively, images in all, of random classes as evenly as possible.
    seed: random seed of the images and of the choice of classes.

  Raises:
    ValueError: unknown split, not exactly one of the two sizes, or a size below 1.
  """
  if split not in _SPLITS:
    raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_SPLITS)}")
  if (images_per_class is None) == (n_images is None):
    raise ValueError("expected either images_per_class or n_images")
  size = images_per_class if n_images is None else n_images
  if size < 1:
    raise ValueError(f"got {size} images, expected at least 1")
  group, stream = _SPLITS[split]
  n_classes = len(names.class_names(group))
  if n_images is None:
    labels = np.repeat(np.arange(n_classes), images_per_class)
  else:
    # Passes over all classes, each in its own random order.
    passes = []
    for turn in range(-(-n_images // n_classes)):
      key_N = render.image_keys(seed, (stream << 32) + turn, np.arange(n_classes))
      passes.append(np.argsort(key_N, kind="stable"))
    labels = np.concatenate(passes)[:n_images]
  return WorldSource(split, labels, seed)
