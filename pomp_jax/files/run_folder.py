"""A run's folder: its file names, its JSON files, and the mark of the process that uses it.

`alive.json` names the process that uses the folder. That process holds a lock on the file, which
the kernel releases when the process ends, and touches it every few seconds. The lock decides
between processes of one host, and between hosts whose file system shares locks. Elsewhere the time
stamp decides: a host that died counts as alive for up to `_FRESH_SECONDS`.
"""

from collections.abc import Iterator
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
from typing import Any, TextIO

import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import InputError, RunError
from pomp_jax.files.atomic import replacing, why_unwritable
from pomp_jax.files.metrics_log import read_metrics
from pomp_jax.files.terminal import printable

log = logging.getLogger(__name__)

_BEAT_SECONDS = 5.0
_FRESH_SECONDS = 30.0


class RunFolderError(InputError, RuntimeError):
  """A run's folder, or a file in it, that can't be used; one line that names it."""


class RunFolderWriteError(RunFolderError):
  """A failed write: a full disk or a lost permission."""

  status = RunError.status


class RunFolder:
  """Paths of one run. Only `create` touches the disk.

  Attributes:
    path: the folder itself (`--workdir`), which also holds the metrics.
    config: `config.json`, the whole configuration.
    checkpoints: `checkpoints/`.
    prompt: `prompt.npz`, the learned prompt.
    results: `results.json`, the results of a finished run.
    plots: `plots/`, PNG files.
    sets: `sets/`, an evaluation's results, one file per data set.
  """

  def __init__(self, workdir: str | os.PathLike):
    self.path = Path(workdir)
    self.config = self.path / "config.json"
    self.checkpoints = self.path / "checkpoints"
    self.prompt = self.path / "prompt.npz"
    self.results = self.path / "results.json"
    self.plots = self.path / "plots"
    self.sets = self.path / "sets"

  def check(self, job: str | None = None) -> None:
    """Checks that `create` can succeed; writes nothing.

    With several processes only the first needs the folder.

    Args:
      job: name of the job that will use the folder; None: any.

    Raises:
      RunFolderError: the path is not a folder, it can't be created or written to, or it holds the
        run of another job, whose results would be replaced.
    """
    if not hosts.is_first():
      return
    if problem := why_unwritable(self.path):
      raise RunFolderError(f"workdir {self.path}: {problem}")
    for file in (self.config, self.results) if job else ():
      stored = read_json(file) if file.exists() else {"job": job}
      found = stored.get("job") if isinstance(stored, dict) else None
      if found != job:
        raise RunFolderError(
          f"workdir {self.path}: {file.name} is of job={found!r}; job={job!r} needs another workdir"
        )

  def create(self) -> None:
    """Creates the folder and `plots/`, unless they exist.

    Raises:
      RunFolderError: see `check`.
      RunFolderWriteError: they can't be created.
    """
    self.check()
    try:
      self.plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunFolderWriteError(
        f"workdir {self.path}: can't be created ({error.strerror})"
      ) from error

  def scalars(self) -> dict[str, tuple[list[int], list[float]]]:
    """Reads steps and values of every scalar logged so far, over all starts of this run."""
    return read_metrics(self.path)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError into one line.

  Args:
    path: file or folder that is written, for the message.

  Raises:
    RunFolderWriteError: a write failed, on a full disk for example.
  """
  try:
    yield
  except OSError as error:
    # NumPy's error for an array that is cut short has no errno.
    reason = error.strerror or error
    raise RunFolderWriteError(f"{path}: can't be written ({reason})") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file atomically; keys keep their order.

  Args:
    path: file, replaced when it exists.
    value: dicts, lists, tuples, strings, numbers, bools, None, paths, NumPy and JAX arrays and
      scalars. NaN and infinities, which JSON does not have, become null.

  Raises:
    TypeError: any other type.
    RunFolderWriteError: the file can't be written.
  """
  with writing(path), replacing(path) as file:
    file.write(to_json(value).encode())


