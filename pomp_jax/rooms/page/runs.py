"""Reads the runs of a folder: their list, reports, plots and curves.

A run and a file are looked up in listings of the folder: no path is made from a
visitor's input. Links to folders and links to files are not followed. Files may hold
anything: a file that can't be shown becomes a line of text on the page of its run.
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

from pomp_jax.config.every_job import flatten
from pomp_jax.errors import InputError
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.paths import without_folders
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import ERROR, DamagedFileError, RunFolder, parse_json
from pomp_jax.files.terminal import printable
from pomp_jax.registry import JOBS, load
from pomp_jax.report import plots
from pomp_jax.report.predict_report import named
from pomp_jax.report.report import Report, Section, Table, html_section, with_pictures

# Largest depth of a run's folder below the root, and number of runs in the list.
_DEPTH = 3
MAX_RUNS = 500
_MOST_ROWS = 200  # rows in a table of figures
_MAX_BYTES = 32 * 2**20  # larger files are not read
# Bytes of a file that the list reads. Each page with the list reads files of every run;
# a config has some kilobytes.
_LISTED_BYTES = 256 * 2**10
CURVES, _PROMPT = "training.png", "prompt.npz"
_OF_TRAINING = ("loss", "accuracy", "validation_top1")
_HUGE = 1e15  # a larger step or value is damaged, and its axis can't be drawn
_OF_RUN = ("config.json", "results.json", ERROR)  # a folder with one of these is a run


class RunFileError(InputError):
  """A file of a run can't be shown; the message is one line, without the folder."""


class Run(NamedTuple):
  """A run, as a line of the list shows it."""

  name: str  # folders below the root, joined by slashes
  path: pathlib.Path
  job: str
  state: str  # finished, not finished, failed, or unreadable
  problem: str  # why the run failed or can't be read, one line; or empty
  time: str  # local time of its last change, to the minute
  report: bool  # whether the run has a report
  # path of the run's learned prompt, without links; empty if the run has no prompt
  prompt: str


def find_runs(root: pathlib.Path | None) -> dict[str, Run]:
  """Finds the runs below a folder, or the folder itself if it is a run.

  A run is a folder with a file of `_OF_RUN`. Returns at most MAX_RUNS runs by name, the
  newest first.
  """
  if root is None:
    return {}
  folders: dict[str, tuple[pathlib.Path, float]] = {}
  for folder, below, _ in os.walk(root):
    path = pathlib.Path(folder)
    parts = path.relative_to(root).parts
    # Change `below` in place: os.walk descends into the folders that remain in it.
    if len(parts) < _DEPTH:
      visible = [name for name in below if not name.startswith(".")]
      below[:] = sorted(name for name in visible if name.isprintable())
    else:
      below.clear()
    candidates = [_file(path, name) for name in _OF_RUN]
    files = [file for file in candidates if file is not None]
    # Skip a run if a file was removed after `_file` found it.
    with contextlib.suppress(FileNotFoundError):
      if files:
        name = "/".join(parts) or root.resolve().name
        folders[name] = (path, max(file.stat().st_mtime for file in files))
  newest = sorted(folders, key=lambda name: -folders[name][1])[:MAX_RUNS]
  runs = {}
  for name in newest:
    path, changed = folders[name]
    runs[name] = _run(name, path, changed)
  return runs


