"""A run's folder: its file names and its JSON files."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import logging
import math
import os
from typing import Any
import zlib

import numpy as np

from pomp_jax import hosts
from pomp_jax.errors import InputError, RunError, TryAgain
from pomp_jax.files.atomic import disk_failure, why_unwritable, write_file
from pomp_jax.files.paths import Path, exists, is_dir, read_file, to_path
from pomp_jax.files.provenance import provenance
from pomp_jax.files.terminal import one_line, printable
from pomp_jax.hooks import DASSL_PROMPT

log = logging.getLogger(__name__)

_CHECKSUM = "checksum"
_PROVENANCE = "provenance"
# Members of class_names.json, and the version that is written.
_VERSION = "format_version"
CLASS_NAMES = "names"
CLASSES_VERSION = 1
ERROR = "error.txt"  # in a run's folder: why its last start failed, one line


class RunFolderError(InputError, RuntimeError):
  """A run's folder, or a file in it, can't be used; the message is one line."""


class DamagedFileError(RunFolderError):
  """A file whose content is not what was written."""


class RunFolderWriteError(RunFolderError):
  """A failed write: a full disk or a lost permission."""

  status = RunError.status


class RunFolder:
  """Paths in one run's folder, `path` (`--workdir`).

  docs/reference/formats.md describes the files.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Names the files; nothing is read or written yet."""
    self.path: Path = to_path(workdir)
    self.config = self.path / "config.json"
    self.checkpoints = self.path / "checkpoints"
    self.metrics = self.path / "metrics.jsonl"
    self.results = self.path / "results.json"
    self.plots = self.path / "plots"

    self.prompt = self.path / "prompt.npz"
    # Prompts that were not selected: those of the last and of the best checkpoint, and
    # the learned prompt (`trained`) if prompt.npz holds sentences or a mixture with
    # sentences.
    self.other_prompts = {
      "last": self.path / "prompt_last.npz",
      "best": self.path / "prompt_best.npz",
      "trained": self.path / "prompt_trained.npz",
    }
    # Names of the classes that the prompt was trained on.
    self.class_names = self.path / "class_names.json"
    # Validation accuracy of the sentences in `prompt.candidates`.
    self.candidates = self.path / "candidates.json"

    # Folders of the job evaluate: results of its sets, and image features.
    self.sets = self.path / "sets"
    self.features = self.path / "features"

  def check(self, job: str | None = None) -> None:
    """Checks, on the first process, that `create` can succeed; writes nothing.

    Raises:
      RunFolderError: the folder can't be created or written to, or it holds the run of
        another job than `job`.
    """
    if not hosts.is_first():
      return
    if problem := why_unwritable(self.path):
      raise RunFolderError(f"workdir {self.path}: {problem}")
    if job is None:
      return
    for file in (self.config, self.results):
      if not exists(file):
        continue
      stored = read_json(file)
      stored_job = stored.get("job") if isinstance(stored, dict) else None
      if stored_job != job:
        raise RunFolderError(
          f"workdir {self.path}: {file.name} is of job={stored_job!r};"
          f" job={job!r} needs another workdir"
        )

  def create(self, config: Mapping[str, Any] | None = None) -> None:
    """Creates the folder unless it exists, and writes its config.json.

    Errors are those of `check` and `writing`.
    """
    self.check()
    with writing(f"workdir {self.path}"):
      self.path.mkdir(parents=True, exist_ok=True)
    if config is not None:
      write_json(self.config, config)

  def write_results(self, results: dict[str, Any]) -> None:
    """Writes `results.json` with its provenance; RunFolderWriteError if that fails."""
    if _PROVENANCE not in results:
      results = with_provenance(results)
    write_json(self.results, results)

  def read_results(self) -> dict[str, Any] | None:
    """Reads `results.json` without its provenance; None if there is no such file.

    RunFolderError if the file can't be read, or holds no JSON object.
    """
    if not exists(self.results):
      return None
    stored = read_json(self.results)
    if not isinstance(stored, dict):
      raise RunFolderError(f"{self.results}: not a JSON object; remove or repair it")
    return {key: value for key, value in stored.items() if key != _PROVENANCE}

  def write_classes(self, names: Sequence[str]) -> None:
    """Writes `class_names.json` with a checksum; RunFolderWriteError if that fails."""
    write_json(self.class_names, {_VERSION: CLASSES_VERSION, CLASS_NAMES: tuple(names)})

  def finished(self, **facts: Any) -> dict[str, Any] | None:
    """Results of a finished run, or None if the job still has work to do.

    A job writes `results.json` last, so a folder with results holds a finished run. The
    results must also have the given facts, such as `key=`. All processes call this
    method together, and process 0 reads the file.

    Raises:
      RunFolderError: the results can't be read.
    """
    results = None
    if hosts.is_first():
      stored = self.read_results() or {}
      if stored and all(stored.get(name) == value for name, value in facts.items()):
        results = stored
    results = hosts.from_first(results, "the run's results")
    if results is not None:
      log.info("%s: this run has finished; nothing to do", self.path)
    return results

  def scalars(self) -> dict[str, tuple[list[int], list[float]]]:
    """Steps, ascending, and values of each logged scalar, over all starts of the run.

    If a step was logged several times, its last value counts.
    """
    points: dict[str, dict[int, float]] = {}
    for record in self.records():
      step = record.pop("step")
      record.pop("time", None)
      for name, value in record.items():
        points.setdefault(name, {})[step] = value
    series = {}
    for name, value_of in points.items():
      steps = sorted(value_of)
      series[name] = (steps, [value_of[step] for step in steps])
    return series

  def productive_share(self) -> float | None:
    """Share of the wall-clock time that steps took, from the first logged window on.

    A window is a record with `step_seconds`, the mean time of its steps. The rest of the
    time went to validation, saving, starts, and steps that were repeated after a lost
    process. None if `metrics.jsonl` has fewer than two windows with times.
    """
    windows = [
      record for record in self.records() if {"time", "step_seconds"} <= record.keys()
    ]
    if len(windows) < 2:
      return None
    wall_seconds = windows[-1]["time"] - windows[0]["time"]
    if wall_seconds <= 0:
      return None
    seconds_of_steps = 0.0
    for before, window in itertools.pairwise(windows):
      n_steps = window["step"] - before["step"]
      seconds_of_steps += n_steps * window["step_seconds"]
    return min(1.0, seconds_of_steps / wall_seconds)

  def records(self) -> Iterator[dict[str, Any]]:
    """Yields the records of `metrics.jsonl` in order; skips damaged lines.

    Yields:
      The `step`, an integer, and scalars by name; null becomes NaN.
    """
    try:
      lines = self.metrics.read_bytes().splitlines()
    except FileNotFoundError:
      return
    for line in lines:
      record = _parse_record(line)
      if record is not None:
        yield record


def _parse_record(line: bytes) -> dict[str, Any] | None:
  """Parses a line of `metrics.jsonl`, see `RunFolder.records`.

  Returns:
    The record; None for a line that is empty or damaged. A killed process may leave a
    damaged last line.
  """
  try:
    fields = json.loads(line)
    record = {"step": fields.pop("step")}
    for name, value in fields.items():
      record[name] = math.nan if value is None else float(value)
  except (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
  ):
    return None
  if type(record["step"]) is not int:
    return None
  return record


def with_provenance(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of `results.json`: plain JSON values, and their provenance."""
  return json.loads(to_json({**results, _PROVENANCE: provenance()}))


