"""Stores images as a TFDS data set: many workers, unreadable ones left out, and again after a stop.

While it is built, a data set lies in `NAME.incomplete/`: `parts/` holds the finished shards, each
with a JSON file of what went into it, which is written last. A start that finds one takes it as
done. The folder gets its place only when it is complete.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import dataclasses
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from pomp_jax.data.prepare.records import (
  VERSION,
  Shard,
  Split,
  shard_name,
  write_index,
  write_metadata,
)
from pomp_jax.data.prepare.units import Tar, Unit, unreadable
from pomp_jax.data.source import SourceError
from pomp_jax.data.subsets import ranked
from pomp_jax.files.atomic import replacing
from pomp_jax.files.progress import Progress

log = logging.getLogger(__name__)


class BuildError(SourceError):
  """A data set that can't be built, or not here; one line."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is stored of each class; a build that is started again must have the same.

  Attributes:
    shots: images a class in a split; 0: all.
    seed: of the choice.
    held_out: images a class that go to the split "validation", before any go to "train".
  """

  shots: int = 0
  seed: int = 0
  held_out: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A shard to make: number `index` of its split.

  Attributes:
    index: its number.
    split: where its images go.
    units: its images; whole classes.
    done: how far into the input this is, in the input's own measure.
  """

  index: int
  split: str
  units: tuple[Unit, ...]
  done: int = 0


@dataclasses.dataclass(frozen=True)
class Input:
  """What a data set is made of.

  Attributes:
    dataset: its name in TFDS.
    label_names: one a class.
    description: where the images are from, and whose they are.
    identity: distinguishes this input from another.
    open: takes a test whether the shard (split, index) is there already and a folder for temporary
      files; returns what the last task's `done` will be, and the tasks.
    divided: it has splits of its own beside train, so that nothing of train is held out.
  """

  dataset: str
  label_names: tuple[str, ...]
  description: str
  identity: str
  open: Callable[[Callable[[str, int], bool], pathlib.Path], tuple[int, Iterable[Task]]]
  divided: bool = False


def build(
  source: Input, data_dir: str | os.PathLike, settings: Settings, workers: int = 1
) -> dict[str, Any]:
  """Makes the data set, or the rest of it.

  Args:
    source: what goes into it.
    data_dir: TFDS's; the data set is `data_dir/NAME/1.0.0`.
    settings: what is stored.
    workers: processes; 1: this one alone.

  Returns:
    What `report.json` in the data set's folder says: counts, and the unreadable images.

  Raises:
    BuildError: another data set of this name is there, or nothing could be stored.
    SourceError: the input can't be read.
  """
  final = pathlib.Path(data_dir) / source.dataset / VERSION
  identity = {"input": source.identity} | dataclasses.asdict(settings)
  if final.exists():
    return _finished(final, identity)
  if source.divided:
    settings = dataclasses.replace(settings, held_out=0)
  work = pathlib.Path(data_dir) / f"{source.dataset}.incomplete"
  parts, spool = work / "parts", work / "spool"
  _claim(work, identity)
  shutil.rmtree(spool, ignore_errors=True)
  for folder in (parts, spool):
    folder.mkdir(parents=True, exist_ok=True)

  def is_done(split: str, index: int) -> bool:
    return _report(parts, split, index).exists()

  total, tasks = source.open(is_done, spool)
  furthest = 0
  with Progress(total, description=source.dataset) as progress:
    for task, n_stored in _run(tasks, parts, settings, workers):
      furthest = max(furthest, task.done)
      progress.update(furthest, stored=n_stored)
  report = _finish(source, work, identity)
  final.parent.mkdir(parents=True, exist_ok=True)
  os.replace(work, final)
  # Not before: until then they say what is done.
  for folder in ("parts", "spool"):
    shutil.rmtree(final / folder, ignore_errors=True)
  (final / "plan.json").unlink(missing_ok=True)
  return report


