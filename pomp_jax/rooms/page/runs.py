"""Runs of a folder, read only: their list, reports, plots and curves.

A run and a file are looked up in what the folder holds: no path is made of what a
visitor sends. Links are not followed, neither those of folders nor those of files.
Files may hold anything: what can't be shown is a line of its run.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import datetime
from html import escape
import json
import os
import pathlib
import re
import stat
import tempfile
from typing import Any, NamedTuple

from pomp_jax.config.settings import flatten
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.paths import without_folders
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import ERROR, DamagedFileError, RunFolder, parse_json
from pomp_jax.files.terminal import printable
from pomp_jax.registry import JOBS, load
from pomp_jax.report import plots
from pomp_jax.report.report import Report, Section, Table, html_section, with_pictures

# Levels of folders below the root, and runs in the list.
_DEPTH = 3
MAX_RUNS = 500
_MOST_ROWS = 200  # of figures
_MAX_BYTES = 32 * 2**20  # files beyond this are not read
# The list reads these of every run, for each page: configs are some kilobytes.
_LISTED_BYTES = 256 * 2**10
CURVES, _PROMPT = "training.png", "prompt.npz"
_OF_TRAINING = ("loss", "accuracy", "validation_top1")
_HUGE = 1e15  # steps and values from here on are damage; axes can't be drawn
_OF_RUN = ("config.json", "results.json", ERROR)  # each of them makes a folder a run


class RunFileError(InputError):
  """A file of a run that can't be shown; one line, without its folder."""


class Run(NamedTuple):
  """A line of the list."""

  name: str  # folders below the root, joined by slashes
  path: pathlib.Path
  job: str
  state: str  # finished, not finished, failed, or unreadable
  problem: str  # why it failed or can't be read, one line; or empty
  time: str  # of its last change, local, to the minute
  report: bool  # whether it has a report
  # path of the prompt that it has learned, without links; empty if it has none
  prompt: str


def find_runs(root: pathlib.Path | None) -> dict[str, Run]:
  """The runs below a folder, or itself, by name, the newest first: folders with an
  `_OF_RUN`."""
  if root is None:
    return {}
  found = {}
  for folder, below, _ in os.walk(root):
    path = pathlib.Path(folder)
    parts = path.relative_to(root).parts
    shown = [own for own in below if not own.startswith(".") and own.isprintable()]
    below[:] = sorted(shown) if len(parts) < _DEPTH else []
    files = [file for file in (_file(path, n) for n in _OF_RUN) if file]
    with contextlib.suppress(FileNotFoundError):  # removed since
      if files:
        name = "/".join(parts) or root.resolve().name
        found[name] = path, max(file.stat().st_mtime for file in files)
  newest = sorted(found, key=lambda name: -found[name][1])[:MAX_RUNS]
  return {name: _run(name, *found[name]) for name in newest}


def _run(name: str, path: pathlib.Path, changed: float) -> Run:
  report, prompt = _file(path, "report.html") is not None, _file(path, _PROMPT)
  job, time, state = "?", "?", ("unreadable", "")
  problems: list[str] = []
  with _lines(problems, "config.json"):
    time = datetime.datetime.fromtimestamp(changed).isoformat(" ", "minutes")
    config = _json(path, "config.json", _LISTED_BYTES)
    config = config or _json(path, "results.json", _LISTED_BYTES)
    found = (
      "not finished",
      "it runs, was stopped, or was killed; the same command resumes it",
    )
    if reason := (read_file(path, ERROR, most=_LISTED_BYTES) or b"").decode(
      "utf-8", "replace"
    ):
      found = "failed", printable(without_folders(reason.strip()), 2000)
    elif _file(path, "results.json"):
      found = "finished", ""
    job, state = printable(str(config.get("job", "?")), 40), found
  problem, learned = (
    " ".join(problems) or state[1],
    os.path.realpath(prompt) if prompt else "",
  )
  return Run(name, path, job, state[0], problem, time, report, learned)


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
  """Names of a run's plots."""
  names = sorted(path.name for path in (run.path / "plots").glob("*.png"))
  return [n for n in names if re.fullmatch("[ -~]+", n) and _file(run.path, "plots", n)]


def read_plot(run: Run, name: str) -> bytes | None:
  """Content of one of `plot_files`."""
  return read_file(run.path, "plots", name) if name in plot_files(run) else None


def read_prompt(run: Run) -> NamedPrompt:
  """The prompt that a run has learned, by the run's name; RunFileError if it can't
  be read."""
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / _PROMPT
    path.write_bytes(read_file(run.path, _PROMPT) or b"")
    try:
      return NamedPrompt(run.name, load_prompt(path))
    except InputError as error:
      line = str(error).replace(str(path), f"{run.name}/{_PROMPT}")
      raise RunFileError(without_folders(line)) from error


