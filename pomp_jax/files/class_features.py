"""Class features as other projects read them.

Shapes: C classes, E embedding.
"""

from collections.abc import Sequence
import json
import os

from jaxtyping import Float
import numpy as np
import safetensors.numpy

from pomp_jax.files.atomic import replacing


class ClassFeatureError(ValueError):
  """Class features that can't be written; the message is one line."""


def write_detic(path: str | os.PathLike, features_CxE: Float[np.ndarray, "C E"]) -> None:
  """Writes what Detic loads as `ZEROSHOT_WEIGHT_PATH`: float32 [C,E] as `.npy`.

  Detic transposes the matrix, adds a column of zeros for the background and normalises the rest,
  so only the direction of a row counts; ours are unit rows. Plain NumPy, nothing pickled.

  Args:
    path: the file, replaced when it exists.
    features_CxE: one unit row a category, in ascending order of the annotation's category ids.

  Raises:
    ClassFeatureError: values that are not finite, or a row of zeros.
    OSError: the file can't be written.
  """
  _check(path, features_CxE)
  with replacing(path) as file:
    np.save(file, np.ascontiguousarray(features_CxE, np.float32), allow_pickle=False)


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
  norms_C = np.linalg.norm(features_CxE, axis=-1)
  if not norms_C.all():
    zero = int(np.argmin(norms_C))
    raise ClassFeatureError(f"{path}: features of class {zero} are all zero; accepted: unit rows")
