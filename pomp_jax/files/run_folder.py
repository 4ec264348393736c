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

_CHECKSUM, _PROVENANCE = "checksum", "provenance"
# of class_names.json
_VERSION, CLASS_NAMES, CLASSES_VERSION = "format_version", "names", 1
ERROR = "error.txt"  # in a run's folder: why its last start failed, one line


class RunFolderError(InputError, RuntimeError):
  """A run's folder, or a file in it, that can't be used; one line that names it."""


class DamagedFileError(RunFolderError):
  """A file whose content is not what was written."""


class RunFolderWriteError(RunFolderError):
  """A failed write: a full disk or a lost permission."""

  status = RunError.status


class RunFolder:
  """Paths in one run's folder, `path` (`--workdir`); docs/reference/formats.md
  describes the files."""

  def __init__(self, workdir: str | os.PathLike):
    self.path: Path = to_path(workdir)
    self.config = self.path / "config.json"
    self.checkpoints = self.path / "checkpoints"
    self.prompt = self.path / "prompt.npz"
    # Of the checkpoint that is not selected, by the value that would select it;
    # `trained` where prompt.npz holds words, or a mixture with them.
    names = ("last", "best", "trained")
    self.other_prompts = {name: self.path / f"prompt_{name}.npz" for name in names}
    self.class_names = self.path / "class_names.json"  # names of the training's classes
    # accuracy of `prompt.candidates` by name
    self.candidates = self.path / "candidates.json"
    self.results = self.path / "results.json"
    self.metrics = self.path / "metrics.jsonl"
    self.plots = self.path / "plots"
    self.sets = self.path / "sets"
    self.features = self.path / "features"

  def check(self, job: str | None = None) -> None:
    """Checks, on the first process, that `create` can succeed; writes nothing.

    RunFolderError if the path can't be a folder that is written to, or holds another
    job's run.
    """
    if not hosts.is_first():
      return
    if problem := why_unwritable(self.path):
      raise RunFolderError(f"workdir {self.path}: {problem}")
    for file in (self.config, self.results) if job else ():
      stored = read_json(file) if exists(file) else {"job": job}
      found = stored.get("job") if isinstance(stored, dict) else None
      if found != job:
        raise RunFolderError(
          f"workdir {self.path}: {file.name} is of job={found!r}; job={job!r} needs another workdir"
        )

  def create(self, config: Mapping[str, Any] | None = None) -> None:
    """Creates the folder unless it exists, and its config.json; as `check` and
    `writing`."""
    self.check()
    with writing(f"workdir {self.path}"):
      self.path.mkdir(parents=True, exist_ok=True)
    if config is not None:
      write_json(self.config, config)

  def write_results(self, results: dict[str, Any]) -> None:
    """Writes `results.json`, with the results' provenance; errors as `write_json`'s."""
    write_json(
      self.results, results if _PROVENANCE in results else with_provenance(results)
    )

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
    """Writes `class_names.json`, a class list with a checksum; errors as
    `write_json`'s."""
    write_json(self.class_names, {_VERSION: CLASSES_VERSION, CLASS_NAMES: tuple(names)})

  def finished(self, **facts: Any) -> dict[str, Any] | None:
    """Results of a finished run, as process 0 sees them; None if the job still has work
    to do.

    A job writes `results.json` last, so a folder with results is a finished run, if
    they hold the facts, such as `key=`. All processes call this together.
    RunFolderError if it can't be read.
    """
    stored = (self.read_results() if hosts.is_first() else None) or {}
    same = bool(stored) and all(
      stored.get(name) == value for name, value in facts.items()
    )
    results = hosts.from_first(stored if same else None, "the run's results")
    if results is not None:
      log.info("%s: this run has finished; nothing to do", self.path)
    return results

  def scalars(self) -> dict[str, tuple[list[int], list[float]]]:
    """Steps, ascending, and values of every logged scalar, over all starts of the
    run."""
    points: dict[str, dict[int, float]] = {}
    for record in self.records():
      step = record.pop("step")
      record.pop("time", None)
      for name, value in record.items():
        points.setdefault(name, {})[step] = value
    return {
      name: (sorted(of), [of[step] for step in sorted(of)])
      for name, of in points.items()
    }

  def productive_share(self) -> float | None:
    """Share of the wall clock that the run's steps took, from its first window to its
    last.

    The rest is validation, saving, starts, and steps that were done again after a lost
    process. None if `metrics.jsonl` has fewer than two windows with times.
    """
    windows = [one for one in self.records() if {"time", "step_seconds"} <= one.keys()]
    wall = windows[-1]["time"] - windows[0]["time"] if windows else 0.0
    if wall <= 0:
      return None
    productive = sum(
      (window["step"] - before["step"]) * window["step_seconds"]
      for before, window in itertools.pairwise(windows)
    )
    return min(1.0, productive / wall)

  def records(self) -> Iterator[dict[str, Any]]:
    """Yields the lines of `metrics.jsonl`; null becomes NaN, and damaged lines are
    skipped."""
    try:
      lines = self.metrics.read_bytes().splitlines()
    except FileNotFoundError:
      return
    for line in lines:
      try:
        record = json.loads(line)
        step = record.pop("step")
        values = {
          k: math.nan if value is None else float(value) for k, value in record.items()
        }
      except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
      ):
        continue  # an empty line, the end of a killed process's file, or a damaged one
      if type(step) is int:
        yield {"step": step} | values


