"""Paths that users give: local ones, or URLs of folders and files in buckets, `gs://`, `s3://`.

A local path is a `pathlib.Path`, a URL an `etils.epath.Path`, which has methods of the same names.
A bucket differs from a file system, and so do the ways to be safe there:

* An object is written whole or not at all, and replaces an older one: `atomic.replacing`.
* There are no folders: one exists while an object's name begins with it. `mkdir` does nothing.
* Nothing is renamed, locked or appended to. What has parts has a marker that is written last.

`google_store` and `amazon_store` hold the clients; both retry answers of 429 and 5xx for about half
a minute, and raise an OSError with errno, reason and URL for others.
"""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

# Read when epath looks for TensorFlow, whose file system it would use.
os.environ["EPATH_USE_TF"] = "0"

from etils import epath
import fsspec

from pomp_jax.errors import InputError

Path = pathlib.Path | epath.Path

# Client library of each scheme, and the oldest release that was tested: the bounds of the extras.
LIBRARIES = {"gs": ("gcsfs", "2026.2"), "s3": ("s3fs", "2026.2")}
ACCEPTED = "a local path, gs://BUCKET/.. or s3://BUCKET/.."

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# By name: a client is imported with the first URL, also in a worker process that unpickles a path.
for _protocol, _client in (
  ("gs", "google_store.GoogleStore"),
  ("gcs", "google_store.GoogleStore"),
  ("s3", "amazon_store.AmazonStore"),
):
  fsspec.register_implementation(_protocol, f"pomp_jax.files.{_client}", clobber=True)
# They log each failed try with a traceback.
for _library in ("gcsfs", "s3fs"):
  logging.getLogger(_library).setLevel(logging.CRITICAL)


class PathError(InputError, ValueError):
  """A path that can't be used: an unknown scheme, a library that is missing or old, a device."""


def scheme_of(path: str | os.PathLike) -> str | None:
  """Scheme of a URL, "gs" for example; None for a local path."""
  match = _SCHEME.match(os.fspath(path))
  return match[1] if match else None


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is a URL of an object store."""
  return scheme_of(path) in LIBRARIES


def problem_of(path: str | os.PathLike) -> str | None:
  """Accepted paths, or the library that is missing or old, if a path can't be used; else None."""
  if "\0" in os.fspath(path):
    return "a path without the character NUL"
  scheme = scheme_of(path)
  if scheme is None:
    return None
  bucket = os.fspath(path).partition("://")[2].partition("/")[0]
  if scheme not in LIBRARIES or not bucket:
    return ACCEPTED
  library, oldest = LIBRARIES[scheme]
  release = _release_of(library)
  if release is None or _calendar(release) < _calendar(oldest):
    found = f"{release} is installed" if release else "it is not installed"
    needed = f"{library}>={oldest}"
    return f"the library {needed} for {scheme}:// (pip install '{needed}'); {found}"
  return None


def to_path(path: str | os.PathLike) -> Path:
  """Path object of a local path or a URL.

  Raises:
    PathError: another scheme, or its library is not installed or too old.
  """
  if isinstance(path, epath.Path | pathlib.Path):
    return path
  if problem := problem_of(path):
    raise PathError(f"{os.fspath(path)}: expected {problem}")
  return pathlib.Path(path) if scheme_of(path) is None else epath.Path(os.fspath(path))


def join(folder: str | os.PathLike, *names: str | os.PathLike) -> Path:
  """Path of a name in a folder; a name that is absolute or a URL replaces the folder."""
  for name in names:
    folder = name if scheme_of(name) else to_path(folder) / os.fspath(to_path(name))
  return to_path(folder)


def absolute(path: str | os.PathLike) -> Path:
  """Absolute path, normalised; URLs are absolute."""
  return to_path(path) if is_bucket(path) else pathlib.Path(os.path.abspath(path))


def exists(path: str | os.PathLike) -> bool:
  """Whether there is a file or a folder; False for a local one that can't be looked at.

  Raises:
    OSError: a bucket that can't be read.
  """
  return os.path.exists(path) if not is_bucket(path) else _is_folder(path) is not None


def is_dir(path: str | os.PathLike) -> bool:
  """Whether there is a folder; errors as `exists`'s."""
  return os.path.isdir(path) if not is_bucket(path) else _is_folder(path) is True


def is_file(path: str | os.PathLike) -> bool:
  """Whether there is a file; errors as `exists`'s."""
  return os.path.isfile(path) if not is_bucket(path) else _is_folder(path) is False


