"""A sign in a run's folder that a start of the run is alive, for starts that come meanwhile.

`alive.json` says which process it is. Its process holds a lock on the file, which the kernel lets
go when the process ends in any way, and touches it every few seconds. The lock decides between
processes of one host, and of several where the file system shares locks; elsewhere a fresh
time stamp does, so that a host that died is called alive for `_FRESH_SECONDS` at most.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
from pathlib import Path
import socket
import tempfile
import threading
from typing import TextIO

from pomp_jax.files.quoting import printable

log = logging.getLogger(__name__)

_NAME = "alive.json"
_BEAT_SECONDS = 5.0
_FRESH_SECONDS = 30.0


class Presence(contextlib.AbstractContextManager):
  """Marks a folder as that of a living start, as soon as it exists; warns of another that lives.

  The folder is the later start's, as its checkpoints are. Where the mark can't be read or written
  there is none, and the run goes on without.
  """

  def __init__(self, folder: str | os.PathLike):
    """Touches nothing.

    Args:
      folder: of the run.
    """
    self._path = Path(folder) / _NAME
    self._file: TextIO | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

  def __enter__(self) -> "Presence":
    self._look_after()
    self._thread.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._ended.set()
    self._thread.join(_BEAT_SECONDS)
    if self._file is not None:
      with contextlib.suppress(OSError):
        if self._is_own():
          self._path.unlink()
      self._file.close()

  def _keep(self) -> None:
    # Until there is a folder, it may be made at any moment.
    while not self._ended.wait(1.0 if self._file is None else _BEAT_SECONDS):
      if not self._look_after():
        return

  def _look_after(self) -> bool:
    """Makes the mark, or renews it; whether to come again."""
    try:
      if self._file is None:
        if self._path.parent.is_dir():
          self._make()
      elif self._is_own():
        os.utime(self._file.fileno())
      else:
        log.warning("%s: ANOTHER START of it has begun (%s)", self._path.parent, self._who())
        return False
    except (OSError, ValueError):
      # A folder that is not writable, or moved; a mark that is damaged.
      return self._file is not None
    return True

  def _is_own(self) -> bool:
    """Whether no later start has put its mark in the place of this one's."""
    return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))

  def _make(self) -> None:
    with contextlib.ExitStack() as stack:
      descriptor, temporary = tempfile.mkstemp(".tmp", f".{_NAME}.", self._path.parent)
      stack.callback(_remove, temporary)
      file = stack.enter_context(os.fdopen(descriptor, "w"))
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      since = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
      json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": since}, file)
      file.flush()
      # The file system's clock, which may be another machine's.
      if self._other_is_alive(os.fstat(descriptor).st_mtime):
        log.warning(
          "%s: ANOTHER START of it is alive (%s). This one takes the folder over; end the other",
          *(self._path.parent, self._who()),
        )
      os.replace(temporary, self._path)
      stack.pop_all()
      self._file = file

  def _other_is_alive(self, now: float) -> bool:
    try:
      with self._path.open("r+") as file:
        locks = True
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          return True
        except OSError:
          locks = False
        found = json.load(file)
        host, _, _ = (found[name] for name in ("host", "process", "since"))
        age = now - os.fstat(file.fileno()).st_mtime
        return not (locks and host == socket.gethostname()) and age < _FRESH_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
      return False

  def _who(self) -> str:
    try:
      found = json.loads(self._path.read_text())
      return printable(f"process {found['process']} on {found['host']}, since {found['since']}")
    except (OSError, ValueError, KeyError, TypeError):
      return "which one can't be read"


def _remove(path: str) -> None:
  with contextlib.suppress(OSError):
    os.unlink(path)