def _run(name: str, path: pathlib.Path, changed: float) -> Run:
  """Reads what the list shows of a run; `changed` is a time stamp in seconds."""
  job = "?"
  time = "?"
  state = "unreadable"
  problem = ""
  problems: list[str] = []
  with _lines(problems, "config.json"):
    time = datetime.datetime.fromtimestamp(changed).isoformat(" ", "minutes")
    config = _json(path, "config.json", _LISTED_BYTES)
    config = config or _json(path, "results.json", _LISTED_BYTES)
    error = (read_file(path, ERROR, most=_LISTED_BYTES) or b"").decode(
      "utf-8", "replace"
    )
    is_finished = _file(path, "results.json") is not None
    job = printable(str(config.get("job", "?")), 40)
    if error:
      state = "failed"
      problem = printable(without_folders(error.strip()), 2000)
    elif is_finished:
      state = "finished"
    else:
      state = "not finished"
      problem = "it runs, was stopped, or was killed; the same command resumes it"
  prompt = _file(path, _PROMPT)
  return Run(
    name=name,
    path=path,
    job=job,
    state=state,
    problem=" ".join(problems) or problem,
    time=time,
    report=_file(path, "report.html") is not None,
    prompt=os.path.realpath(prompt) if prompt else "",
  )


@contextlib.contextmanager
def _lines(problems: list[str], file: str) -> Iterator[None]:
  """Turns any error into a line of `problems`.

  `file` may be damaged, or written by another version.
  """
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
  """Content of one of `plot_files`; None for another name."""
  return read_file(run.path, "plots", name) if name in plot_files(run) else None


def read_prompt(run: Run) -> NamedPrompt:
  """Reads the prompt that a run has learned; its label is the run's name.

  RunFileError if the prompt can't be read.
  """
  # Load a copy: `load_prompt` would follow links, and `read_file` does not.
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / _PROMPT
    path.write_bytes(read_file(run.path, _PROMPT) or b"")
    try:
      return NamedPrompt(run.name, load_prompt(path))
    except InputError as error:
      line = str(error).replace(str(path), f"{run.name}/{_PROMPT}")
      raise RunFileError(without_folders(line)) from error


def curves(run: Run) -> bytes | None:
  """Draws loss and accuracy of a training up to its newest step; returns a PNG.

  Without logged scalars, returns the plot that the run itself has drawn, or None.
  """
  scalars = _scalars(run)
  if not scalars:
    return read_plot(run, CURVES)
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / CURVES
    plots.training_curves(path, scalars)
    return path.read_bytes()


def _scalars(run: Run) -> dict[str, plots.Series]:
  """Logged scalars of a training, without points that can't be drawn."""
  if not _file(run.path, "metrics.jsonl"):
    return {}
  scalars = RunFolder(run.path).scalars()
  drawable: dict[str, plots.Series] = {}
  for name in _OF_TRAINING:
    if name not in scalars:
      continue
    steps = []
    values = []
    for step, value in zip(*scalars[name], strict=True):
      # Keep NaN, a gap in the curve: no comparison with NaN is true.
      if abs(step) < _HUGE and not abs(value) > _HUGE:
        steps.append(step)
        values.append(value)
    drawable[name] = (steps, values)
  return drawable


def show(run: Run, address: Callable[[str], str]) -> tuple[str, list[str]]:
  """Formats a run's report as its job builds it.

  If the job has no report, or the report can't be built, the results become a list of
  figures. Plots that belong to no section follow. Absolute paths are cut to their last
  name.

  Args:
    run: run to show.
    address: returns the address of a plot by its name. `curves` draws the plot CURVES.

  Returns:
    The HTML, and a line for each file that can't be shown.
  """
  files = plot_files(run)
  if _scalars(run):
    files = sorted({*files, CURVES})
  problems: list[str] = []
  results: dict[str, Any] = {}
  with _lines(problems, "results.json"):
    results = _json(run.path, "results.json")
    report_of_job = JOBS[run.job].report if run.job in JOBS else None
    if results and report_of_job:
      fields = flatten(_json(run.path, "config.json", _LISTED_BYTES))
      html = _html(load(report_of_job)(results, fields), files, address)
      if html:
        return html, problems
  rows: list[tuple[str, str]] = []
  with _lines(problems, "results.json"):
    rows = [(name, _text(value)) for name, value in flatten(results).items()]
    rows = [(name, text) for name, text in rows if text]
  title = "All figures"
  if len(rows) > _MOST_ROWS:
    title = f"{title}, the first {_MOST_ROWS} of {len(rows):,}"
  sections = []
  if rows:
    sections.append(Section(title, table=Table((), rows[:_MOST_ROWS])))
  return _html(Report("", "", sections), files, address), problems


