"""Client of S3 and stores with its interface for `s3://`. Imported by fsspec with
the first one."""

import logging
import os
from typing import Any

from botocore.exceptions import ClientError, EndpointConnectionError
from s3fs import S3FileSystem
from s3fs.core import set_custom_error_handler

from pomp_jax.rooms.buckets.objects import Objects
from pomp_jax.rooms.buckets.store_errors import translate

logging.getLogger("s3fs").setLevel(logging.CRITICAL)  # a traceback for each failed try
_RETRIED = {429, 500, 502, 503, 504}


class AmazonStore(Objects, S3FileSystem):
  """s3fs, which tries a request eleven times, with pauses from 0.1 s on: 29 s in
  all."""

  driver, retries = "s3", 11

  def __init__(self, *args: Any, **kwargs: Any):
    # botocore's own attempts would multiply with those.
    once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    own = {"config_kwargs": once, "use_listings_cache": False}
    super().__init__(*args, **(own | kwargs))

  def key_value_store(self, folder: str) -> dict[str, Any]:
    """Endpoint and keys are those of AWS's variables."""
    store = super().key_value_store(folder)
    env = os.environ
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
      store["endpoint"] = endpoint
      store["aws_region"] = (
        env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
      )
    if "AWS_ACCESS_KEY_ID" in env:
      # Without looking for files and services, whose absence AWS's library prints.
      store["aws_credentials"] = {"type": "environment"}
    return store

  async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing: there are no folders, and s3fs would create a missing bucket."""


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
