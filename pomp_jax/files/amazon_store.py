"""Client of S3 and stores with its interface for `s3://`. Imported by fsspec with the first one."""

from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pomp_jax.files.store_errors import translate_methods, translated

# Attempts of a request; pauses double from at most 1 s to at most 20 s.
_ATTEMPTS = 8


class AmazonStore(S3FileSystem):
  """s3fs, without its cache of listings, which other hosts make stale.

  Region, credentials and endpoint are those of AWS's environment variables and files.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    """As s3fs's."""
    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    kwargs |= {"use_listings_cache": False, "config_kwargs": {"retries": retries}}
    super().__init__(*args, **kwargs)

  async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
    """Does nothing: there are no folders, and s3fs would create a missing bucket."""

  async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing."""


def _url_of_call(method: str, *args: Any, **kwargs: Any) -> str:
  return f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key') or kwargs.get('Prefix') or ''}"


translate_methods(AmazonStore, "s3")
AmazonStore._call_s3 = translated(AmazonStore._call_s3, _url_of_call)
AmazonStore.call_s3 = sync_wrapper(AmazonStore._call_s3)