def open_binary(path: str | os.PathLike) -> Any:
  """Opens a binary file to be read; an object is fetched in blocks as they are read."""
  return (to_path(path) if is_bucket(path) else _regular(path)).open("rb")


def read_bytes(path: str | os.PathLike) -> bytes:
  """Content of a file; of an object in one request."""
  if is_bucket(path):
    return store_of(path).cat_file(os.fspath(path))
  return _regular(path).read_bytes()


def _regular(path: str | os.PathLike) -> pathlib.Path:
  """A local path that may be opened.

  Raises:
    PathError: a FIFO, a socket or a device, whose content may never come, or never end.
  """
  local = pathlib.Path(path)
  if local.exists() and not (local.is_file() or local.is_dir()):
    raise PathError(f"{local}: expected a regular file, found a FIFO, a socket or a device")
  return local


def entries(folder: str | os.PathLike) -> list[tuple[str, bool]]:
  """Names in a folder of a bucket, and whether each is a folder.

  Raises:
    OSError: no such folder.
  """
  found = store_of(folder).ls(os.fspath(folder), detail=True)
  own = os.fspath(folder).partition("://")[2].rstrip("/")
  names = [(row["name"].rstrip("/").removeprefix(f"{own}/"), row["type"]) for row in found]
  # Some tools leave an empty object that is named like the folder.
  return [(name, kind == "directory") for name, kind in names if name and name != own]


def file_size(path: str | os.PathLike) -> int:
  """Size of a file in bytes."""
  return to_path(path).stat().length if is_bucket(path) else os.path.getsize(path)


def store_of(path: str | os.PathLike) -> Any:
  """Client of a URL's object store, an `fsspec.AbstractFileSystem`."""
  return fsspec.filesystem({"gs": "gcs"}.get(scheme := scheme_of(path), scheme))


def remove_folder(path: Path) -> None:
  """Removes a folder and all that it holds; a missing one is none."""
  if is_bucket(path):
    path.rmtree(missing_ok=True)
  else:
    shutil.rmtree(path, ignore_errors=True)


def version_of(path: str | os.PathLike) -> str:
  """Version of an object: generation or ETag, and size; another one after each write.

  Raises:
    OSError: no such object, or a bucket that can't be read.
  """
  found = store_of(path).info(os.fspath(path))
  return " ".join(str(found.get(field)) for field in ("generation", "ETag", "etag", "size"))


def local_copy(path: str | os.PathLike) -> pathlib.Path:
  """Returns a local file with an object's content, for libraries that take no other.

  A local path is returned as it is. Copies are kept in `~/.cache/pomp_jax/buckets`, each with its
  SHA-256. A copy serves as long as the object is the same version; a damaged one is fetched again.

  Raises:
    OSError: the object can't be read, or the copy not written.
    PathError: a local path of no regular file.
  """
  if not is_bucket(path):
    return _regular(path)
  url, store = os.fspath(path), store_of(path)
  version = version_of(path)
  # Files of one folder stay together: tokenizers are read by folder.
  key = hashlib.sha256(url.rpartition("/")[0].encode()).hexdigest()[:32]
  copy = cache_folder() / "buckets" / key / to_path(path).name
  record = copy.with_name(f".{copy.name}.json")
  with contextlib.suppress(OSError, ValueError):
    if json.loads(record.read_text()) == [version, _sha256(copy)]:
      return copy
  copy.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=copy.parent) as temporary:
    fetched = pathlib.Path(temporary) / "content"
    store.get_file(url, str(fetched))
    if fetched.stat().st_size != file_size(path):
      raise OSError(errno.EIO, "incomplete answer of the store", url)
    digest = _sha256(fetched)
    os.replace(fetched, copy)
  record.write_text(json.dumps([version, digest]))
  return copy


def cache_folder() -> pathlib.Path:
  """The project's part of the user's cache folder, which outlives a run."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(base) / "pomp_jax"


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(path: str | os.PathLike) -> bool | None:
  try:
    return to_path(path).stat().is_directory
  except FileNotFoundError:
    return None


@functools.cache
def _release_of(library: str) -> str | None:
  try:
    return importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return None


def _calendar(release: str) -> list[int]:
  """Year and month, with which the releases of both libraries begin."""
  return [int(number) for number in re.findall(r"\d+", release)[:2]]
