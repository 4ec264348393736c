"""Errors of object stores as OSErrors with errno, reason and URL."""

from collections.abc import Callable
import errno
import functools
import os
from typing import Any

from fsspec.asyn import sync_wrapper

# Methods of fsspec's asynchronous file systems whose first argument is a path or a list of paths.
_PATH_METHODS = ("info", "ls", "cat_file", "pipe_file", "get_file", "put_file", "cp_file", "rm")


def store_error(error: Exception, url: str) -> OSError:
  """The OSError of a failed request: FileNotFoundError for 404, PermissionError for 401 and 403."""
  reason = getattr(error, "strerror", None) or " ".join(f"{error}".split())[:200]
  number, status = getattr(error, "errno", None), getattr(error, "code", None)
  if isinstance(error, FileNotFoundError | FileExistsError):
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EEXIST
    reason = os.strerror(number)
  elif isinstance(error, PermissionError) or reason.startswith("Forbidden") or status in (401, 403):
    number = errno.EACCES
    reason = f"access denied: {reason.removeprefix('access denied: ')}"
  elif not number:
    number, reason = errno.EIO, f"{type(error).__name__}: {reason}"
  return OSError(number, reason, url)


def translate(store: type, scheme: str, request: str, url_of_request: Callable[..., str]) -> None:
  """Makes the methods of a file system that send requests raise `store_error`.

  Args:
    store: class of the file system.
    scheme: scheme of its URLs.
    request: name of the method that all others call.
    url_of_request: gets the arguments of that method.
  """
  for name in _PATH_METHODS:
    _translate(store, scheme, name, lambda path, *_, **__: path[0] if _is_list(path) else path)
  _translate(store, scheme, request, url_of_request)


def _translate(store: type, scheme: str, name: str, url_of: Callable[..., str]) -> None:
  method = getattr(store, f"_{name}")

  @functools.wraps(method)
  async def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return await method(self, *args, **kwargs)
    except (NotImplementedError, TypeError):
      raise
    except Exception as error:
      path = str(url_of(*args, **kwargs)).removeprefix(f"{scheme}://")
      raise store_error(error, f"{scheme}://{path}") from error

  setattr(store, f"_{name}", translated)
  setattr(store, name, sync_wrapper(translated))


def _is_list(path: object) -> bool:
  return isinstance(path, list) and bool(path)