def _text(value: Any) -> str:
  """Formats a figure, a short text, or a list of names; "" for any other value.

  Each name in a list has a probability, a share of the pixels, or a score.
  """
  if isinstance(value, list):
    if not all(isinstance(item, dict) and "name" in item for item in value):
      return ""
    return ", ".join(map(named, value)) or "-"
  if isinstance(value, float):
    return f"{value:.5g}"
  if isinstance(value, int | str) and len(str(value)) < 200:
    return str(value)
  return ""


def _html(report: Report, files: Sequence[str], address: Callable[[str], str]) -> str:
  """Formats the text and sections of a report, then the plots that no section has."""
  sections = list(with_pictures(report, files).sections)
  others = set(files) - {section.picture for section in sections}
  for name in sorted(others):
    title = name.removesuffix(".png").replace("_", " ")
    sections.append(Section(title, picture=name))
  parts = []
  if report.text:
    parts.append(f"<p>{escape(without_folders(report.text))}</p>")
  for section in sections:
    table = section.table
    if table:
      table = table._replace(rows=without_folders(table.rows))
    shown = section._replace(
      table=table,
      text=without_folders(section.text),
      notes=without_folders(section.notes),
      # Drop the links: they lead into the folder of the run, which is not served.
      links={},
    )
    parts.append(html_section(shown, address))
  return "".join(parts)


def _file(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Finds a regular file in a run's folder, which anybody may have written.

  Args:
    folder: folder of the run.
    *names: folders below it, and the file.

  Returns:
    The file's path. None if the file is missing, not regular, or larger than
    _MAX_BYTES. None also if any of the names is a link, which could lead out of the
    folder.
  """
  path = folder
  try:
    for name in names:
      path = path / name
      status = path.lstat()
      if stat.S_ISLNK(status.st_mode):
        return None
  except (OSError, ValueError):  # ValueError: a name with a NUL
    return None
  if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
    return None
  return path


def read_file(
  folder: pathlib.Path, *names: str, most: int = _MAX_BYTES
) -> bytes | None:
  """Reads the first bytes of a file of a run.

  Args:
    folder: folder of the run.
    *names: folders below it, and the file.
    most: number of bytes to read, at most.

  Returns:
    The bytes; None if `_file` finds no regular file, or the file can't be read.
  """
  path = _file(folder, *names)
  if path is None:
    return None
  try:
    # O_NOFOLLOW: a link may have taken the file's place since `_file` looked.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
      return file.read(most)
  except OSError:
    return None


def _json(folder: pathlib.Path, name: str, most: int = _MAX_BYTES) -> dict[str, Any]:
  """Reads a JSON object from a file of a run, which anybody may have written.

  Args:
    folder: folder of the run.
    name: name of the file.
    most: largest size of the file, bytes.

  Returns:
    The object, empty if `read_file` finds no such file.

  Raises:
    RunFileError: the file is larger than `most`, is damaged, or holds no JSON object of
      Unicode texts.
  """
  content = read_file(folder, name, most=most + 1)
  if content is None:
    return {}
  if len(content) > most:
    raise RunFileError(f"{name}: too large, expected at most {most // 2**10:,} KiB")
  try:
    value = parse_json(content, name)
    # Fail for a lone surrogate, which JSON allows and the page could not encode.
    json.dumps(value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise RunFileError(
      f"{name}: holds a lone surrogate, which is no Unicode text"
    ) from error
  except (DamagedFileError, RecursionError) as error:
    raise RunFileError(printable(str(error))) from error
  if not isinstance(value, dict):
    raise RunFileError(f"{name}: a {type(value).__name__}, expected a JSON object")
  return value
