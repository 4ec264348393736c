"""Errors of object stores as OSErrors with errno, reason and URL."""

from collections.abc import Callable
import errno
import functools
import os
from typing import Any

# Methods of fsspec's asynchronous file systems whose first argument is a path.
PATH_METHODS = (
  "_info",
  "_ls",
  "_cat_file",
  "_pipe_file",
  "_get_file",
  "_put_file",
  "_cp_file",
  "_rm_file",
  "_rm",
)


def store_error(error: Exception, url: str) -> OSError:
  """The OSError of a failed request: FileNotFoundError for 404, PermissionError for 401 and 403."""
  if isinstance(error, OSError) and error.errno and error.filename:
    if not str(error.filename).startswith("http"):
      return error
    # gcsfs uploads to the address of a service.
    return type(error)(error.errno, error.strerror, url)
  reason = " ".join(f"{error}".split()) or type(error).__name__
  if isinstance(error, FileNotFoundError):
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
  if isinstance(error, FileExistsError):
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), url)
  status = getattr(error, "code", None)
  if isinstance(error, PermissionError) or reason.startswith("Forbidden") or status in (401, 403):
    return PermissionError(errno.EACCES, f"access denied: {reason[:200]}", url)
  return OSError(errno.EIO, f"{type(error).__name__}: {reason[:200]}", url)


def translated(method: Callable, url_of: Callable[..., str]) -> Callable:
  """An asynchronous method that raises `store_error`; `url_of` gets its arguments."""

  @functools.wraps(method)
  async def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return await method(self, *args, **kwargs)
    except (NotImplementedError, TypeError):
      raise
    except Exception as error:
      found = store_error(error, url_of(*args, **kwargs))
      if found is error:
        raise
      raise found from error

  return wrapped


def translate_methods(store: type, scheme: str) -> None:
  """Wraps the methods of a file system that take a path first."""

  def url_of(path: Any, *args: Any, **kwargs: Any) -> str:
    path = path[0] if isinstance(path, list) and path else path
    return path if str(path).startswith(f"{scheme}://") else f"{scheme}://{path}"

  for name in PATH_METHODS:
    setattr(store, name, translated(getattr(store, name), url_of))
