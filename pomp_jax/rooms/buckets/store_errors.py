"""Translates errors of object stores to OSErrors with errno, reason and URL."""

from collections.abc import Callable
import errno
import functools
import os
from typing import Any

from fsspec.asyn import sync_wrapper

# Methods of fsspec's asynchronous file systems whose first argument is a path or a list
# of paths.
_PATH_METHODS = (
  "info",
  "ls",
  "cat_file",
  "pipe_file",
  "get_file",
  "put_file",
  "cp_file",
  "rm",
)


def store_error(error: Exception, url: str) -> OSError:
  """Returns the OSError of a failed request.

  The errno makes it a FileNotFoundError for status 404, and a PermissionError for 401
  and 403.
  """
  reason = getattr(error, "strerror", None) or " ".join(f"{error}".split())[:200]
  number = getattr(error, "errno", None)
  is_denied = (
    isinstance(error, PermissionError)
    or reason.startswith("Forbidden")
    or getattr(error, "code", None) in (401, 403)
  )
  if isinstance(error, FileNotFoundError):
    number = errno.ENOENT
    reason = os.strerror(number)
  elif isinstance(error, FileExistsError):
    number = errno.EEXIST
    reason = os.strerror(number)
  elif is_denied:
    number = errno.EACCES
    reason = f"access denied: {reason.removeprefix('access denied: ')}"
  elif not number:
    number = errno.EIO
    reason = f"{type(error).__name__}: {reason}"
  return OSError(number, reason, url)


def translate(
  store: type, scheme: str, request: str, url_of_request: Callable[..., str]
) -> None:
  """Makes a file system raise `store_error` for each request that fails.

  Replaces the methods of _PATH_METHODS, and `request`, which all other methods call.

  Args:
    store: class of the file system. Its asynchronous methods are replaced, and so are
      their synchronous twins.
    scheme: scheme of the store's URLs.
    request: name of the method that sends a request.
    url_of_request: finds the URL among the arguments of `request`.
  """
  url_functions: dict[str, Callable[..., str]] = {}
  for name in _PATH_METHODS:
    url_functions[name] = _first_path
  url_functions[request] = url_of_request
  for name, url_of in url_functions.items():
    # In fsspec the asynchronous twin of `info` is `_info`.
    asynchronous = _translated(getattr(store, f"_{name}"), scheme, url_of)
    setattr(store, f"_{name}", asynchronous)
    setattr(store, name, sync_wrapper(asynchronous))


def _first_path(path: Any, *_: Any, **__: Any) -> Any:
  """Returns a method's first argument: its path, or the first of a list of paths."""
  if isinstance(path, list) and path:
    return path[0]
  return path


def _translated(method: Callable, scheme: str, url_of: Callable[..., str]) -> Callable:
  """Wraps an asynchronous method: its errors become `store_error`s with the URL.

  Args:
    method: method of a file system.
    scheme: scheme of the file system's URLs.
    url_of: finds the path or URL among the arguments of the method.
  """

  @functools.wraps(method)
  async def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return await method(self, *args, **kwargs)
    except (NotImplementedError, TypeError):
      # The call was wrong; the store has not answered.
      raise
    except Exception as error:
      path = str(url_of(*args, **kwargs)).removeprefix(f"{scheme}://")
      raise store_error(error, f"{scheme}://{path}") from error

  return translated
