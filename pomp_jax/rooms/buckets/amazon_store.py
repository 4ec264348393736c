"""Client for `s3://`: S3, and stores with S3's interface.

fsspec imports this file with the first such URL.
"""

import logging
import os
from typing import Any

from botocore.exceptions import ClientError, EndpointConnectionError
from s3fs import S3FileSystem
from s3fs.core import set_custom_error_handler

from pomp_jax.rooms.buckets.base_store import Objects
from pomp_jax.rooms.buckets.store_errors import translate

# s3fs would log a traceback for each failed try.
logging.getLogger("s3fs").setLevel(logging.CRITICAL)
_RETRIED = {429, 500, 502, 503, 504}


class AmazonStore(Objects, S3FileSystem):
  """s3fs with eleven tries of a request. The pauses grow from 0.1 s, to 29 s in all."""

  driver, retries = "s3", 11

  def __init__(self, *args: Any, **kwargs: Any):
    # One attempt: botocore's own retries would multiply with those of s3fs.
    once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    own = {"config_kwargs": once, "use_listings_cache": False}
    super().__init__(*args, **(own | kwargs))

  def key_value_store(self, folder: str) -> dict[str, Any]:
    """TensorStore's specification, with endpoint and keys of AWS's variables."""
    store = super().key_value_store(folder)
    env = os.environ
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
      store["endpoint"] = endpoint
      store["aws_region"] = (
        env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
      )
    if "AWS_ACCESS_KEY_ID" in env:
      # Use the variables alone. AWS's library would also look for files and services,
      # and print that they are missing.
      store["aws_credentials"] = {"type": "environment"}
    return store

  async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing: S3 has no folders, and s3fs would create a missing bucket."""


def _is_transient(error: Exception) -> bool:
  if isinstance(error, ClientError):
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _RETRIED
  return isinstance(error, EndpointConnectionError)


def _url_of(
  *args: Any, Bucket: str = "", Key: str = "", Prefix: str = "", **others: Any
) -> str:
  return f"{Bucket}/{Key or Prefix}"


set_custom_error_handler(_is_transient)
translate(AmazonStore, "s3", "call_s3", _url_of)