def curves(run: Run) -> bytes | None:
  """Draws loss and accuracy of a training as far as it has come; a PNG."""
  scalars = _scalars(run)
  if not scalars:
    return read_plot(run, CURVES)
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / CURVES
    plots.training_curves(path, scalars)
    return path.read_bytes()


def _scalars(run: Run) -> dict[str, plots.Series]:
  """Logged scalars of a training, without the points that can't be drawn."""
  found = RunFolder(run.path).scalars() if _file(run.path, "metrics.jsonl") else {}
  drawable: dict[str, plots.Series] = {}
  for name in filter(found.__contains__, _OF_TRAINING):
    points = zip(*found[name], strict=True)
    kept = [
      (s, value) for s, value in points if abs(s) < _HUGE and not abs(value) > _HUGE
    ]
    drawable[name] = [s for s, _ in kept], [value for _, value in kept]
  return drawable


def show(run: Run, address: Callable[[str], str]) -> tuple[str, list[str]]:
  """Formats a run's report as its job builds it, and a line for each file that can't be
  shown.

  Results of other jobs, or of which no report can be built, become a list of figures.
  The plots of no section follow. Absolute paths are cut to their last name. `address`
  is that of a plot; the plot CURVES is that of `curves`.
  """
  files, text = plot_files(run), ""
  problems: list[str] = []
  if _scalars(run):
    files = sorted({*files, CURVES})
  results: dict[str, Any] = {}
  with _lines(problems, "results.json"):
    results = _json(run.path, "results.json")
    if results and run.job in JOBS and (report := JOBS[run.job].report):
      fields = flatten(_json(run.path, "config.json", _LISTED_BYTES))
      text = _html(load(report)(results, fields), files, address)
  if text:
    return text, problems
  rows: list[tuple[str, str]] = []
  with _lines(problems, "results.json"):
    rows = [
      (name, shown)
      for name, value in flatten(results).items()
      if (shown := _text(value))
    ]
  more = f", the first {_MOST_ROWS} of {len(rows):,}" if rows[_MOST_ROWS:] else ""
  section = Section(f"All figures{more}", table=Table((), rows[:_MOST_ROWS]))
  return _html(Report("", "", [section] if rows else []), files, address), problems


def _text(value: Any) -> str:
  """A figure, a short text, or names with a probability, share of pixels or score;
  else empty."""
  if isinstance(value, list) and all(
    isinstance(one, dict) and "name" in one for one in value
  ):
    weight = lambda one: next(
      one[key] for key in ("share", "score", "probability") if key in one
    )
    return ", ".join(f"{one['name']} {100 * weight(one):.1f}%" for one in value) or "-"
  if isinstance(value, float):
    return f"{value:.5g}"
  return str(value) if isinstance(value, int | str) and len(str(value)) < 200 else ""


def _html(report: Report, files: Sequence[str], address: Callable[[str], str]) -> str:
  sections = list(with_pictures(report, files).sections)
  others = set(files) - {section.picture for section in sections}
  sections += [
    Section(name[:-4].replace("_", " "), picture=name) for name in sorted(others)
  ]
  parts = [f"<p>{escape(without_folders(report.text))}</p>"] if report.text else []
  for section in sections:
    table = section.table and section.table._replace(
      rows=without_folders(section.table.rows)
    )
    text, notes = without_folders(section.text), without_folders(section.notes)
    section = section._replace(table=table, text=text, notes=notes, links={})
    parts.append(html_section(section, address))
  return "".join(parts)


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


def read_file(
  folder: pathlib.Path, *names: str, most: int = _MAX_BYTES
) -> bytes | None:
  """The first bytes of a file as `_file` finds it, at most `most`.

  A link that just took its place is not followed.
  """
  path = _file(folder, *names)
  with contextlib.suppress(OSError):
    if path is not None:
      with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read(most)
  return None


def _json(folder: pathlib.Path, name: str, most: int = _MAX_BYTES) -> dict[str, Any]:
  """A JSON object, empty if there is no such file; RunFileError for another or a
  longer content."""
  try:
    content = read_file(folder, name, most=most + 1)
    if content is not None and len(content) > most:
      raise RunFileError(f"{name}: too large, expected at most {most // 2**10:,} KiB")
    found = {} if content is None else parse_json(content, name)
    json.dumps(found, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise RunFileError(
      f"{name}: holds a lone surrogate, which is no Unicode text"
    ) from error
  except (DamagedFileError, RecursionError) as error:
    raise RunFileError(printable(str(error))) from error
  if not isinstance(found, dict):
    raise RunFileError(f"{name}: a {type(found).__name__}, expected a JSON object")
  return found
