"""Builds a data set of records: parallel, without unreadable images, resumable.

While it is built, a data set lies in `NAME.incomplete/`. Its folder `parts/` holds the finished
shards, each with a JSON report that is written last. A resumed build skips shards that have one.
The folder gets its final name only when it is complete.
"""

import collections
from collections.abc import Iterable, Iterator
import concurrent.futures
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from pomp_jax.data.images import ImageError, decoding_error
from pomp_jax.data.prepare.records import (
  VERSION,
  Input,
  Shard,
  Tar,
  Task,
  shard_name,
  write_index,
  write_metadata,
)
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.data.subsets import ranked
from pomp_jax.files.atomic import replacing
from pomp_jax.files.terminal import Progress

log = logging.getLogger(__name__)


class PrepareError(SourceError):
  """Data set that can't be built, or not in this folder; one line."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Choice of each class's images; a resumed build must have the same.

  Attributes:
    shots: images a class in "train"; 0: all.
    seed: random seed of the choice.
    held_out: images a class for the split "validation", chosen before those for "train".
  """

  shots: int = 0
  seed: int = 0
  held_out: int = 0


def build(
  source: Input, data_dir: str | os.PathLike, selection: Selection, workers: int = 1
) -> dict[str, Any]:
  """Writes a data set, or resumes writing it.

  Args:
    source: images of the data set.
    data_dir: TFDS's data_dir; the data set becomes `data_dir/NAME/1.0.0`.
    selection: choice of each class's images.
    workers: processes; 1: this one.

  Returns:
    Content of `report.json` in the data set's folder: counts, and the unreadable images.

  Raises:
    PrepareError: another data set of this name exists, or no image is readable.
    SourceError: the input can't be read.
  """
  final = pathlib.Path(data_dir) / source.dataset / VERSION
  identity = {"input": source.identity} | dataclasses.asdict(selection)
  if final.exists():
    return _existing(final, identity)
  if source.divided:
    selection = dataclasses.replace(selection, held_out=0)
  work = pathlib.Path(data_dir) / f"{source.dataset}.incomplete"
  parts, spool = work / "parts", work / "spool"
  _claim(work, identity)
  shutil.rmtree(spool, ignore_errors=True)
  for folder in (parts, spool):
    folder.mkdir(parents=True, exist_ok=True)
  total, tasks = source.open(lambda split, index: _report(parts, split, index).exists(), spool)
  done = stored = 0
  with Progress(total, description=source.dataset) as progress:
    for task, n_stored in _run(tasks, parts, selection, workers):
      done, stored = max(done, task.done), stored + n_stored
      progress.update(done, stored=stored)
  report = _finish(source, work, identity)
  final.parent.mkdir(parents=True, exist_ok=True)
  os.replace(work, final)
  # Only now: until here, they let an interrupted build resume.
  for folder in ("parts", "spool"):
    shutil.rmtree(final / folder, ignore_errors=True)
  (final / "plan.json").unlink(missing_ok=True)
  return report


