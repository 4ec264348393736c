"""Client of Google Cloud Storage for `gs://`. Imported by fsspec with the first such
path."""

import logging
from typing import Any

from gcsfs.core import GCSFileSystem

from pomp_jax.rooms.buckets.objects import Objects
from pomp_jax.rooms.buckets.store_errors import translate

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback for each failed try
_SECONDS = 300  # of a request; without a limit a lost connection blocks for ever


class GoogleStore(Objects, GCSFileSystem):
  """gcsfs, which tries a request six times, with pauses of 1, 2, 4, 8 and 16 s."""

  driver = "gcs"

  def __init__(self, *args: Any, finalize_on_close: bool = False, **kwargs: Any):
    # epath's argument is one of zonal buckets, which are not supported.
    own = {"requests_timeout": _SECONDS, "use_listings_cache": False}
    super().__init__(*args, **(own | kwargs))


def _url_of(method: str, path: str, *parts: str, **others: Any) -> str:
  return "/".join(filter(None, parts)) or path


translate(GoogleStore, "gs", "call", _url_of)