def prompt_path(path: str | os.PathLike) -> str | os.PathLike:
  """Path of a prompt file; the folder of a run or a Dassl trainer stands for its prompt."""
  if not is_dir(path):
    return path
  prompt = RunFolder(path).prompt
  if exists(prompt) or not DASSL_PROMPT:
    return prompt
  return DASSL_PROMPT.open()(to_path(path)) or prompt


def classes_path(prompt: str | os.PathLike) -> Path | None:
  """File of class names that a run has left beside its prompt; None for other prompts.

  `prompt` is the prompt's file or the run's folder.
  """
  file = to_path(prompt_path(prompt))
  folder = RunFolder(file.parent)
  if file not in (folder.prompt, *folder.other_prompts.values()):
    return None
  return folder.class_names if exists(folder.class_names) else None


def is_class_file(content: Any) -> bool:
  """Whether a JSON value is a `class_names.json` of any version.

  Two of the three keys are enough: one key of the file may be damaged.
  """
  if not isinstance(content, dict) or len(content) > 3:
    return False
  known = {_VERSION, CLASS_NAMES, _CHECKSUM}
  return len(known & content.keys()) >= 2


def names_in(content: Mapping[str, Any], path: str | os.PathLike) -> tuple[str, ...]:
  """Class names of a `class_names.json`; DamagedFileError if its content has changed."""
  fields = without_checksum(dict(content), path)
  names = fields.get(CLASS_NAMES)
  version = fields.get(_VERSION)
  are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
  if version != CLASSES_VERSION or not are_names:
    raise DamagedFileError(
      f"{path}: {_VERSION} is {printable(repr(version))},"
      f" expected {CLASSES_VERSION}, and a list of {CLASS_NAMES}"
    )
  return tuple(names)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError, for example of a full disk, into a RunFolderWriteError.

  The error's message names `path`.
  """
  try:
    yield
  except OSError as error:
    # NumPy's error for an array that is cut short has no errno.
    reason = error.strerror or error
    raise RunFolderWriteError(f"{path}: can't be written ({reason})") from error


def write_json(path: str | os.PathLike, value: Any, *, checksum: bool = True) -> None:
  """Writes `to_json` of a value atomically.

  Args:
    path: file or object to write.
    value: value that `to_json` takes.
    checksum: whether an object gets a checksum; false for files that other programs
      read.

  Raises:
    RunFolderWriteError: the file can't be written.
  """
  text = to_json(value)
  if checksum:
    plain = json.loads(text)
    if isinstance(plain, dict):
      text = to_json(with_checksum(plain))
  with writing(path):
    write_file(path, text)


def to_json(value: Any) -> str:
  """Formats the content of a JSON file.

  Args:
    value: plain JSON values, tuples, paths, NumPy and JAX arrays and scalars.

  Returns:
    Indented text. Keys keep their order; NaN and infinities become null.

  Raises:
    TypeError: a value of another type.
  """
  text = json.dumps(value, default=_plain_value)
  # JSON has no NaN and no infinities, but Python writes them as `NaN` and `Infinity`.
  # Replace these constants by null.
  plain = json.loads(text, parse_constant=lambda constant: None)
  return f"{json.dumps(plain, indent=2, ensure_ascii=False)}\n"


def _plain_value(value: Any) -> Any:
  """Turns an array into lists, a scalar into a number, and a path into text.

  Raises:
    TypeError: a value of another type.
  """
  if hasattr(value, "__array__"):
    return np.asarray(value).tolist()
  return os.fspath(value)


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file; compares and removes the checksum of an object.

  RunFolderError if the file can't be read, DamagedFileError if the file is not JSON or
  its checksum differs.
  """
  return parse_json(read_file(path, RunFolderError), path)


