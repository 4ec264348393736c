"""Runs every phase of configs/rehearsal.py, and prints the time and memory of each as a
table.

  python -m docs.studies.rehearsal FOLDER                 true size; the archive alone takes 1.6 GB
  python -m docs.studies.rehearsal FOLDER --classes=400   1/50 of it

Training and evaluation run in two processes with one CPU device each. Process 1 of the
training gets SIGTERM halfway, both end with status 75, and the same command resumes.
FOLDER keeps everything. The same command resumes with the phase that was interrupted.
FOLDER/phases.json and the table count only its last start, and mark it.
"""

import argparse
from collections.abc import Callable
import functools
import json
import os
import pathlib
import resource
import signal
import statistics
import sys
import threading
import time

import psutil

from pomp_jax.config import Config, unpack
from pomp_jax.configs import rehearsal
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder
from tests.support.processes import Processes

_TRY_AGAIN = 75
_SAMPLE_SECONDS = 0.5
_HOURS = 12 * 3600
_COLUMNS = {
  "phase": "phase",
  "processes": "processes",
  "images": "images",
  "seconds": "seconds",
  "cpu": "CPU seconds",
  "rate": "images/s",
  "memory": "peak memory, GB",
  "largest": "of one process",
  "disk": "written, GB",
  "load": "load",
}


class Meter(threading.Thread):
  """Samples this process's descendants: peak memory of all, of one, and the
  machine's load."""

  def __init__(self):
    """Starts at `start()`."""
    super().__init__(daemon=True)
    self._done = threading.Event()
    self.memory = self.largest = 0
    self.loads: list[float] = []

  def run(self) -> None:
    """Samples until `stop`."""
    this = psutil.Process()
    while not self._done.wait(_SAMPLE_SECONDS):
      sizes = [0]
      for process in this.children(recursive=True):
        try:
          sizes.append(process.memory_info().rss)
        except psutil.Error:  # it has ended
          continue
      self.memory, self.largest = (
        max(self.memory, sum(sizes)),
        max(self.largest, *sizes),
      )
      self.loads.append(os.getloadavg()[0])

  def stop(self) -> None:
    """Ends the sampling."""
    self._done.set()
    self.join()


def measured(phase: Callable[[], int], folder: pathlib.Path) -> dict:
  """Runs a phase, which returns its number of images, and measures it."""
  before, disk, start = _cpu_seconds(), _bytes(folder), time.monotonic()
  meter = Meter()
  meter.start()
  try:
    images = phase()
  finally:
    meter.stop()
  seconds = time.monotonic() - start
  return {
    "images": images,
    "seconds": round(seconds, 1),
    "cpu": round(_cpu_seconds() - before, 1),
    "rate": round(images / seconds, 1),
    "memory": round(meter.memory / 1e9, 2),
    "largest": round(meter.largest / 1e9, 2),
    "disk": round((_bytes(folder) - disk) / 1e9, 2),
    "load": round(sum(meter.loads) / max(1, len(meter.loads)), 1),
  }


