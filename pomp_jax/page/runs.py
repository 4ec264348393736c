"""Runs of a folder, read only: their list, tables, plots, curves and reports.

A run and a file are looked up in what the folder holds: no path is made of what a visitor sends.
Links are not followed, neither those of folders nor those of files. Files may hold anything: what
can't be shown is a line of its run.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import json
import os
import pathlib
import re
import stat
import tempfile
from typing import Any, NamedTuple

from pomp_jax.analysis import plots
from pomp_jax.errors import InputError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.prompt_hub import without_folders
from pomp_jax.files.run_folder import ERROR, DamagedFileError, RunFolder, parse_json
from pomp_jax.files.terminal import printable
from pomp_jax.inference.named_prompts import NamedPrompt

# Levels of folders below the root, and runs in the list.
_DEPTH = 3
MAX_RUNS = 500
# Files beyond this are not read.
_MAX_BYTES = 32 * 2**20
_MAX_ROWS = 200
_CURVES, _PROMPT = "training.png", "prompt.npz"
_OF_TRAINING = ("loss", "accuracy", "validation_top1")
# Steps and values from here on are damage; axes can't be drawn.
_HUGE = 1e15
# Each of them makes a folder a run.
_OF_RUN = ("config.json", "results.json", ERROR)


class RunFileError(InputError):
  """A file of a run that can't be shown; one line, without its folder."""


class Run(NamedTuple):
  """A line of the list.

  Attributes:
    name: folders below the root, joined by slashes.
    path: folder.
    job: job of its config.
    state: finished, failed, unreadable, or not finished.
    problem: why it failed or can't be read, one line; or empty.
    time: of its last change, local, to the minute.
    report: whether it has a report.
    prompt: path of the prompt that it has learned, without links; empty if it has none.
  """

  name: str
  path: pathlib.Path
  job: str
  state: str
  problem: str
  time: str
  report: bool
  prompt: str


class Table(NamedTuple):
  """A table of text cells."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  folded: bool = False  # whether it starts folded, below the plots


def find_runs(root: pathlib.Path | None) -> dict[str, Run]:
  """Lists the runs below a folder by name, the newest first, at most MAX_RUNS.

  A run is a folder with one of the files `_OF_RUN`. The root may be one itself.
  """
  if root is None:
    return {}
  found = {}
  for name, path in _folders(root, "", 0):
    files = [file for file in (_file(path, n) for n in _OF_RUN) if file]
    with contextlib.suppress(FileNotFoundError):  # removed since
      if files:
        found[name or root.resolve().name] = path, max(file.stat().st_mtime for file in files)
  newest = sorted(found, key=lambda name: -found[name][1])[:MAX_RUNS]
  return {name: _run(name, *found[name]) for name in newest}


def _folders(folder: pathlib.Path, name: str, depth: int) -> Iterator[tuple[str, pathlib.Path]]:
  yield name, folder
  with contextlib.suppress(OSError):
    with os.scandir(folder) as entries:
      below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for own in below if depth < _DEPTH else ():
      if not own.startswith(".") and own.isprintable():
        yield from _folders(folder / own, f"{name}/{own}".lstrip("/"), depth + 1)


def _run(name: str, path: pathlib.Path, changed: float) -> Run:
  report, prompt = _file(path, "report.html") is not None, _file(path, _PROMPT)
  prompt_path = os.path.realpath(prompt) if prompt else ""
  run = Run(name, path, "?", "unreadable", "", "?", report, prompt_path)
  problems: list[str] = []
  with _lines(problems, "config.json"):
    run = run._replace(time=datetime.datetime.fromtimestamp(changed).isoformat(" ", "minutes"))
    config = _json(path, "config.json") or _json(path, "results.json")
    state, reason = _state(path)
    run = run._replace(job=printable(str(config.get("job", "?")), 40), state=state, problem=reason)
  return run._replace(problem=" ".join(problems) or run.problem)


def _state(path: pathlib.Path) -> tuple[str, str]:
  """State of a run, and the reason if it has failed."""
  if reason := (_read(path, ERROR) or b"").decode("utf-8", "replace"):
    return "failed", printable(without_folders(reason.strip()), 2000)
  if _file(path, "results.json"):
    return "finished", ""
  return "not finished", "it runs, was stopped, or was killed; the same command resumes it"


@contextlib.contextmanager
def _lines(problems: list[str], file: str) -> Iterator[None]:
  """Turns any error into a line: `file` may be damaged, or another version's."""
  try:
    yield
  except RunFileError as error:
    problems.append(str(error))
  except Exception as error:
    line = f"{file} can't be shown ({type(error).__name__}: {error})"
    problems.append(without_folders(printable(line)))


def plot_files(run: Run) -> list[str]:
  """Names of a run's plots; without those of a report, and the curves that `curves` draws."""
  folder = run.path / "plots"
  if run.report or folder.is_symlink() or not folder.is_dir():
    return []
  names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"[ -~]+\.png", name))
  drawn = has_curves(run)
  return [n for n in names if _file(run.path, "plots", n) and not (drawn and n == _CURVES)]


def read_plot(run: Run, name: str) -> bytes | None:
  """Content of one of `plot_files`."""
  return _read(run.path, "plots", name) if name in plot_files(run) else None


def read_report(run: Run) -> bytes | None:
  """HTML of a run's report."""
  return _read(run.path, "report.html") if run.report else None


def read_prompt(run: Run) -> NamedPrompt:
  """The prompt that a run has learned, by the run's name.

  Raises:
    RunFileError: it can't be read.
  """
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / _PROMPT
    path.write_bytes(_read(run.path, _PROMPT) or b"")
    try:
      return NamedPrompt(run.name, load_prompt(path))
    except InputError as error:
      line = str(error).replace(str(path), f"{run.name}/{_PROMPT}")
      raise RunFileError(without_folders(line)) from error


