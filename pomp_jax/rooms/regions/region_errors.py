"""The error of unusable annotations, label images, regions and networks."""

import os
from typing import NoReturn

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable


class RegionError(InputError, ValueError):
  """An unusable file: one line with the file, the field, and what is accepted."""


def refuse(path: str | os.PathLike, field: str, actual: str, accepted: str) -> NoReturn:
  """Raises the error of an unusable field of a file, in one line.

  Args:
    path: file.
    field: place in the file, such as `boxes`.
    actual: value of the field, or what is wrong with it.
    accepted: values that the field may have.

  Raises:
    RegionError: always.
  """
  raise RegionError(
    f"{path}: {printable(field)} is {printable(actual)}; accepted: {accepted}"
  )
