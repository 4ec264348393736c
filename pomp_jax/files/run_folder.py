"""A run's folder: the same names in every run, and JSON that is never half written."""

from collections.abc import Iterator
import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import InputError, RunError
from pomp_jax.files.atomic import replacing, why_unwritable
from pomp_jax.files.events import EventWriter, read_scalars


class RunFolderError(InputError, RuntimeError):
  """A run's folder, or a file in it, that can't be used; one line that names it."""


class RunFolderWriteError(RunFolderError):
  """What can be used can't be written: a full disk, a permission lost; something may be there."""

  status = RunError.status


class RunFolder:
  """Where everything of one run lies.

  Making the object touches nothing; `create` does.

  Attributes:
    path: the folder itself (`--workdir`); it holds the TensorBoard events too.
    config: `config.json`, the whole configuration.
    checkpoints: `checkpoints/`.
    prompt: `prompt.npz`, the learned prompt.
    results: `results.json`, the figures of a finished run.
    plots: `plots/`, PNG files.
    sets: `sets/`, of an evaluation: every figure of a data set in a file.
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
    """Finds out whether `create` can succeed, and writes nothing.

    Of several processes only the first needs the folder; the others may be on hosts without it.

    Args:
      job: whose folder it is to be; None: whose it was is not asked.

    Raises:
      RunFolderError: the path is not a folder, neither it nor the place for it is writable, or the
        run of another job is there, whose results would be replaced.
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
          f"workdir {self.path}: its {file.name} is of job={found!r}; job={job!r} takes a folder of"
          " its own"
        )

  def create(self) -> None:
    """Makes the folder and `plots/`, unless they exist.

    Raises:
      RunFolderError: as `check`, of any job.
      RunFolderWriteError: they can't be made.
    """
    self.check()
    try:
      self.plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunFolderWriteError(f"workdir {self.path}: can't be made ({error.strerror})") from error

  def events(self, first_step: int = 0) -> EventWriter:
    """Opens the TensorBoard events to write from `first_step` on; older ones from there are void.

    Raises:
      RunFolderWriteError: the file can't be written.
    """
    try:
      return EventWriter(self.path, first_step)
    except OSError as error:
      raise RunFolderWriteError(f"{self.path}: can't write events ({error.strerror})") from error

  def scalars(self) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar logged so far, over all starts of this run."""
    return read_scalars(self.path)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Makes one line of a failure to write, on a full disk say.

  Args:
    path: the file or folder that is written, for the message.

  Raises:
    RunFolderWriteError: in the place of an OSError.
  """
  try:
    yield
  except OSError as error:
    # NumPy's, of an array that is cut short, has no errno.
    reason = error.strerror or error
    raise RunFolderWriteError(f"{path}: can't be written ({reason})") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, whole or not at all, keys in the order that they have.

  Args:
    path: the file; replaced when it exists.
    value: dicts, lists, tuples, strings, numbers, bools, None; also paths, and NumPy and JAX arrays
      and scalars. NaN and infinities, which JSON does not have, become null.

  Raises:
    TypeError: something else is in it; the line names the field.
    RunFolderWriteError: the file can't be written.
  """
  with writing(path), replacing(path) as file:
    file.write(to_json(value, Path(path).name).encode())


def to_json(value: Any, name: str) -> str:
  """The text of a JSON file, see `write_json`; `name` is the file's, for messages."""
  text = json.dumps(_plain(value, name), indent=2, allow_nan=False, ensure_ascii=False)
  return f"{text}\n"


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
  """What a JSON file holds if it holds a dict whose `key` is this one; else None.

  Raises:
    RunFolderError: it is there, and can't be read or is not JSON.
  """
  stored = read_json(path) if Path(path).exists() else None
  return stored if isinstance(stored, dict) and stored.get("key") == key else None


def _plain(value: Any, field: str) -> Any:
  """`value` in JSON's own types; `field` says where we are, for the message."""
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, dict):
    for key in value:
      if not isinstance(key, str):
        raise TypeError(f"{field}: key {key!r} is a {type(key).__name__}; JSON takes strings")
    return {key: _plain(inner, f"{field}.{key}") for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner, f"{field}[{index}]") for index, inner in enumerate(value)]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
    return _plain(np.asarray(value).tolist(), field)
  raise TypeError(f"{field}: a {type(value).__name__} can't be written as JSON")
