"""Local paths and URLs in buckets (`gs://`, `s3://`) that users give, and their files.

A URL becomes an `etils.epath.Path`, which has the methods of a `pathlib.Path`. An
object of a bucket can be written or replaced as a whole, but not renamed, locked or
appended to. A folder of a bucket exists while the name of an object begins with the
folder's name. fsspec's clients, `registry.STORES`, retry a request for about half a
minute if the answer is 429 or 5xx. For any other failure they raise an OSError with
errno, reason and URL.
"""

from collections.abc import Iterable, Mapping
import concurrent.futures
import errno
import json
import os
import pathlib
import re
import shutil
from typing import Any, TypeAlias

# Keep epath from using TensorFlow's file system if TensorFlow is installed.
os.environ["EPATH_USE_TF"] = "0"

from etils import epath
import fsspec

from pomp_jax.errors import InputError
from pomp_jax.files.terminal import printable
from pomp_jax.hooks import MISSING_LIBRARY
from pomp_jax.registry import STORES

Path: TypeAlias = pathlib.Path | epath.Path

ACCEPTED = " or ".join(
  ("a local path", *(f"{scheme}://BUCKET/.." for scheme in STORES))
)

# The folders of a path within a text: "/home/me/" in "root=/home/me/pictures", and
# "gs://bucket/" in "gs://bucket/pictures".
_FOLDERS = re.compile(
  r"(^|[=:;,*'\"\s(])(?:\w+:/)?(?:~\w*)?/(?:[^=:;,'\"\s()]*/)?(?=[^\s/])"
)
# Number of files whose stamps are read in parallel: a bucket takes time to answer.
_STAMPS = 16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

for _scheme, _store in STORES.items():
  # fsspec knows Google's store by both names.
  _protocols = ("gs", "gcs") if _scheme == "gs" else (_scheme,)
  for _protocol in _protocols:
    # Register the client by its name, so that the first URL imports it.
    fsspec.register_implementation(_protocol, f"pomp_jax.{_store}", clobber=True)


class PathError(InputError, ValueError):
  """A path can't be used: its scheme is unknown, or a library is missing or too old."""


def scheme_of(path: str | os.PathLike) -> str | None:
  """Scheme of a URL, "gs" for example; None for a local path."""
  match = _SCHEME.match(os.fspath(path))
  return match[1] if match else None


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is a URL of an object store."""
  return scheme_of(path) in STORES


def problem_of(path: str | os.PathLike) -> str | None:
  """Says what is expected instead of an unusable path; None for a usable path.

  Returns:
    Words for the end of "expected ..": the paths that are accepted, or the library that
    is missing or too old.
  """
  location = os.fspath(path)
  if "\0" in location:
    return "a path without the character NUL"
  scheme = scheme_of(location)
  if scheme is None:
    return None

  after_scheme = location.partition("://")[2]
  bucket = after_scheme.partition("/")[0]
  if scheme not in STORES or not bucket:
    return ACCEPTED
  return MISSING_LIBRARY.open()(scheme)


def to_path(path: str | os.PathLike) -> Path:
  """Path object of a local path or a URL; PathError if `problem_of` finds a problem."""
  if isinstance(path, epath.Path | pathlib.Path):
    return path
  if problem := problem_of(path):
    raise PathError(f"{os.fspath(path)}: expected {problem}")
  if scheme_of(path) is None:
    return pathlib.Path(path)
  return epath.Path(os.fspath(path))


def join(folder: str | os.PathLike, *names: str | os.PathLike) -> Path:
  """Path of a name in a folder; an absolute name or a URL replaces the folder."""
  for name in names:
    folder = name if scheme_of(name) else to_path(folder) / os.fspath(to_path(name))
  return to_path(folder)


def exists(path: str | os.PathLike) -> bool:
  """Whether there is a file or a folder; OSError for a bucket that can't be read."""
  if is_bucket(path):
    return _is_folder(path) is not None
  return os.path.exists(path)


def is_dir(path: str | os.PathLike) -> bool:
  """Whether there is a folder; OSError for a bucket that can't be read."""
  if is_bucket(path):
    return _is_folder(path) is True
  return os.path.isdir(path)


def is_file(path: str | os.PathLike) -> bool:
  """Whether there is a file; OSError for a bucket that can't be read."""
  if is_bucket(path):
    return _is_folder(path) is False
  return os.path.isfile(path)


