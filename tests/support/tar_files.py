"""Tar files as data sets are distributed in."""

from collections.abc import Mapping
import io
import tarfile


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
  """A tar file of members, in their order."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()
