"""Cache key of stored image features."""

from typing import Any

import numpy as np

from pomp_jax.data.images import PREPROCESSING_VERSION, ImageError
from pomp_jax.data.source import FeatureSource, Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.pieces import fingerprint


def images_key(source: Source, encoder: Encoder) -> dict[str, Any]:
  """Returns the cache key of a source's features.

  The key has all that the features depend on, except the augmentation. A store keeps
  the key beside the features, and computes them again if the key differs. Of the images
  the key covers all class names, image keys and labels, but the content of the first
  one alone: reading all images takes as long as computing their features. `evaluate`
  also compares sizes and times of the files: see `files.paths.file_stamps`.

  Args:
    source: images, or features of a file.
    encoder: CLIP whose image tower computes the features; for a file of features only
      its image size is used.

  Returns:
    Plain JSON values: fingerprints of the image tower (not for a file of features) and
    of the images, and the preparation and size of the pixels.
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
  """Content of the first image, which distinguishes data sets with the same keys.

  Of a file of features: the checksums of all images. Empty if the image is unreadable.
  """
  try:
    if isinstance(source, FeatureSource):
      return source.checksums
    if isinstance(source, StoredImages):
      return np.frombuffer(source.encoded(0), np.uint8)
    return source.images(np.arange(1))
  except ImageError:
    return np.zeros(0, np.uint8)
