"""Client of S3 and stores with its interface for `s3://`. Imported by fsspec with the first one."""

from typing import Any

from botocore.exceptions import ClientError, EndpointConnectionError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import set_custom_error_handler

from pomp_jax.files.store_errors import translate_methods, translated

_RETRIED = {429, 500, 502, 503, 504}


class AmazonStore(S3FileSystem):
  """s3fs, without its cache of listings, which other hosts make stale.

  It tries a request eleven times, with pauses from 0.1 s on that grow by 1.7, 29 s in all. Region,
  credentials and endpoint are those of AWS's environment variables and files.
  """

  retries = 11

  def __init__(self, *args: Any, **kwargs: Any):
    """As s3fs's."""
    # botocore's own attempts would multiply with those.
    once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    kwargs |= {"use_listings_cache": False, "config_kwargs": once}
    super().__init__(*args, **kwargs)

  async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
    """Does nothing: there are no folders, and s3fs would create a missing bucket."""

  async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing."""


def _is_transient(error: Exception) -> bool:
  if isinstance(error, ClientError):
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _RETRIED
  return isinstance(error, EndpointConnectionError)


def _url_of_call(method: str, *args: Any, **kwargs: Any) -> str:
  return f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key') or kwargs.get('Prefix') or ''}"


translate_methods(AmazonStore, "s3")
AmazonStore._call_s3 = translated(AmazonStore._call_s3, _url_of_call)
AmazonStore.call_s3 = sync_wrapper(AmazonStore._call_s3)
set_custom_error_handler(_is_transient)
