"""Paths that users give, and their files: local ones, or URLs in buckets, `gs://`, `s3://`.

A URL is an `etils.epath.Path`, with the methods of a `pathlib.Path`. A bucket's objects are written
whole and replaced, never renamed, locked or appended to; a folder exists while an object's name
begins with it. fsspec's clients, `registry.STORES`, retry answers of 429 and 5xx for about half a
minute, and raise an OSError with errno, reason and URL for others.
"""

from collections.abc import Mapping
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
from typing import Any, TypeAlias

# Read when epath looks for TensorFlow, whose file system it would use.
os.environ["EPATH_USE_TF"] = "0"

from etils import epath
import fsspec

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable
from pomp_jax.registry import STORES

Path: TypeAlias = pathlib.Path | epath.Path

ACCEPTED = " or ".join(("a local path", *(f"{scheme}://BUCKET/.." for scheme in STORES)))

# Of "root=/home/me/pictures" or "gs://bucket/pictures" all but "root=", "pictures".
_FOLDERS = re.compile(r"(^|[=:;,'\"\s(])(?:\w+:/)?(?:~\w*)?/(?:[^=:;,'\"\s()]*/)?(?=[^\s/])")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

for _scheme, _store in STORES.items():
  for _protocol in ("gs", "gcs") if _scheme == "gs" else (_scheme,):
    # By name, so that a client is imported with the first URL.
    fsspec.register_implementation(_protocol, f"pomp_jax.{_store.client}", clobber=True)
    # Other hosts make a cached listing stale.
    fsspec.config.conf.setdefault(_protocol, {})["use_listings_cache"] = False
  logging.getLogger(_store.library).setLevel(logging.CRITICAL)  # a traceback for each failed try


class PathError(InputError, ValueError):
  """A path that can't be used: an unknown scheme, or a library that is missing or old."""


def scheme_of(path: str | os.PathLike) -> str | None:
  """Scheme of a URL, "gs" for example; None for a local path."""
  match = _SCHEME.match(os.fspath(path))
  return match[1] if match else None


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is a URL of an object store."""
  return scheme_of(path) in STORES


def problem_of(path: str | os.PathLike) -> str | None:
  """Accepted paths, or the library that is missing or old, if a path can't be used; else None."""
  if "\0" in os.fspath(path):
    return "a path without the character NUL"
  scheme = scheme_of(path)
  if scheme is None:
    return None
  bucket = os.fspath(path).partition("://")[2].partition("/")[0]
  if scheme not in STORES or not bucket:
    return ACCEPTED
  library, oldest, _ = STORES[scheme]
  release = release_of(library)
  if release is None or _calendar(release) < _calendar(oldest):
    found = f"{release} is installed" if release else "it is not installed"
    needed = f"{library}>={oldest}"
    return f"the library {needed} for {scheme}:// (pip install '{needed}'); {found}"
  return None


def to_path(path: str | os.PathLike) -> Path:
  """Path object of a local path or a URL; PathError as `problem_of` says."""
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


def exists(path: str | os.PathLike) -> bool:
  """Whether there is a file or a folder; OSError for a bucket that can't be read."""
  return os.path.exists(path) if not is_bucket(path) else _is_folder(path) is not None


def is_dir(path: str | os.PathLike) -> bool:
  """Whether there is a folder; errors as `exists`'s."""
  return os.path.isdir(path) if not is_bucket(path) else _is_folder(path) is True


def is_file(path: str | os.PathLike) -> bool:
  """Whether there is a file; errors as `exists`'s."""
  return os.path.isfile(path) if not is_bucket(path) else _is_folder(path) is False


def read_bytes(path: str | os.PathLike) -> bytes:
  """Content of a file; of an object in one request, where epath makes two."""
  if is_bucket(path):
    return store_of(path).cat_file(os.fspath(path))
  return pathlib.Path(path).read_bytes()


def read_file(path: str | os.PathLike, error: type[Exception]) -> bytes:
  """Reads the content of a file; raises `error` if it can't be read."""
  try:
    return read_bytes(path)
  except OSError as cause:
    raise error(f"{path}: can't be read ({cause.strerror})") from cause


