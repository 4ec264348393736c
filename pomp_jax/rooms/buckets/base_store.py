"""Methods of both clients beyond fsspec's: folders, versions and local copies."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

from pomp_jax.files.paths import cache_folder, is_file

# TensorStore gives up a store that does not answer after half a minute, like the
# clients.
_RETRIES = {"max_retries": 5, "initial_delay": "1s", "max_delay": "16s"}


class Objects:
  """Methods of an `fsspec.AbstractFileSystem`, whose paths are URLs.

  Listings are not cached: other hosts would make them stale.
  """

  driver: str  # TensorStore's name of the store

  def key_value_store(self, folder: str) -> dict[str, Any]:
    """TensorStore's specification of a folder."""
    bucket, _, path = folder.partition("://")[2].partition("/")
    context = {f"{self.driver}_request_retries": _RETRIES}
    return {
      "driver": self.driver,
      "bucket": bucket,
      "path": f"{path}/",
      "context": context,
    }

  def entries(self: Any, folder: str) -> list[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder; OSError for a missing folder."""
    path = folder.partition("://")[2].rstrip("/")
    entries = []
    for row in self.ls(folder, detail=True):
      name = row["name"].rstrip("/").removeprefix(f"{path}/")
      # Some tools leave an empty object that is named like the folder.
      if name and name != path:
        entries.append((name, row["type"] == "directory"))
    return entries

  def why_unwritable(self: Any, folder: str) -> str | None:
    """Reason why a folder can't be written to; None if none is known."""
    bucket = "/".join(folder.split("/")[:3])
    try:
      self.info(bucket)
      return f"{folder} is a file; a folder is needed" if is_file(folder) else None
    except FileNotFoundError:
      return f"there is no bucket {bucket}"
    except OSError as error:
      return f"{error.filename}: {error.strerror}"

  def version_of(self: Any, url: str) -> str:
    """Version of an object, which each write changes: generation or ETag, and size."""
    facts = self.info(url)
    fields = ("generation", "ETag", "etag", "size")
    return " ".join(str(facts.get(field)) for field in fields)

  def local_copy(self: Any, url: str) -> pathlib.Path:
    """Copies an object into `~/.cache/pomp_jax/buckets`, unless a copy is there already.

    A record beside the copy has the object's version and the copy's SHA-256. The object
    is fetched again if it has another version or the copy is damaged.

    Args:
      url: the object.

    Returns:
      The copy, a file with the object's name.

    Raises:
      OSError: the object is missing or can't be read, or the answer is incomplete.
    """
    version = self.version_of(url)
    # Copy the files of a folder into one folder: a tokenizer is read from a folder.
    folder, _, name = url.rpartition("/")
    folder_key = hashlib.sha256(folder.encode()).hexdigest()[:32]
    copy = cache_folder() / "buckets" / folder_key / name
    record = copy.with_name(f".{copy.name}.json")

    # If the record or the copy can't be read, fetch the object.
    with contextlib.suppress(OSError, ValueError):
      stored = json.loads(record.read_text())
      if stored == [version, _sha256(copy)]:
        return copy

    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent) as temporary:
      download = pathlib.Path(temporary) / "content"
      self.get_file(url, str(download))
      if download.stat().st_size != self.size(url):
        raise OSError(errno.EIO, "incomplete answer of the store", url)
      digest = _sha256(download)
      # Atomic: other processes see the earlier copy or all of the new copy.
      os.replace(download, copy)
    record.write_text(json.dumps([version, digest]))
    return copy


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
