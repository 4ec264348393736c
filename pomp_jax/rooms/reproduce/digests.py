"""Digests of the inputs of a reproduction: sets, names, images and weights.

A digest covers only what decides the accuracies: the pairs (image id, label) and not
the name of a split file, the class names as they are embedded, each array of the
weights. A record holds the digests of a table, so that other reproductions can be
compared with it.

Shapes: N rows of features, E embedding, S numbers of a sketch.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import os
import pathlib
from typing import Any

from flax.traverse_util import flatten_dict
from jaxtyping import Float
import numpy as np

from pomp_jax import encoder as encoders
from pomp_jax.clip.load import Clip
from pomp_jax.data.source import LabelledSet, StoredImages
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.run_folder import without_checksum

_RECORDS = pathlib.Path(__file__).with_name("records")
# Images of a set whose content is read for a digest.
SAMPLED = 64
# A record also lists the class names, up to this many.
_LISTED = 1500
_SKETCH = 8  # how many numbers a sketch has


def packaged_record(table: str) -> dict[str, Any]:
  """The packaged record of a table; an empty dict if there is none."""
  path = _RECORDS / f"{table}.json"
  if not path.exists():
    return {}
  content: dict[str, Any] = without_checksum(json.loads(path.read_text("utf-8")), path)
  return content


def short(text: str) -> str:
  """Eight digits of the SHA-256 of a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def names_as_embedded(names: Sequence[str]) -> list[str]:
  """The class names as the encoder writes them into a sentence."""
  return encoders.normalized_names(names)


def digests_of_set(labelled: LabelledSet) -> dict[str, Any]:
  """Digests and counts of a set; reads the content of `SAMPLED` of its images.

  Args:
    labelled: the whole set, even in a quick run.
  """
  source, classes, _ = labelled
  names = names_as_embedded(classes.names)
  labels = np.asarray(source.labels)
  # The images of a source without ids are numbered.
  keys = [str(key) for key in getattr(source, "keys", range(len(labels)))]
  of_class: list[list[str]] = [[] for _ in names]
  for key, label in zip(keys, labels.tolist(), strict=True):
    of_class[label].append(key)
  pairs = sorted(zip(keys, labels.tolist(), strict=True))
  found: dict[str, Any] = {
    "images": len(labels),
    "classes": len(names),
    "ids": fingerprint(sorted(keys)),
    "pairs": fingerprint([f"{key}\t{label}" for key, label in pairs]),
    "names": fingerprint(names),
    "templates": [classes.template, *classes.ensemble],
    "class_images": [len(ids) for ids in of_class],
    "class_ids": [short("\n".join(sorted(ids))) for ids in of_class],
    "content": content_digest(source),
  }
  if len(names) <= _LISTED:
    found["name_list"] = names
  return found


def content_digest(source: Any, count: int = SAMPLED) -> str:
  """Digest of the content of some images, chosen by their ids alone.

  The digest is "" if the source has no image files.

  Args:
    source: labelled images.
    count: number of images to read.
  """
  if not isinstance(source, StoredImages):
    return ""
  digest = hashlib.sha256()
  for row in chosen_rows(source, count):
    key = str(source.keys[row])
    digest.update(key.encode())
    digest.update(hashlib.sha256(source.encoded(row)).digest())
  return digest.hexdigest()


def chosen_rows(source: StoredImages, count: int) -> list[int]:
  """Numbers of the `count` images whose ids have the lowest hashes."""
  order = sorted(range(len(source)), key=lambda row: short(str(source.keys[row])))
  return order[:count]


def digests_of_clip(clip: Clip) -> dict[str, Any]:
  """Digest of each array of a CLIP, its logit scale, and the settings of its features."""
  arrays = {
    "/".join(map(str, path)): np.asarray(value)
    for path, value in flatten_dict(clip.params).items()
  }
  return {
    "arrays": {name: fingerprint([value])[:16] for name, value in arrays.items()},
    # Matrices of zeros are the sign of a damaged file.
    "zero": sorted(
      name for name, value in arrays.items() if value.ndim > 1 and not value.any()
    ),
    "logit_scale": round(float(clip.logit_scale), 4),
    "mean": list(clip.mean),
    "std": list(clip.std),
    "resize": "squashed" if clip.squash else "shortest side, cropped",
    "filter": "bilinear" if clip.bilinear else "bicubic",
    "sizes": fingerprint([json.dumps(clip.config.settings(), default=str)]),
  }


def sketch(features_NxE: Float[np.ndarray, "N E"]) -> list[float]:
  """Eight numbers of unit rows: means over rows of random projections.

  Each row has a random weight in the means, so that the order of rows matters. Sketches
  of equal features differ by rounding alone, because projections and weights are the
  same in every run.
  """
  width = features_NxE.shape[1]
  directions_ExS = np.random.default_rng(0).normal(size=(width, _SKETCH))
  projected_NxS = np.asarray(features_NxE, np.float64) @ directions_ExS
  weights_N = np.random.default_rng(1).normal(size=len(projected_NxS))
  mean_S = (projected_NxS * weights_N[:, None]).mean(0)
  return [round(float(value), 6) for value in mean_S]


def sketch_distance(first: Sequence[float], second: Sequence[float]) -> float:
  """Norm of the difference of two sketches, as a share of the norm of the second."""
  difference = np.subtract(first, second)
  norm = max(float(np.linalg.norm(second)), 1e-12)
  return float(np.linalg.norm(difference)) / norm


def file_digest(path: str | os.PathLike) -> str:
  """SHA-256 of a file, in hexadecimal."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(2**20):
      digest.update(block)
  return digest.hexdigest()


def differing(expected: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
  """Names whose digests differ, or that only one of the two has."""
  return sorted(
    name for name in {*expected, *got} if expected.get(name) != got.get(name)
  )
