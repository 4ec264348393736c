"""Client for `gs://`: Google Cloud Storage.

fsspec imports this file with the first such URL.
"""

import logging
from typing import Any

from gcsfs.core import GCSFileSystem

from pomp_jax.rooms.buckets.base_store import Objects
from pomp_jax.rooms.buckets.store_errors import translate

# gcsfs would log a traceback for each failed try.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
_SECONDS = 300  # limit of a request; without it a lost connection blocks for ever


class GoogleStore(Objects, GCSFileSystem):
  """gcsfs with six tries of a request, and pauses of 1, 2, 4, 8 and 16 s."""

  driver = "gcs"

  def __init__(self, *args: Any, finalize_on_close: bool = False, **kwargs: Any):
    # epath passes `finalize_on_close` for zonal buckets, which are not supported.
    own = {"requests_timeout": _SECONDS, "use_listings_cache": False}
    super().__init__(*args, **(own | kwargs))


def _url_of(method: str, path: str, *parts: str, **others: Any) -> str:
  return "/".join(filter(None, parts)) or path


translate(GoogleStore, "gs", "call", _url_of)