def _cpu_seconds() -> float:
  """CPU seconds, user and system, of all descendants that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _bytes(folder: pathlib.Path) -> int:
  return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Rehearsal:
  """The phases, on the files in one folder."""

  def __init__(self, folder: pathlib.Path, n_classes: int):
    """Stores the folder, and the number of classes of its archive."""
    self._folder, self._n_classes = folder, n_classes
    self._train = RunFolder(folder / "train")

  def phases(self) -> dict[str, tuple[int, Callable[[], int]]]:
    """Number of processes and function of each phase, in order."""
    return {
      "write": (2, self._write),
      "prepare": (2, self._prepare),
      "train, until SIGTERM": (2, self._interrupted),
      "train, resumed": (2, self._resumed),
      "evaluate": (2, self._evaluate),
      "export as open_clip": (1, functools.partial(self._export, "open_clip")),
      "export as pth": (1, functools.partial(self._export, "pth")),
    }

  def config(self, phase: str) -> Config:
    """Config of a phase of the config."""
    return unpack(rehearsal.get_config(self._argument(phase)))

  def _argument(self, phase: str) -> str:
    return f"{phase},folder={self._folder},classes={self._n_classes}"

  def _start(
    self, phase: str, *, processes: int, workdir: str = "", more=()
  ) -> Processes:
    command = [
      "-m",
      "pomp_jax.main",
      f"--config=configs/rehearsal.py:{self._argument(phase)}",
    ]
    return Processes(
      processes, [*command, f"--workdir={self._folder / (workdir or phase)}", *more]
    )

  def _run(self, phase: str, **options) -> None:
    with self._start(phase, **options) as run:
      _expect(0, run)

  def _write(self) -> int:
    n_images = rehearsal.SHOTS + rehearsal.HELD_OUT
    command = ["-m", "docs.studies.world_archive", str(self._folder)]
    sizes = [f"--classes={self._n_classes}", f"--images={n_images}"]
    with Processes(1, [*command, *sizes]) as run:
      _expect(0, run)
    return self._n_classes * n_images

  def _prepare(self) -> int:
    self._run("prepare", processes=1, workdir="records")
    [report] = (self._folder / "records").glob("*/*/report.json")
    return sum(
      split["images"] for split in json.loads(report.read_bytes())["splits"].values()
    )

  def _interrupted(self) -> int:
    config = self.config("train")
    total = self._n_classes * config.data.shots * config.epochs // config.batch_size
    with self._start("train", processes=2) as run:
      while self._last_step() < total // 2:
        if any(process.poll() is not None for process in run.processes.values()):
          _expect(0, run)
          sys.exit("the training ended before it was stopped")
        time.sleep(0.2)
      run.processes[1].send_signal(signal.SIGTERM)
      _expect(_TRY_AGAIN, run)
    return self._saved_step() * config.batch_size

  def _resumed(self) -> int:
    first = self._saved_step()
    self._run("train", processes=2)
    return (self._saved_step() - first) * self.config("train").batch_size

  def _saved_step(self) -> int:
    """Step of the newest checkpoint."""
    names = [path.name for path in (self._folder / "train" / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdecimal())

  def _last_step(self) -> int:
    """Last step that the log has."""
    steps, _ = self._train.scalars().get("loss", ([], []))
    return steps[-1] if steps else 0

  def _evaluate(self) -> int:
    self._run("evaluate", processes=2)
    return self.config("evaluate").evaluate.images

  def _export(self, form: str) -> int:
    override = [f"--config.export.format={form}"]
    self._run("export", processes=1, workdir=f"export_{form}", more=override)
    return 0


def _expect(status: int, run: Processes) -> None:
  """Waits for all processes; ends with the output of one whose exit status is
  another."""
  for index, (found, output) in run.finish(_HOURS).items():
    if found != status:
      sys.exit(f"{output[-5000:]}\nprocess {index}: status {found}, expected {status}")


def table(rows: dict[str, dict]) -> str:
  """Formats the measurements of the phases, in Markdown."""
  lines = [list(_COLUMNS.values()), ["---"] * len(_COLUMNS)]
  for name, row in rows.items():
    mark = f" (last of {row['starts']} starts)" if row["starts"] > 1 else ""
    lines.append(
      [
        name + mark,
        *(f"{row[column]:,}" if row[column] else "" for column in list(_COLUMNS)[1:]),
      ]
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def outcome(folder: pathlib.Path) -> str:
  """Formats steps, time of a step, and accuracy."""
  train = json.loads((folder / "train" / "results.json").read_bytes())
  evaluation = json.loads((folder / "evaluate" / "results.json").read_bytes())
  steps = RunFolder(folder / "train").scalars()["step_seconds"][1]
  lines = [
    f"{train['steps']} steps, median of the log's {statistics.median(steps):.2f} s a step"
  ]
  for name, of_set in evaluation["sets"].items():
    for prompt, figures in of_set["prompts"].items():
      low, high = (100 * end for end in figures["top1_interval"])
      shown = f"top-1 {100 * figures['top1']:.1f}% ({low:.1f} to {high:.1f})"
      lines.append(
        f"{name}, {figures['images']:,} images, {pathlib.Path(prompt).name}: {shown}"
      )
  return "\n".join(lines)


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--classes", type=int, default=rehearsal.CLASSES)
  arguments = parser.parse_args()
  folder = arguments.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "phases.json"
  rows = json.loads(path.read_bytes()) if path.exists() else {}
  for name, (processes, phase) in Rehearsal(folder, arguments.classes).phases().items():
    row = rows.setdefault(name, {"processes": processes, "starts": 0})
    if "seconds" in row:
      continue
    row["starts"] += 1
    _save(path, rows)
    row |= measured(phase, folder)
    _save(path, rows)
    print(name, row, flush=True)
  print(table(rows))
  print(outcome(folder))


def _save(path: pathlib.Path, rows: dict[str, dict]) -> None:
  with replacing(path) as file:
    file.write(json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
  main()