def read_bytes(path: str | os.PathLike) -> bytes:
  """Content of a file; OSError if it can't be read.

  An object is read in one request; epath would make two.
  """
  if is_bucket(path):
    return store_of(path).cat_file(os.fspath(path))
  return local_copy(path).read_bytes()


def read_file(path: str | os.PathLike, error: type[Exception]) -> bytes:
  """Reads the content of a file; raises `error` if it can't be read."""
  try:
    return read_bytes(path)
  except OSError as cause:
    raise error(f"{path}: can't be read ({cause.strerror})") from cause


def read_text(path: str | os.PathLike, error: type[Exception]) -> str:
  """Reads UTF-8 text, with or without a byte order mark.

  Raises `error` if the file can't be read, or is not UTF-8.
  """
  try:
    return read_file(path, error).decode("utf-8-sig")
  except UnicodeDecodeError as cause:
    raise error(f"{path}: not UTF-8 text ({cause.reason})") from cause


def read_user_json(
  path: str | os.PathLike, error: type[Exception], **options: Any
) -> Any:
  """Reads a JSON file that a user wrote, which may have any content.

  Args:
    path: local file, or object of a bucket.
    error: type of the exception to raise.
    **options: options of `json.loads`.

  Returns:
    The JSON value.

  Raises:
    error: the file can't be read, or is not JSON. The message is one line.
  """
  content = read_file(path, error)
  try:
    return json.loads(content, **options)
  # ValueError: not JSON, not Unicode, or a number with thousands of digits.
  # RecursionError: thousands of brackets.
  except (ValueError, RecursionError) as cause:
    reason = printable(str(cause))
    raise error(f"{path}: not JSON ({reason})") from cause


def file_size(path: str | os.PathLike) -> int:
  """Size of a file, in bytes."""
  return epath.Path(path).stat().length


def store_of(path: str | os.PathLike) -> Any:
  """Client of a URL's object store, a class of `registry.STORES`."""
  scheme = scheme_of(path)
  return fsspec.filesystem("gcs" if scheme == "gs" else scheme)


def file_stamps(paths: Iterable[str | os.PathLike]) -> str:
  """Cache key of files that may change.

  The key holds the size and modification time of each local file, and the version of
  each object.
  """

  def stamp(path: str | os.PathLike) -> str:
    try:
      if is_bucket(path):
        return f"{path} {store_of(path).version_of(os.fspath(path))}"
      status = os.stat(path)
      return f"{path} {status.st_size} {status.st_mtime_ns}"
    except OSError:
      return f"{path} missing"

  with concurrent.futures.ThreadPoolExecutor(_STAMPS) as pool:
    return "\n".join(pool.map(stamp, paths))


def remove_folder(path: str | os.PathLike) -> None:
  """Removes a folder and its content; in a local folder, skips what can't be removed."""
  if is_bucket(path):
    epath.Path(path).rmtree(missing_ok=True)
  else:
    shutil.rmtree(path, ignore_errors=True)


def local_copy(path: str | os.PathLike) -> pathlib.Path:
  """Returns a local file with an object's content; returns a local path unchanged.

  Raises:
    OSError: the object can't be read, the copy can't be written, or the path is a
      device, a pipe or a socket, from which a read may never end.
  """
  if is_bucket(path):
    return store_of(path).local_copy(os.fspath(path))
  is_file_or_folder = os.path.isfile(path) or os.path.isdir(path)
  if os.path.exists(path) and not is_file_or_folder:
    raise OSError(errno.EINVAL, "a device or a pipe", os.fspath(path))
  return pathlib.Path(path)


def without_folders(value: Any) -> Any:
  """Returns a value; cuts absolute paths and URLs in its strings to their last name."""
  match value:
    case Mapping():
      return {key: without_folders(item) for key, item in value.items()}
    case list() | tuple():
      return [without_folders(item) for item in value]
    case str():
      return _FOLDERS.sub(r"\1", value)
    case _:
      return value


def cache_folder() -> pathlib.Path:
  """The project's folder in the user's cache folder, which outlives a run."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(base) / "pomp_jax"


def _is_folder(path: str | os.PathLike) -> bool | None:
  """Whether a URL is a folder; None if there is neither a folder nor an object."""
  try:
    return epath.Path(path).stat().is_directory
  except FileNotFoundError:
    return None
