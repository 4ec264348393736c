"""Class features as other projects read and write them.

Shapes: C classes, E embedding.
"""

from collections.abc import Sequence
import json
import os
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import safetensors.numpy

from pomp_jax.errors import RunError
from pomp_jax.files.atomic import replacing
from pomp_jax.files.prompt import PromptFileError, refuse


class ClassFeatureError(RunError, ValueError):
  """Class features that can't be written; the message is one line."""


def write_detic(path: str | os.PathLike, features_CxE: Float[np.ndarray, "C E"]) -> None:
  """Writes what Detic loads as `ZEROSHOT_WEIGHT_PATH`: float16 [C,E] as `.npy`.

  Detic transposes the matrix, adds a column of zeros for the background and normalises the rest,
  so only the direction of a row counts. Plain NumPy, nothing pickled.

  Args:
    path: the file, replaced when it exists.
    features_CxE: one row a category, in ascending order of the annotation's category ids; as the
      published files have them, they leave the text tower so and are not normalised.

  Raises:
    ClassFeatureError: values that are not finite in float16, or a row of zeros.
    OSError: the file can't be written.
  """
  with np.errstate(over="ignore"):
    half_CxE = np.ascontiguousarray(features_CxE, np.float16)
  _check(path, half_CxE)
  with replacing(path) as file:
    np.save(file, half_CxE, allow_pickle=False)


class ClassFeatures(NamedTuple):
  """What stands for a prompt where only the features of its classes are at hand.

  Attributes:
    features: unit rows, one a class, in the order of the class list that they are used with.
  """

  features: Float[np.ndarray, "C E"]

  def check_fits(self, n_classes: int, width: int, where: str) -> None:
    """Refuses features of other classes, or of another CLIP, as far as sizes tell.

    Args:
      n_classes: of the list that they are used with.
      width: E, of the CLIP.
      where: what to call them.

    Raises:
      PromptFileError: one line.
    """
    if self.features.shape != (n_classes, width):
      shape = list(self.features.shape)
      accepted = f"{[n_classes, width]}, one row for each of the {n_classes} classes"
      refuse(where, "the array's shape", str(shape), accepted)


def read_class_features(path: str | os.PathLike) -> ClassFeatures:
  """Reads Detic's class features, such as `lvis_v1_clip_pomp+cname.npy`; nothing is unpickled.

  Args:
    path: `.npy` of float16, float32 or float64 [C,E], of any length of row.

  Returns:
    The features, normalised here.

  Raises:
    PromptFileError: no such file, another type or shape, values that are not finite, a row of
      zeros.
  """
  try:
    # Mapped: a header that claims more than the file has allocates nothing.
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # a damaged file fails in more ways than NumPy documents
    raise PromptFileError(
      f"{os.fspath(path)}: not a NumPy array ({' '.join(str(error).split())[:200]}); accepted: .npy"
      " of class features [C,E]"
    ) from error
  if not isinstance(stored, np.ndarray) or stored.dtype.kind != "f" or stored.ndim != 2:
    found = f"{getattr(stored, 'dtype', 'no array')} {list(getattr(stored, 'shape', []))}"
    refuse(path, "the array", found, "floats [C,E], one row a class")
  features_CxE = np.asarray(stored, np.float32)
  try:
    _check(path, features_CxE)
  except ClassFeatureError as error:
    raise PromptFileError(str(error)) from error
  norms_Cx1 = np.linalg.norm(features_CxE.astype(np.float64), axis=-1, keepdims=True)
  return ClassFeatures((features_CxE / norms_Cx1).astype(np.float32))


def write_open_clip(
  path: str | os.PathLike,
  features_CxE: Float[np.ndarray, "C E"],
  names: Sequence[str] = (),
  clip_model: str = "",
) -> None:
  """Writes the weights of a zero-shot classifier, float32 [E,C], as open_clip builds them.

  `logits = logit_scale * image_features @ weights`, with unit columns.

  Args:
    path: `.npy`, or `.safetensors`: then the tensor is `classifier`, and the header's metadata has
      `names` (a JSON list) and `clip_model`. Replaced when it exists.
    features_CxE: one unit row a class.
    names: of the classes.
    clip_model: the CLIP that they belong to.

  Raises:
    ClassFeatureError: values that are not finite, a row of zeros, or another kind of file.
    OSError: the file can't be written.
  """
  _check(path, features_CxE)
  weights_ExC = np.ascontiguousarray(features_CxE.T, np.float32)
  suffix = os.path.splitext(path)[1]
  if suffix not in (".npy", ".safetensors"):
    raise ClassFeatureError(f"{path}: the name is of no known kind; accepted: .npy, .safetensors")
  with replacing(path) as file:
    if suffix == ".npy":
      np.save(file, weights_ExC, allow_pickle=False)
    else:
      # Of a folder's name, what is no Unicode becomes "?".
      clip_model = clip_model.encode(errors="replace").decode()
      metadata = {"names": json.dumps(list(names)), "clip_model": clip_model}
      file.write(safetensors.numpy.save({"classifier": weights_ExC}, metadata))


def _check(path: str | os.PathLike, features_CxE: np.ndarray) -> None:
  if not np.isfinite(features_CxE).all():
    raise ClassFeatureError(f"{path}: features are not finite; accepted: finite values")
  some_C = features_CxE.any(axis=-1)
  if not some_C.all():
    zero = int(np.argmin(some_C))
    raise ClassFeatureError(f"{path}: features of class {zero} are all zero; accepted: other rows")
