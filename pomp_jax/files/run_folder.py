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
  """A run's folder, or a file in it, that can't be used; one line that names it."""


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
    # Prompts that were not selected. `last` and `best` are of those checkpoints;
    # `trained` is the learned prompt where prompt.npz holds words, or a mixture with
    # them.
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
      RunFolderError: the path can't be a folder that is written to, or it holds the run
        of another job.
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
    """Writes `results.json`, with the results' provenance; errors as `write_json`'s."""
    if _PROVENANCE not in results:
      results = with_provenance(results)
    write_json(self.results, results)

  def read_results(self) -> dict[str, Any] | None:
    """Reads `results.json` without its provenance; None if there is no such file.

    RunFolderError if it can't be read, or is no JSON object.
    """
    if not exists(self.results):
      return None
    stored = read_json(self.results)
    if not isinstance(stored, dict):
      raise RunFolderError(f"{self.results}: not a JSON object; remove or repair it")
    return {key: value for key, value in stored.items() if key != _PROVENANCE}

  def write_classes(self, names: Sequence[str]) -> None:
    """Writes `class_names.json`, with a checksum; errors as `write_json`'s."""
    write_json(self.class_names, {_VERSION: CLASSES_VERSION, CLASS_NAMES: tuple(names)})

  def finished(self, **facts: Any) -> dict[str, Any] | None:
    """Results of a finished run, or None if the job still has work to do.

    A job writes `results.json` last, so a folder with results is a finished run, if
    they hold the facts, such as `key=`. Process 0 reads them, and all processes call
    this together.

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
    """Steps, ascending, and values of every logged scalar, over all starts of the run."""
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
    """Share of the wall clock that the run's steps took, from its first window on.

    The rest is validation, saving, starts, and steps that were repeated after a lost
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
    step_seconds = 0.0
    for before, window in itertools.pairwise(windows):
      step_seconds += (window["step"] - before["step"]) * window["step_seconds"]
    return min(1.0, step_seconds / wall_seconds)

  def records(self) -> Iterator[dict[str, Any]]:
    """Yields the lines of `metrics.jsonl` in order, without damaged ones.

    Yields:
      The `step`, an integer, and scalars by name; NaN for null.
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
    The record; None for a line that is empty or damaged, as the last one of a killed
    process may be.
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
  """Path of a prompt file; a run's folder stands for its prompt, as a Dassl trainer's."""
  if not is_dir(path):
    return path
  prompt = RunFolder(path).prompt
  if exists(prompt) or not DASSL_PROMPT:
    return prompt
  return DASSL_PROMPT.open()(to_path(path)) or prompt


def classes_path(prompt: str | os.PathLike) -> Path | None:
  """The class names that a run has left beside its prompt; None of other prompts.

  `prompt` is the file or the run's folder.
  """
  file = to_path(prompt_path(prompt))
  folder = RunFolder(file.parent)
  if file not in (folder.prompt, *folder.other_prompts.values()):
    return None
  return folder.class_names if exists(folder.class_names) else None


def is_class_file(content: Any) -> bool:
  """Whether a JSON value is a `class_names.json` of any version.

  One key may be damaged.
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
  """Turns an OSError, of a full disk for example, into a RunFolderWriteError.

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
    checksum: whether an object gets its checksum; false for files that others read.

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
  # JSON has no NaN and no infinities. Python writes them as constants of its own.
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
  """Reads a JSON file; an object without its checksum.

  RunFolderError if it can't be read, DamagedFileError if it is not JSON or of another
  checksum.
  """
  return parse_json(read_file(path, RunFolderError), path)


def parse_json(content: bytes, path: str | os.PathLike) -> Any:
  """As `read_json`, of a file's content; `path` is for the message."""
  try:
    return without_checksum(json.loads(content.decode()), path)
  except (ValueError, RecursionError) as error:
    raise DamagedFileError(
      f"{path}: not JSON ({error}); remove or repair it"
    ) from error


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with its checksum as the last member, in place of any other.

  The checksum is a CRC-32, whatever the order of the keys and the spaces in the file.
  """
  rest = {key: item for key, item in value.items() if key != _CHECKSUM}
  content = json.dumps(rest, sort_keys=True).encode()
  return {**rest, _CHECKSUM: f"{zlib.crc32(content):08x}"}


def without_checksum(value: Any, path: str | os.PathLike) -> Any:
  """Returns the JSON value of a file without its checksum, if it has one.

  Files that others wrote have none.

  Raises:
    DamagedFileError: the checksum is that of another content.
  """
  if not isinstance(value, dict) or not value:
    return value
  # A damaged key still has the checksum as its value, in the last member.
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
  """Leaves in a run's folder, if there is one, why the run failed.

  A start that finishes, is asked to stop, or has bad input has not failed. The next
  start removes the note.
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