def with_provenance(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `results.json` will hold: plain JSON values, and where they come
  from."""
  return json.loads(to_json({**results, _PROVENANCE: provenance()}))


def prompt_path(path: str | os.PathLike) -> str | os.PathLike:
  """Path of a prompt file; a folder stands for its prompt: a run's, or that of a
  Dassl trainer."""
  if not is_dir(path):
    return path
  own = RunFolder(path).prompt
  if exists(own) or not DASSL_PROMPT:
    return own
  return DASSL_PROMPT.open()(to_path(path)) or own


def classes_path(prompt: str | os.PathLike) -> Path | None:
  """The class names that a run has left beside a prompt of its own, a file or its
  folder."""
  file = to_path(prompt_path(prompt))
  folder = RunFolder(file.parent)
  is_own = file in (folder.prompt, *folder.other_prompts.values())
  return folder.class_names if is_own and exists(folder.class_names) else None


def is_class_file(content: Any) -> bool:
  """Whether a JSON value is that of `class_names.json`, of any version, or with one
  damaged key."""
  known = {_VERSION, CLASS_NAMES, _CHECKSUM}
  return (
    isinstance(content, dict) and len(content) <= 3 and len(known & content.keys()) >= 2
  )


def names_in(content: Mapping[str, Any], path: str | os.PathLike) -> tuple[str, ...]:
  """Class names of a `class_names.json`; DamagedFileError for another content than
  was written."""
  fields = without_checksum(dict(content), path)
  names, version = fields.get(CLASS_NAMES), fields.get(_VERSION)
  are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
  if version != CLASSES_VERSION or not are_names:
    found = printable(repr(version))
    expected = f"{CLASSES_VERSION}, and a list of {CLASS_NAMES}"
    raise DamagedFileError(f"{path}: {_VERSION} is {found}, expected {expected}")
  return tuple(names)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError, of a full disk for example, into a RunFolderWriteError that
  names `path`."""
  try:
    yield
  except OSError as error:
    # NumPy's error for an array that is cut short has no errno.
    raise RunFolderWriteError(
      f"{path}: can't be written ({error.strerror or error})"
    ) from error


def write_json(path: str | os.PathLike, value: Any, *, checksum: bool = True) -> None:
  """Writes `to_json` of a value atomically; an object with its checksum, unless others
  read it.

  RunFolderWriteError if the file can't be written.
  """
  text = to_json(value)
  if checksum and isinstance(plain := json.loads(text), dict):
    text = to_json(with_checksum(plain))
  with writing(path):
    write_file(path, text)


def to_json(value: Any) -> str:
  """Formats a JSON file; keys keep their order, and NaN and infinities become null.

  Takes plain JSON values, tuples, paths, NumPy and JAX arrays and scalars; else a
  TypeError.
  """

  def plain_value(value: Any) -> Any:
    if hasattr(value, "__array__"):
      return np.asarray(value).tolist()
    return os.fspath(value)  # TypeError for anything but a path

  plain = json.loads(
    json.dumps(value, default=plain_value), parse_constant=lambda _: None
  )
  return f"{json.dumps(plain, indent=2, ensure_ascii=False)}\n"


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
  return {
    **rest,
    _CHECKSUM: f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}",
  }


def without_checksum(value: Any, path: str | os.PathLike) -> Any:
  """Returns the JSON value of a file without its checksum, which others' files do not
  have.

  DamagedFileError if the checksum is that of another content.
  """
  if not isinstance(value, dict) or not value:
    return value
  # A damaged key still has the checksum as its value, in the last member.
  name = _CHECKSUM if _CHECKSUM in value else next(reversed(value))
  rest = {key: item for key, item in value.items() if key != name}
  if value[name] == with_checksum(rest)[_CHECKSUM]:
    if name == _CHECKSUM:
      return rest
  elif name != _CHECKSUM:
    return value
  raise DamagedFileError(
    f"{path}: changed after it was written: {name!r} is that of another content; without that"
    " line the file is taken as it is"
  )


@contextlib.contextmanager
def noting_failure(workdir: str | os.PathLike) -> Iterator[None]:
  """Leaves in a run's folder, if there is one, why the run failed; the next start
  removes it.

  A start that finishes, is asked to stop, or has bad input has not failed.
  """
  path = to_path(workdir) / ERROR
  with contextlib.suppress(OSError):
    path.unlink()
  try:
    yield
  except Exception as error:
    named = isinstance(error, InputError | RunError | TryAgain)
    reason = (
      str(error) if named else disk_failure(error) or f"{type(error).__name__}: {error}"
    )
    with contextlib.suppress(OSError):
      if getattr(error, "status", None) != InputError.status and is_dir(path.parent):
        write_file(path, one_line(reason))
    raise
