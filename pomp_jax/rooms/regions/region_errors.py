"""The error of unusable annotations, label images, regions and networks."""

import os
from typing import NoReturn

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable


class RegionError(InputError, ValueError):
  """An unusable file: one line with the file, the field, and what is accepted."""


def refuse(path: str | os.PathLike, field: str, found: str, accepted: str) -> NoReturn:
  """Raises the one line for a field of a file.

  Args:
    path: file.
    field: place in the file.
    found: what is there.
    accepted: what would be accepted.

  Raises:
    RegionError: always.
  """
  raise RegionError(
    f"{path}: {printable(field)} is {printable(found)}; accepted: {accepted}"
  )
