"""Finds the pictures that get another name when names are added to a classifier.

The rows of the earlier names stay the same, so an answer changes only to an added name.

Shapes: B images of a batch, N earlier names, A added names, E embedding.
"""

import logging
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from pomp_jax.data.folder import find_images
from pomp_jax.data.images import ImageError, read_image
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.files.paths import Path

log = logging.getLogger(__name__)

_BATCH = 64


class Change(NamedTuple):
  """A picture whose best name is an added name."""

  file: str
  before: int  # label among the earlier names
  after: int  # label among the added ones
  cosine_before: float
  cosine_after: float


class Answers(NamedTuple):
  """Answers to pictures before and after names were added."""

  n_images: int  # pictures that can be read
  n_unreadable: int
  changes: list[Change]  # largest gain in cosine first


def changed_answers(
  encoder: Encoder,
  images: str,
  earlier_NxE: Float[np.ndarray, "N E"],
  added_AxE: Float[np.ndarray, "A E"],
  *,
  upright: bool,
) -> Answers:
  """Compares the best names of the pictures of a folder.

  Args:
    encoder: the CLIP.
    images: folder of pictures, or a single picture.
    earlier_NxE: unit features of the earlier names.
    added_AxE: unit features of the added names.
    upright: whether to turn pictures as their EXIF orientation says.

  Raises:
    SourceError: there is no picture.
    EvaluationError: features are not finite.
  """
  files = list(find_images(images).items())
  changes: list[Change] = []
  n_images = 0
  for start in range(0, len(files), _BATCH):
    keys, pixels = _read(encoder, files[start : start + _BATCH], upright)
    if not keys:
      continue
    n_images += len(keys)
    features_BxE = encoder.image_features(np.stack(pixels))
    check_finite(features_BxE, "images")
    cosine_BxN = features_BxE @ earlier_NxE.T
    cosine_BxA = features_BxE @ added_AxE.T
    # If the cosines are equal, the earlier name wins, because its label is lower.
    for row in np.flatnonzero(cosine_BxA.max(axis=1) > cosine_BxN.max(axis=1)):
      changes.append(
        Change(
          file=keys[row],
          before=int(cosine_BxN[row].argmax()),
          after=int(cosine_BxA[row].argmax()),
          cosine_before=float(cosine_BxN[row].max()),
          cosine_after=float(cosine_BxA[row].max()),
        )
      )
  changes.sort(key=lambda change: change.cosine_before - change.cosine_after)
  return Answers(n_images, len(files) - n_images, changes)


def _read(
  encoder: Encoder, files: list[tuple[str, Path]], upright: bool
) -> tuple[list[str], list[np.ndarray]]:
  """Keys and pixels of the readable pictures; warns of each unreadable picture."""
  keys = []
  pixels = []
  size = encoder.clip.image_size
  for key, path in files:
    try:
      pixels.append(read_image(path, size, upright, resize=encoder.resize))
      keys.append(key)
    except ImageError as error:
      log.warning("skipped: %s", error)
  return keys, pixels