def _existing(final: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  try:
    report = json.loads((final / "report.json").read_bytes())
  except (OSError, ValueError) as error:
    raise PrepareError(f"{final}: found a data set that was not built here") from error
  if report.get("built_from") != identity:
    raise PrepareError(
      f"{final}: exists already (found {report.get('built_from')}, expected {identity})"
    )
  log.info("%s: is complete; nothing to do", final)
  return report


def _claim(work: pathlib.Path, identity: dict[str, Any]) -> None:
  """Records the identity of a new build, and checks that of a resumed one."""
  plan = work / "plan.json"
  if not plan.exists():
    work.mkdir(parents=True, exist_ok=True)
    with replacing(plan) as file:
      file.write(json.dumps(identity).encode())
  found = json.loads(plan.read_bytes())
  if found != identity:
    raise PrepareError(
      f"{work}: was started from another input (found {found}, expected {identity}); delete it to"
      " start again"
    )


def _run(
  tasks: Iterable[Task], parts: pathlib.Path, selection: Selection, workers: int
) -> Iterator[tuple[Task, int]]:
  """Runs the tasks, in worker processes if there are several; yields each with its images."""
  if workers == 1:
    for task in tasks:
      yield task, _store(task, parts, selection)
    return
  tasks = iter(tasks)
  # Spawned: a fork would inherit locks that this process's threads hold.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    running: dict[concurrent.futures.Future, Task] = {}
    try:
      while True:
        # Only two more than workers, because waiting tasks may hold files in the spool.
        for task in itertools.islice(tasks, workers + 2 - len(running)):
          running[pool.submit(_store, task, parts, selection)] = task
        if not running:
          return
        finished, _ = concurrent.futures.wait(running, None, concurrent.futures.FIRST_COMPLETED)
        for future in finished:
          yield running.pop(future), future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _store(task: Task, parts: pathlib.Path, selection: Selection) -> int:
  """Writes a task's shards unless they exist; returns their number of images."""
  report = _report(parts, task.split, task.index)
  if report.exists():
    content = json.loads(report.read_bytes())
    return sum(len(split["labels"]) for split in content["splits"].values())
  shards: dict[str, Shard] = {}
  stored: dict[str, dict[str, Any]] = {}
  unreadable = []
  for unit in task.units:
    for split, key, label, image, reason in _chosen(unit, task.split, selection):
      if reason:
        unreadable.append({"image": key, "reason": reason})
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
    file.write(json.dumps({"splits": stored, "unreadable": unreadable}).encode())
  for unit in task.units:
    if isinstance(unit, Tar) and unit.temporary:
      unit.path.unlink(missing_ok=True)
  return sum(len(split["labels"]) for split in stored.values())


def _chosen(
  unit: StoredImages | Tar, split: str, selection: Selection
) -> Iterator[tuple[str, str, int, bytes, str]]:
  """Yields (split, key, label, image, error) of the chosen images.

  The next image of its class replaces an unreadable one. Splits other than train are kept whole.
  """
  images, first = (unit.open(), unit.label) if isinstance(unit, Tar) else (unit, 0)
  taken: collections.Counter[tuple[int, str]] = collections.Counter()
  limits = {split: len(images)}
  if split == "train":
    limits = {"validation": selection.held_out, split: selection.shots or len(images)}
  for index in ranked(images.labels, images.keys, selection.seed)[0].tolist():
    label = int(images.labels[index]) + first
    where = next((name for name, limit in limits.items() if taken[label, name] < limit), None)
    if where is None:
      continue
    try:
      image = images.encoded(index)
      reason = decoding_error(image)
    except ImageError as error:
      image, reason = b"", str(error)
    taken[label, where] += not reason
    yield where, str(images.keys[index]), label, image, reason


def _finish(source: Input, work: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  """Renames the shards and writes metadata, indices and the report; can be repeated."""
  parts = work / "parts"
  labels: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  keys: dict[str, list[str]] = collections.defaultdict(list)
  files: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
  num_bytes: collections.Counter[str] = collections.Counter()
  unreadable = []
  for path in sorted(parts.glob("*.json")):
    content = json.loads(path.read_bytes())
    unreadable += content["unreadable"]
    for split, stored in sorted(content["splits"].items()):
      labels[split].append(np.array(stored["labels"], np.int32))
      keys[split] += stored["keys"]
      files[split].append(_part(parts, split, int(path.stem.rpartition("-")[2])))
      num_bytes[split] += stored["num_bytes"]
  if not files:
    raise PrepareError(f"{work}: no readable image; {len(unreadable)} are unreadable")
  for split, paths in files.items():
    for number, path in enumerate(paths):
      if path.exists():
        os.replace(path, work / shard_name(source.dataset, split, number, len(paths)))
  write_metadata(
    work,
    source.dataset,
    label_names=source.label_names,
    splits={split: (list(map(len, rows)), num_bytes[split]) for split, rows in labels.items()},
    description=source.description,
  )
  counts = {}
  for split, rows in labels.items():
    flat = np.concatenate(rows)
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
    "n_unreadable": len(unreadable),
    "unreadable": unreadable,
  }
  with replacing(work / "report.json") as file:
    file.write(json.dumps(report, indent=2).encode())
  return report


def _part(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}"


def _report(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}.json"