def has_curves(run: Run) -> bool:
  """Whether it has logged a training."""
  return bool(set(_OF_TRAINING) & _scalars(run).keys())


def curves(run: Run) -> bytes | None:
  """Draws loss and accuracy of a training as far as it has come; a PNG."""
  scalars = _scalars(run)
  if not set(_OF_TRAINING) & scalars.keys():
    return None
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / _CURVES
    plots.training_curves(path, scalars)
    return path.read_bytes()


def _scalars(run: Run) -> Mapping[str, plots.Series]:
  """Logged scalars, without the points that can't be drawn."""
  found = RunFolder(run.path).scalars() if _file(run.path, "metrics.jsonl") else {}
  return {name: _drawable(*series) for name, series in found.items()}


def _drawable(steps: Sequence[int], values: Sequence[float]) -> plots.Series:
  points = zip(steps, values, strict=True)
  kept = [(s, value) for s, value in points if abs(s) < _HUGE and not abs(value) > _HUGE]
  return [s for s, _ in kept], [value for _, value in kept]


def tables(run: Run) -> tuple[list[Table], list[str]]:
  """Tables of a run, and a line for each of its parts that can't be shown.

  They are those of its `results.md`, accuracy, predictions, and the numbers of its results. All of
  them start folded below a report. Absolute paths are cut to their last name.
  """
  found = markdown_tables((_read(run.path, "results.md") or b"").decode("utf-8", "replace"))
  problems: list[str] = []
  results, numbers = {}, []
  with _lines(problems, "results.json"):
    results = without_folders(_json(run.path, "results.json"))
  for job, key, table in (("pretrain", "eval", _accuracy), ("predict", "images", _predictions)):
    if run.job == job and key in results:
      with _lines(problems, f"results.json: {key}"):
        found.append(table(results[key]))
        del results[key]
  if not found or run.job == "pretrain":
    with _lines(problems, "results.json"):
      numbers = list(_numbers(results))
  if numbers:
    more = f", the first {_MAX_ROWS} of {len(numbers)}" if len(numbers) > _MAX_ROWS else ""
    columns, folded = ("figure", "value"), bool(found)
    found.append(Table(f"All figures{more}", columns, numbers[:_MAX_ROWS], folded))
  # A report has the tables itself.
  return [table._replace(folded=table.folded or run.report) for table in found], problems


def _accuracy(splits: Mapping[str, Any]) -> Table:
  prompts = list(dict.fromkeys(name for scores in splits.values() for name in scores))
  rows = []
  for split, scores in splits.items():
    shown = [f"{100 * scores[name]['top1']:.1f}" if name in scores else "" for name in prompts]
    rows.append([split, *shown, f"{next(iter(scores.values()))['images']:,}"])
  names = (name.replace("_", " ") for name in prompts)
  return Table("Top-1 accuracy (%)", ("split", *names, "images"), rows)


def _predictions(images: Mapping[str, Any]) -> Table:
  rows = [
    [key, ", ".join(f"{one['name']} {100 * one['probability']:.1f}%" for one in best)]
    for key, best in list(images.items())[:_MAX_ROWS]
  ]
  more = f", the first {_MAX_ROWS} of {len(images):,}" if len(images) > _MAX_ROWS else ""
  return Table(f"Predictions{more}", ("file", "names"), rows)


def _numbers(value: Any, name: str = "") -> Iterator[list[str]]:
  """Numbers and short texts of nested dicts, with dotted names."""
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from _numbers(item, f"{name}.{key}".lstrip("."))
  elif isinstance(value, float):
    yield [name, f"{value:.5g}"]
  elif isinstance(value, int | str) and len(str(value)) < 200:
    yield [name, str(value)]


def markdown_tables(text: str) -> list[Table]:
  """Tables of a `results.md`, each with the heading above it."""
  found, title, lines = [], "", []
  for line in (*text.splitlines(), ""):
    if line.startswith("|"):
      cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
      lines.append([re.sub(r"\\(.)", r"\1", cell.strip().replace("**", "")) for cell in cells])
      continue
    if len(lines) > 2:
      found.append(Table(title, lines[0], lines[2:]))
    title = line.strip("# ") or title
    lines = []
  return found


def _file(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """A regular file of a folder that is not too large; None for a link, or below one."""
  path = folder
  try:
    for name in names:
      path = path / name
      found = path.lstat()
      if stat.S_ISLNK(found.st_mode):
        return None
  except (OSError, ValueError):
    return None
  return path if stat.S_ISREG(found.st_mode) and found.st_size <= _MAX_BYTES else None


def _read(folder: pathlib.Path, *names: str) -> bytes | None:
  path = _file(folder, *names)
  if path is None:
    return None
  try:
    # A link that has just taken the file's place is not followed either.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
      return file.read(_MAX_BYTES)
  except OSError:
    return None


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """A JSON object; empty if there is no such file.

  Raises:
    RunFileError: another content, or a lone surrogate, which can't be shown.
  """
  try:
    content = _read(folder, name)
    found = {} if content is None else parse_json(content, name)
    json.dumps(found, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise RunFileError(f"{name}: holds a lone surrogate, which is no Unicode text") from error
  except (DamagedFileError, RecursionError) as error:
    raise RunFileError(printable(str(error))) from error
  if not isinstance(found, dict):
    raise RunFileError(f"{name}: a {type(found).__name__}, expected a JSON object")
  return found
