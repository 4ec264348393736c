"""Cache key part of files that a user may replace."""

from collections.abc import Iterable
import concurrent.futures
import os

from pomp_jax.files.paths import is_bucket, store_of

_STAMPS = 16  # files that are looked at at once: a bucket's answer takes time


def file_stamps(paths: Iterable[str | os.PathLike]) -> str:
  """Sizes and modification times, or versions of objects in a bucket."""

  def stamp(path: str | os.PathLike) -> str:
    try:
      if is_bucket(path):
        return f"{path} {store_of(path).version_of(os.fspath(path))}"
      found = os.stat(path)
      return f"{path} {found.st_size} {found.st_mtime_ns}"
    except OSError:
      return f"{path} missing"

  with concurrent.futures.ThreadPoolExecutor(_STAMPS) as pool:
    return "\n".join(pool.map(stamp, paths))