def _finished(final: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  try:
    report = json.loads((final / "report.json").read_bytes())
  except (OSError, ValueError) as error:
    raise BuildError(f"{final}: a data set that was not built here is there") from error
  if report.get("built_from") != identity:
    raise BuildError(f"{final}: is there, built from {report.get('built_from')}, not {identity}")
  log.info("%s: is complete; nothing to do", final)
  return report


def _claim(work: pathlib.Path, identity: dict[str, Any]) -> None:
  """Refuses to go on with what was begun otherwise."""
  plan = work / "plan.json"
  if plan.exists():
    begun = json.loads(plan.read_bytes())
    if begun != identity:
      raise BuildError(f"{work}: was begun from {begun}, not {identity}; delete it to begin anew")
    return
  work.mkdir(parents=True, exist_ok=True)
  with replacing(plan) as file:
    file.write(json.dumps(identity).encode())


def _run(
  tasks: Iterable[Task], parts: pathlib.Path, settings: Settings, workers: int
) -> Iterator[tuple[Task, int]]:
  """Does the tasks that are not done; yields each with the images stored by now."""
  stored = 0
  if workers == 1:
    for task in tasks:
      stored += _store(task, parts, settings)
      yield task, stored
    return
  # Spawned, since a fork would share whatever threads the parent holds.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    running: dict[concurrent.futures.Future, Task] = {}
    try:
      for task in tasks:
        running[pool.submit(_store, task, parts, settings)] = task
        # A few more than workers: those that wait may hold files in the spool.
        while len(running) > workers + 1:
          stored += yield from _collect(running, stored)
      while running:
        stored += yield from _collect(running, stored)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _collect(running: dict, stored: int) -> Iterator[tuple[Task, int]]:
  """Waits for one task at least; returns the images that were stored."""
  finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
  count = 0
  for future in finished:
    count += future.result()
    yield running.pop(future), stored + count
  return count


def _store(task: Task, parts: pathlib.Path, settings: Settings) -> int:
  """Makes a task's shards, unless they are there; returns how many images they hold."""
  report = _report(parts, task.split, task.index)
  if report.exists():
    content = json.loads(report.read_bytes())
    return sum(len(split["labels"]) for split in content["splits"].values())
  shards: dict[str, Shard] = {}
  stored: dict[str, dict[str, list]] = {}
  bad = []
  for unit in task.units:
    for split, key, label, image, reason in _chosen(unit, task.split, settings):
      if reason:
        bad.append({"image": key, "reason": reason})
        continue
      if split not in shards:
        shards[split] = Shard(_part(parts, split, task.index))
        stored[split] = {"labels": [], "keys": []}
      shards[split].write(image, label, key)
      stored[split]["labels"].append(label)
      stored[split]["keys"].append(key)
  for split, shard in shards.items():
    shard.close()
    stored[split]["num_bytes"] = shard.num_bytes
  with replacing(report) as file:
    file.write(json.dumps({"splits": stored, "unreadable": bad}).encode())
  for unit in task.units:
    if isinstance(unit, Tar) and unit.temporary:
      unit.path.unlink(missing_ok=True)
  return sum(len(split["labels"]) for split in stored.values())


def _chosen(
  unit: Unit, split: str, settings: Settings
) -> Iterator[tuple[str, str, int, bytes, str]]:
  """(split, key, label, image, why it is unreadable) of the images of a unit that are wanted.

  An image that can't be read does not count: the class's next one takes its place.
  """
  keys, labels = unit.candidates()
  order, _ = ranked(labels, keys, settings.seed)
  taken: collections.Counter[tuple[int, str]] = collections.Counter()
  wanted = [(split, len(keys))]  # what evaluates is stored whole
  if split == "train":
    wanted = [("validation", settings.held_out), (split, settings.shots or len(keys))]

  def place(label: int) -> str | None:
    return next((name for name, most in wanted if taken[label, name] < most), None)

  # `read` is asked for one image at a time, so that it stops when a class is complete.
  remaining = (int(index) for index in order if place(int(labels[index])))
  for index, image, reason in unit.read(remaining):
    label = int(labels[index])
    reason = reason or unreadable(image)
    where = place(label)
    if not reason:
      taken[label, where] += 1
    yield where, keys[index], label, image or b"", reason


def _finish(source: Input, work: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  """Names the shards and writes all that stands beside them; can be done again."""
  parts = work / "parts"
  labels: dict[str, list] = collections.defaultdict(list)
  keys: dict[str, list] = collections.defaultdict(list)
  files: dict[str, list] = collections.defaultdict(list)
  num_bytes: collections.Counter[str] = collections.Counter()
  bad = []
  for path in sorted(parts.glob("*.json")):
    content = json.loads(path.read_bytes())
    index = int(path.stem.rpartition("-")[2])
    bad += content["unreadable"]
    for split, stored in sorted(content["splits"].items()):
      labels[split].append(stored["labels"])
      keys[split] += stored["keys"]
      files[split].append(_part(parts, split, index))
      num_bytes[split] += stored["num_bytes"]
  if not files:
    raise BuildError(f"{work}: no readable image; {len(bad)} are unreadable")
  for split, paths in files.items():
    for number, path in enumerate(paths):
      target = work / shard_name(source.dataset, split, number, len(paths))
      if path.exists():
        os.replace(path, target)
  write_metadata(
    work,
    source.dataset,
    label_names=source.label_names,
    splits={
      split: Split(tuple(map(len, rows)), num_bytes[split]) for split, rows in labels.items()
    },
    description=source.description,
  )
  counts = {}
  for split, rows in labels.items():
    flat = np.concatenate([np.array(row, np.int32) for row in rows])
    write_index(work, split, flat, keys[split])
    counts[split] = {
      "images": len(flat),
      "classes": len(np.unique(flat)),
      "shards": len(rows),
      "bytes": num_bytes[split],
    }
  report = {
    "dataset": source.dataset,
    "built_from": identity,
    "splits": counts,
    "n_unreadable": len(bad),
    "unreadable": bad,
  }
  with replacing(work / "report.json") as file:
    file.write(json.dumps(report, indent=2).encode())
  return report


def _part(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}"


def _report(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}.json"
