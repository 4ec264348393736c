"""Client of Google Cloud Storage for `gs://`. Imported by fsspec with the first such path."""

from typing import Any

from fsspec.asyn import sync_wrapper
from gcsfs.core import GCSFileSystem

from pomp_jax.files.store_errors import translate_methods, translated

_SECONDS = 300  # of a request; without a limit a lost connection blocks for ever


class GoogleStore(GCSFileSystem):
  """gcsfs, without its cache of listings, which other hosts make stale.

  The library tries a request six times, with pauses of 1, 2, 4, 8 and 16 s.
  """

  def __init__(self, *args: Any, finalize_on_close: bool = False, **kwargs: Any):
    """As gcsfs's. The argument of epath is one of zonal buckets, which are not supported."""
    kwargs |= {"use_listings_cache": False, "requests_timeout": _SECONDS}
    super().__init__(*args, **kwargs)

  async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
    """Does nothing: there are no folders, and a missing bucket is none of ours to create."""

  async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing."""


def _url_of_call(method: str, path: str, *args: str, **kwargs: Any) -> str:
  return f"gs://{'/'.join(filter(None, args))}" if args else path


translate_methods(GoogleStore, "gs")
GoogleStore._call = translated(GoogleStore._call, _url_of_call)
GoogleStore.call = sync_wrapper(GoogleStore._call)