def to_json(value: Any) -> str:
  """Formats the text of a JSON file, see `write_json`."""
  plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
  return f"{json.dumps(plain, indent=2, ensure_ascii=False)}\n"


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    RunFolderError: it is missing, can't be read, or is not JSON.
  """
  try:
    return json.loads(Path(path).read_bytes().decode())
  except OSError as error:
    raise RunFolderError(f"{path}: can't be read ({error.strerror})") from error
  except (ValueError, RecursionError) as error:
    raise RunFolderError(f"{path}: not JSON ({error}); remove or repair it") from error


def read_keyed(path: str | os.PathLike, key: str) -> dict[str, Any] | None:
  """Reads a JSON object whose field `key` has this value; None if there is no such file.

  Raises:
    RunFolderError: the file exists, but can't be read or is not JSON.
  """
  stored = read_json(path) if Path(path).exists() else None
  return stored if isinstance(stored, dict) and stored.get("key") == key else None


def _plain(value: Any) -> Any:
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "__array__"):
    return np.asarray(value).tolist()
  raise TypeError(f"a {type(value).__name__} can't be written as JSON")


class Presence(contextlib.AbstractContextManager):
  """Marks a run's folder as in use as soon as it exists; warns of another process that uses it.

  The later process owns the folder and its checkpoints. Where the mark can't be read or written,
  the run continues without one.
  """

  def __init__(self, folder: str | os.PathLike):
    """Touches nothing yet."""
    self._path = Path(folder) / "alive.json"
    self._file: TextIO | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._renew_until_end, name="presence", daemon=True)

  def __enter__(self) -> "Presence":
    self._renew()
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

  def _renew_until_end(self) -> None:
    # The run may create the folder at any time.
    while not self._ended.wait(1.0 if self._file is None else _BEAT_SECONDS):
      if not self._renew():
        return

  def _renew(self) -> bool:
    """Creates or touches the mark; returns whether to repeat."""
    try:
      if self._file is None:
        if self._path.parent.is_dir():
          self._create_mark()
      elif self._is_own():
        os.utime(self._file.fileno())
      else:
        log.warning("%s: ANOTHER START of it has begun (%s)", self._path.parent, self._owner())
        return False
    except (OSError, ValueError):  # a folder that is not writable or was moved; a damaged mark
      return self._file is not None
    return True

  def _is_own(self) -> bool:
    """Whether the mark is still this process's."""
    return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))

  def _create_mark(self) -> None:
    with contextlib.ExitStack() as stack:
      descriptor, temporary = tempfile.mkstemp(".tmp", f".{self._path.name}.", self._path.parent)
      stack.callback(Path(temporary).unlink, missing_ok=True)
      file = stack.enter_context(os.fdopen(descriptor, "w"))
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      since = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
      json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": since}, file)
      file.flush()
      # The clock of the file system, which may be another machine's.
      if self._other_is_alive(os.fstat(descriptor).st_mtime):
        log.warning(
          "%s: ANOTHER START of it is alive (%s). This one takes the folder over; end the other",
          *(self._path.parent, self._owner()),
        )
      os.replace(temporary, self._path)
      stack.pop_all()
      self._file = file

  def _other_is_alive(self, now: float) -> bool:
    try:
      with self._path.open("r+") as file:
        has_locks = True
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          return True
        except OSError:
          has_locks = False
        found = json.load(file)
        host, _, _ = (found[name] for name in ("host", "process", "since"))
        age = now - os.fstat(file.fileno()).st_mtime
        return not (has_locks and host == socket.gethostname()) and age < _FRESH_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
      return False

  def _owner(self) -> str:
    try:
      found = json.loads(self._path.read_text())
      return printable(f"process {found['process']} on {found['host']}, since {found['since']}")
    except (OSError, ValueError, KeyError, TypeError):
      return "its mark can't be read"