def read_text(path: str | os.PathLike, error: type[Exception]) -> str:
  """Reads UTF-8 text, with or without a byte order mark; raises `error` if it can't be read."""
  try:
    return read_file(path, error).decode("utf-8-sig")
  except UnicodeDecodeError as cause:
    raise error(f"{path}: not UTF-8 text ({cause.reason})") from cause


def read_user_json(path: str | os.PathLike, error: type[Exception], **options: Any) -> Any:
  """Reads JSON, with options of `json.loads`; raises `error` if it can't be read or is not JSON."""
  content = read_file(path, error)
  try:
    return json.loads(content, **options)
  # ValueError: not JSON, not Unicode, or a number with thousands of digits.
  except (ValueError, RecursionError) as cause:
    raise error(f"{path}: not JSON ({printable(str(cause))})") from cause


def entries(folder: str | os.PathLike) -> list[tuple[str, bool]]:
  """Names in a folder of a bucket, and whether each is a folder; OSError if there is none."""
  found = store_of(folder).ls(os.fspath(folder), detail=True)
  own = os.fspath(folder).partition("://")[2].rstrip("/")
  names = [(row["name"].rstrip("/").removeprefix(f"{own}/"), row["type"]) for row in found]
  # Some tools leave an empty object that is named like the folder.
  return [(name, kind == "directory") for name, kind in names if name and name != own]


def file_size(path: str | os.PathLike) -> int:
  """Size of a file, in bytes."""
  return epath.Path(path).stat().length


def store_of(path: str | os.PathLike) -> Any:
  """Client of a URL's object store, an `fsspec.AbstractFileSystem`."""
  scheme = scheme_of(path)
  return fsspec.filesystem("gcs" if scheme == "gs" else scheme)


def remove_folder(path: str | os.PathLike) -> None:
  """Removes a folder and all that it holds; what can't be removed of a local one stays."""
  if is_bucket(path):
    epath.Path(path).rmtree(missing_ok=True)
  else:
    shutil.rmtree(path, ignore_errors=True)


def version_of(path: str | os.PathLike) -> str:
  """Version of an object: generation or ETag, and size; another one after each write."""
  found = store_of(path).info(os.fspath(path))
  return " ".join(str(found.get(field)) for field in ("generation", "ETag", "etag", "size"))


def local_copy(path: str | os.PathLike) -> pathlib.Path:
  """Returns a local file with an object's content, or a local path as it is.

  Copies are kept in `~/.cache/pomp_jax/buckets`, each with its SHA-256. A copy serves as long as
  the object is the same version; a damaged one is fetched again. OSError if the object can't be
  read, or the copy not written.
  """
  if not is_bucket(path):
    return pathlib.Path(path)
  url, version = os.fspath(path), version_of(path)
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
    store_of(path).get_file(url, str(fetched))
    if fetched.stat().st_size != file_size(path):
      raise OSError(errno.EIO, "incomplete answer of the store", url)
    digest = _sha256(fetched)
    os.replace(fetched, copy)
  record.write_text(json.dumps([version, digest]))
  return copy


def without_folders(value: Any) -> Any:
  """The value, in whose strings absolute paths and URLs are cut to their last name."""
  if isinstance(value, Mapping):
    return {key: without_folders(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [without_folders(item) for item in value]
  return _FOLDERS.sub(r"\1", value) if isinstance(value, str) else value


def cache_folder() -> pathlib.Path:
  """The project's part of the user's cache folder, which outlives a run."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(base) / "pomp_jax"


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(path: str | os.PathLike) -> bool | None:
  try:
    return epath.Path(path).stat().is_directory
  except FileNotFoundError:
    return None


@functools.cache
def release_of(library: str) -> str | None:
  """Release of a library that is installed, or None."""
  try:
    return importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return None


def _calendar(release: str) -> list[int]:
  """Year and month, with which the releases of both libraries begin."""
  return [int(number) for number in re.findall(r"\d+", release)[:2]]
