"""Disks that are full or fail, wherever in a chain of errors it shows."""

import errno
import re

_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# How C++ libraries, and NumPy where a write is cut short, put it.
_TEXTS = re.compile(r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written")


def disk_failure(error: BaseException) -> str | None:
  """One line for an error that a disk is the cause of; None for any other.

  Args:
    error: it, or one that was raised from it or while it was dealt with.
  """
  seen: set[int] = set()
  link: BaseException | None = error
  while link is not None and id(link) not in seen:
    seen.add(id(link))
    if isinstance(link, OSError) and link.errno in _FAILURES:
      where = f"{link.filename}: " if link.filename else ""
      return f"{where}the disk fails ({link.strerror})"
    if found := _TEXTS.search(str(link)):
      return f"the disk fails ({found[0]})"
    link = link.__cause__ or link.__context__
  return None
