"""What the features of a source depend on: a key of what is stored."""

from typing import Any

import numpy as np

from pomp_jax.data.images import PREPROCESSING_VERSION, ImageError
from pomp_jax.data.source import FeatureSource, Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.pieces import fingerprint


def images_key(source: Source, encoder: Encoder) -> dict[str, Any]:
  """Returns what the features of a source depend on, beside the augmentation.

  Whoever stores features keeps the key beside them, and computes them again where it
  differs. Of the images it holds all names, keys and labels, but the content of the
  first one alone, because reading all of them takes as long as computing features.
  `evaluate` also compares sizes and times of the files: see `files.paths.file_stamps`.

  Args:
    source: images, or features of a file.
    encoder: whose image tower computes the features; a file of features needs none.

  Returns:
    Values that JSON holds: of the image tower, the images with their names and labels,
    and how the pixels are prepared.
  """
  key: dict[str, Any] = {}
  if not isinstance(source, FeatureSource):
    key["image_tower"] = encoder.image_fingerprint
  preparation: str | int = PREPROCESSING_VERSION
  if isinstance(source, StoredImages) and source.upright:
    preparation = f"{preparation}, upright"
  image_keys = np.asarray(getattr(source, "keys", ())).tolist()
  images = [
    "\0".join(source.names),
    "\0".join(map(str, image_keys)),
    np.asarray(source.labels),
    _first_content(source),
  ]
  key["images"] = fingerprint(images)
  key["preparation"] = preparation
  key["image_size"] = encoder.clip.image_size
  return key


def _first_content(source: Source) -> Any:
  """Content of the first image, which tells data sets with the same keys apart."""
  try:
    if isinstance(source, FeatureSource):
      return source.checksums
    if isinstance(source, StoredImages):
      return np.frombuffer(source.encoded(0), np.uint8)
    return source.images(np.arange(1))
  except ImageError:
    return np.zeros(0, np.uint8)