def parse_json(content: bytes, path: str | os.PathLike) -> Any:
  """Parses the content of a file as `read_json` does; `path` is for the message."""
  try:
    return without_checksum(json.loads(content.decode()), path)
  except (ValueError, RecursionError) as error:
    raise DamagedFileError(
      f"{path}: not JSON ({error}); remove or repair it"
    ) from error


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with its checksum as the last member, in place of an old one.

  The checksum is a CRC-32. It does not depend on the order of the keys or on the spaces
  in the file.
  """
  rest = {key: item for key, item in value.items() if key != _CHECKSUM}
  content = json.dumps(rest, sort_keys=True).encode()
  return {**rest, _CHECKSUM: f"{zlib.crc32(content):08x}"}


def without_checksum(value: Any, path: str | os.PathLike) -> Any:
  """Compares the checksum of a JSON value, if it has one, and returns the value without.

  Files that other programs wrote have no checksum.

  Raises:
    DamagedFileError: the checksum differs from that of the content.
  """
  if not isinstance(value, dict) or not value:
    return value
  # If the key of the checksum is damaged, the value of the last member is the checksum.
  name = _CHECKSUM if _CHECKSUM in value else next(reversed(value))
  rest = {key: item for key, item in value.items() if key != name}
  fits = value[name] == with_checksum(rest)[_CHECKSUM]
  if name == _CHECKSUM and fits:
    return rest
  if name != _CHECKSUM and not fits:
    return value  # a file without a checksum
  raise DamagedFileError(
    f"{path}: changed after it was written: {name!r} is that of another content; without that"
    " line the file is taken as it is"
  )


@contextlib.contextmanager
def noting_failure(workdir: str | os.PathLike) -> Iterator[None]:
  """Writes to `error.txt` in a run's folder, if the folder exists, why the run failed.

  A start that finishes, is asked to stop, or has bad input does not count as a failure.
  The next start removes the file.
  """
  path = to_path(workdir) / ERROR
  with contextlib.suppress(OSError):
    path.unlink()
  try:
    yield
  except Exception as error:
    if isinstance(error, InputError | RunError | TryAgain):
      reason = str(error)
    else:
      reason = disk_failure(error) or f"{type(error).__name__}: {error}"
    is_bad_input = getattr(error, "status", None) == InputError.status
    with contextlib.suppress(OSError):
      if not is_bad_input and is_dir(path.parent):
        write_file(path, one_line(reason))
    raise
