"""Errors of object stores as OSErrors with errno, reason and URL."""

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
  """The OSError of a failed request.

  It is FileNotFoundError for 404, and PermissionError for 401 and 403.
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
  """Makes the methods of a file system that send requests raise `store_error`.

  All methods that the list of paths lacks call the method `request`.

  Args:
    store: class of the file system, whose methods are replaced.
    scheme: scheme of its URLs.
    request: name of the method that sends a request.
    url_of_request: finds the URL among the arguments of `request`.
  """
  first = lambda path, *_, **__: path[0] if path and isinstance(path, list) else path
  url_of = dict.fromkeys(_PATH_METHODS, first) | {request: url_of_request}
  for name in url_of:
    method = _translated(getattr(store, f"_{name}"), scheme, url_of[name])
    setattr(store, f"_{name}", method)
    setattr(store, name, sync_wrapper(method))


def _translated(method: Callable, scheme: str, url_of: Callable[..., str]) -> Callable:
  @functools.wraps(method)
  async def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return await method(self, *args, **kwargs)
    except (NotImplementedError, TypeError):
      raise
    except Exception as error:
      path = str(url_of(*args, **kwargs)).removeprefix(f"{scheme}://")
      raise store_error(error, f"{scheme}://{path}") from error

  return translated
