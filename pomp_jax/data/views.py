"""Views of images: what a training step, or a cache of features, is shown.

Shapes: B images, V views an image, S side of a view, pixels.
"""

from collections.abc import Sequence
import contextlib
import dataclasses

from jaxtyping import Bool, Int, UInt8
import numpy as np
from PIL import Image

from pomp_jax.data.augment import CROP_AREA, View, draw_view, make_view
from pomp_jax.data.images import ImageError, load_rgb, open_image, prepare
from pomp_jax.data.source import Source, StoredImages


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How images are shown in training.

  Attributes:
    kind: `none` (as test images), `crop_flip` or `recipe`; see `data.augment`.
    n_views: V; 1 under `none`, where all would be the same.
    seed: of all augmentations.
    fresh_epochs: after so many epochs the same views come again, so that their features can be
      kept; 0: never.
    crop_area: least share of an image's area that a random crop shows.
  """

  kind: str = "none"
  n_views: int = 1
  seed: int = 0
  fresh_epochs: int = 0
  crop_area: float = CROP_AREA

  @property
  def n_epochs(self) -> int:
    """Epochs whose views differ: 1 under `none`.

    Raises:
      ValueError: there is no end of them.
    """
    if self.kind == "none":
      return 1
    if not self.fresh_epochs:
      raise ValueError("the views never come again: fresh_epochs is 0")
    return self.fresh_epochs

  def versions(self, epochs: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B V"]:
    """Which of the n_epochs * V views of an image are shown in an epoch; by number."""
    return (epochs % self.n_epochs)[:, None] * self.n_views + np.arange(self.n_views)


def views(
  source: Source,
  indices: Int[np.ndarray, " B"],
  epochs: Int[np.ndarray, " B"],
  augmentation: Augmentation,
  size: int,
) -> tuple[UInt8[np.ndarray, "B V S S 3"], Bool[np.ndarray, " B"]]:
  """The views of some images in some epochs: a function of its arguments, on any machine.

  Args:
    source: a `StoredImages`, or another source, whose `images` are augmented as they are.
    indices: of the images.
    epochs: in which each is shown.
    augmentation: what is drawn.
    size: S.

  Returns:
    The views, and which images could be read; the views of the others are black.
  """
  stored = isinstance(source, StoredImages)
  ready = None if stored else source.images(indices)
  if ready is not None and augmentation.kind == "none" and ready.shape[1:3] == (size, size):
    return ready[:, None], np.ones(len(indices), bool)
  result = np.zeros((len(indices), augmentation.n_views, size, size, 3), np.uint8)
  readable = np.zeros(len(indices), bool)
  for row, (index, epoch) in enumerate(zip(indices.tolist(), epochs.tolist(), strict=True)):
    where = source.where(index) if stored else f"image {index}"
    with contextlib.suppress(ImageError):
      image = open_image(source.encoded(index), where) if stored else Image.fromarray(ready[row])
      _fill(result[row], image, where, index, epoch, augmentation)
      readable[row] = True
  return result, readable


def _fill(
  views_VxSxSx3: np.ndarray,
  image: Image.Image,
  where: str,
  index: int,
  epoch: int,
  augmentation: Augmentation,
) -> None:
  """Decodes an image once, and writes its views."""
  size = views_VxSxSx3.shape[1]
  if augmentation.kind == "none":
    whole, _ = load_rgb(image, where)
    views_VxSxSx3[:] = prepare(whole, size)
    return
  if augmentation.fresh_epochs:
    epoch %= augmentation.fresh_epochs
  drawn = [
    draw_view(
      *image.size,
      augment=augmentation.kind,
      seed=augmentation.seed,
      index=index,
      epoch=epoch,
      view=number,
      crop_area=augmentation.crop_area,
    )
    for number in range(len(views_VxSxSx3))
  ]
  whole, shrink = load_rgb(image, where, _shrink(drawn, size))
  for pixels_SxSx3, view in zip(views_VxSxSx3, drawn, strict=True):
    pixels_SxSx3[:] = make_view(whole, view, size, shrink)


def _shrink(drawn: Sequence[View], size: int) -> int:
  """By how much a JPEG may be decoded smaller so that no crop has to be enlarged for it."""
  smallest = min(min(view.crop[2:]) for view in drawn)
  return max(shrink for shrink in (1, 2, 4, 8) if shrink == 1 or smallest >= shrink * size)
