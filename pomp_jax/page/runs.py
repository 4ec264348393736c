"""Runs of a folder, read only: their list, tables, plots, curves and reports.

A run and a file are looked up in what the folder holds: no path is made of what a visitor sends.
Links are not followed, neither those of folders nor those of files.
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
from pomp_jax.files.checksums import without_checksum
from pomp_jax.files.prompt_hub import without_folders
from pomp_jax.files.run_folder import RunFolder

# Levels of folders below the root, and runs in the list.
_DEPTH = 3
MAX_RUNS = 500
# Files beyond this are not read.
_MAX_BYTES = 32 * 2**20
_MAX_ROWS = 200
_CURVES = "training.png"
_OF_TRAINING = ("loss", "accuracy", "validation_top1")


class Run(NamedTuple):
  """A line of the list.

  Attributes:
    name: folders below the root, joined by slashes.
    path: folder.
    job: job of its config.
    finished: whether it has results.
    time: of its last change, local, to the minute.
    report: whether it has a report.
  """

  name: str
  path: pathlib.Path
  job: str
  finished: bool
  time: str
  report: bool


class Table(NamedTuple):
  """A table of text cells."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  folded: bool = False  # whether it starts folded, below the plots


def find_runs(root: pathlib.Path | None) -> dict[str, Run]:
  """Lists the runs below a folder by name, the newest first, at most MAX_RUNS.

  A run is a folder with `config.json` or `results.json`. The root may be one itself.
  """
  if root is None:
    return {}
  found = {}
  for name, path in _folders(root, "", 0):
    files = [file for file in (_file(path, n) for n in ("config.json", "results.json")) if file]
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
  time = datetime.datetime.fromtimestamp(changed).isoformat(" ", "minutes")
  config = _json(path, "config.json") or _json(path, "results.json")
  finished, report = (_file(path, n) is not None for n in ("results.json", "report.html"))
  return Run(name, path, str(config.get("job", "?")), finished, time, report)


def plot_files(run: Run) -> list[str]:
  """Names of a run's plots; without those of a report, and the curves that `curves` draws."""
  folder = run.path / "plots"
  if run.report or folder.is_symlink() or not folder.is_dir():
    return []
  names = sorted(name for name in os.listdir(folder) if name.endswith(".png"))
  drawn = has_curves(run)
  return [n for n in names if _file(run.path, "plots", n) and not (drawn and n == _CURVES)]


def read_plot(run: Run, name: str) -> bytes | None:
  """Content of one of `plot_files`."""
  return _read(run.path, "plots", name) if name in plot_files(run) else None


def read_report(run: Run) -> bytes | None:
  """HTML of a run's report."""
  return _read(run.path, "report.html") if run.report else None


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
  return RunFolder(run.path).scalars() if _file(run.path, "metrics.jsonl") else {}


def tables(run: Run) -> list[Table]:
  """Tables of a run: its `results.md`, accuracy, predictions, and the numbers of its results.

  All of them start folded below a report.

  Absolute paths are cut to their last name.
  """
  results = without_folders(_json(run.path, "results.json"))
  found = markdown_tables((_read(run.path, "results.md") or b"").decode("utf-8", "replace"))
  if run.job == "pretrain" and isinstance(results.get("eval"), dict):
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):  # of another version
      found.append(_accuracy(results.pop("eval")))
  if run.job == "predict" and isinstance(results.get("images"), dict):
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
      found.append(_predictions(results.pop("images")))
  numbers = list(_numbers(results)) if not found or run.job == "pretrain" else []
  if numbers:
    more = f", the first {_MAX_ROWS} of {len(numbers)}" if len(numbers) > _MAX_ROWS else ""
    columns, folded = ("figure", "value"), bool(found)
    found.append(Table(f"All figures{more}", columns, numbers[:_MAX_ROWS], folded))
  # A report has the tables itself.
  return [table._replace(folded=table.folded or run.report) for table in found]


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
  """A JSON object; empty if there is none that can be read."""
  try:
    found = without_checksum(json.loads(_read(folder, name) or b"{}"))
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}
