"""Builds a data set of records: parallel, without unreadable images, resumable.

While it is built, a data set lies in `NAME.incomplete/`. Its folder `parts/` holds the finished
shards, each with a JSON report that is written last. A resumed build skips shards that have one.
The folder gets its final name only when it is complete.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
from typing import Any

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pomp_jax.data.images import ImageError, decoding_error
from pomp_jax.data.prepare.archives import Input, Tar, Task
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.data.subsets import ranked
from pomp_jax.files.atomic import replacing
from pomp_jax.files.terminal import Progress

log = logging.getLogger(__name__)


VERSION = "1.0.0"
_SUFFIX = "array_record"
_NAMED = 5  # classes in a warning


class PrepareError(SourceError):
  """Data set that can't be built, or not in this folder; one line."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Choice of each class's images; a resumed build must have the same.

  Attributes:
    shots: images a class in "train"; 0: all.
    seed: random seed of the choice.
    held_out: images a class for the split "validation", chosen before those for "train", but for
      one that is left to train on.
  """

  shots: int = 0
  seed: int = 0
  held_out: int = 0


def build(
  source: Input, data_dir: str | os.PathLike, selection: Selection, workers: int = 1
) -> dict[str, Any]:
  """Writes a data set to `data_dir/NAME/1.0.0`, or resumes writing it, in worker processes.

  Returns:
    Content of `report.json` in the data set's folder: counts, and the unreadable images.

  Raises:
    PrepareError: another data set of this name exists, or no image is readable.
    SourceError: the input can't be read.
  """
  final = pathlib.Path(data_dir) / source.dataset / VERSION
  identity = {"input": source.identity} | dataclasses.asdict(selection)
  if final.exists():
    try:
      report = json.loads((final / "report.json").read_bytes())
    except (OSError, ValueError) as error:
      raise PrepareError(f"{final}: found a data set that was not built here") from error
    _check_identity(final, report.get("built_from"), identity)
    log.info("%s: is complete; nothing to do", final)
    return report
  if source.divided:
    selection = dataclasses.replace(selection, held_out=0)
  work = pathlib.Path(data_dir) / f"{source.dataset}.incomplete"
  parts, plan = work / "parts", work / "plan.json"
  parts.mkdir(parents=True, exist_ok=True)
  if not plan.exists():
    _write_json(plan, identity)
  _check_identity(work, json.loads(plan.read_bytes()), identity)
  store = functools.partial(_store, parts=parts, selection=selection)
  stored = 0
  with contextlib.ExitStack() as stack:
    progress = stack.enter_context(
      Progress(len(source.tasks), description=source.dataset, unit="shards")
    )
    run = map
    if workers > 1:
      # Spawned: a fork would inherit locks that this process's threads hold.
      spawn = multiprocessing.get_context("spawn")
      pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
      run = stack.enter_context(pool).map
    for done, n_stored in enumerate(run(store, source.tasks), 1):
      stored += n_stored
      progress.update(done, stored=stored)
  report = _finish(source, work, identity)
  final.parent.mkdir(parents=True, exist_ok=True)
  os.replace(work, final)
  # Only now: until here, they let an interrupted build resume.
  shutil.rmtree(final / "parts", ignore_errors=True)
  (final / "plan.json").unlink(missing_ok=True)
  return report


def _check_identity(folder: pathlib.Path, found: Any, identity: dict[str, Any]) -> None:
  if found != identity:
    raise PrepareError(f"{folder}: has another input (found {found}, expected {identity})")


def _write_json(path: pathlib.Path, content: Any, indent: int | None = None) -> None:
  with replacing(path) as file:
    file.write(json.dumps(content, indent=indent).encode())


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
  _write_json(report, {"splits": stored, "unreadable": unreadable})
  return sum(len(split["labels"]) for split in stored.values())


def _chosen(
  unit: StoredImages | Tar, split: str, selection: Selection
) -> Iterator[tuple[str, str, int, bytes, str]]:
  """Yields (split, key, label, image, error) of the chosen images.

  The next image of its class replaces an unreadable one. Splits other than train are kept whole.
  """
  images, first = (unit.open(), unit.label) if isinstance(unit, Tar) else (unit, 0)
  if split != "train":
    selection = Selection()
  ranks = ranked(images.labels, images.keys, selection.seed)[0].tolist()
  for label, indices in itertools.groupby(ranks, key=lambda index: int(images.labels[index])):
    for where, index, image, reason in _chosen_of_class(images, indices, split, selection):
      yield where, str(images.keys[index]), label + first, image, reason


def _chosen_of_class(
  images: StoredImages, indices: Iterable[int], split: str, selection: Selection
) -> Iterator[tuple[str, int, bytes, str]]:
  """Yields (split, index, image, error) of a class's images by rank, until there are enough."""
  n_held = n_stored = 0
  # An image that is held out if another readable one follows.
  waiting: tuple[int, bytes] | None = None
  for index in indices:
    if not waiting and n_held == selection.held_out and n_stored == selection.shots > 0:
      return
    try:
      image = images.encoded(index)
      reason = decoding_error(image)
    except ImageError as error:
      image, reason = b"", str(error)
    if reason:
      yield split, index, image, reason
      continue
    if waiting:
      yield "validation", *waiting, ""
      n_held, waiting = n_held + 1, None
    if n_held < selection.held_out:
      waiting = index, image
    else:
      yield split, index, image, ""
      n_stored += 1
  if waiting:
    yield split, *waiting, ""


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
  not_validated = []
  if identity["held_out"] and not source.divided:
    not_validated = _not_validated(labels, source.label_names)
  report = {
    "dataset": source.dataset,
    "built_from": identity,
    "splits": counts,
    "n_unreadable": len(unreadable),
    "unreadable": unreadable,
    "not_validated": not_validated,
  }
  _write_json(work / "report.json", report, indent=2)
  return report


def _not_validated(labels: Mapping[str, list[np.ndarray]], names: Sequence[str]) -> list[str]:
  """Names of the classes with one readable image, which is left to train on; warns of them."""
  train, validation = (np.concatenate([[], *labels.get(s, [])]) for s in ("train", "validation"))
  found = [names[int(label)] for label in np.setdiff1d(train, validation)]
  if found:
    more = ", .." if len(found) > _NAMED else ""
    log.warning(
      "%d classes have one readable image each: it is trained on, and nothing validates them: %s%s",
      *(len(found), ", ".join(found[:_NAMED]), more),
    )
  return found


class Shard:
  """One file of records; it gets its name when it is complete."""

  def __init__(self, path: pathlib.Path):
    """Opens PATH.partial."""
    self._path = path
    self._partial = path.with_name(f"{path.name}.partial")
    # Images are read one by one, and JPEG does not compress further.
    self._writer = array_record_module.ArrayRecordWriter(
      str(self._partial), "group_size:1,uncompressed"
    )
    self.length = self.num_bytes = 0

  def write(self, image: bytes, label: int, key: str) -> None:
    """Appends one image."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(image)
    feature["label"].int64_list.value.append(label)
    feature["file_name"].bytes_list.value.append(key.encode())
    record = example.SerializeToString()
    self._writer.write(record)
    self.length += 1
    self.num_bytes += len(record)

  def close(self) -> None:
    """Completes the file."""
    self._writer.close()
    os.replace(self._partial, self._path)


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
  """File name of a shard in a finished data set."""
  return f"{dataset}-{split}.{_SUFFIX}-{index:05d}-of-{count:05d}"


def write_metadata(
  folder: pathlib.Path,
  dataset: str,
  *,
  label_names: Sequence[str],
  splits: dict[str, tuple[list[int], int]],
  description: str,
  version: str = VERSION,
) -> None:
  """Writes `dataset_info.json`, `features.json` and the label names beside the shards.

  `splits` has the records of each shard, and the bytes of all records; `version` is the last part
  of the folder's path.
  """
  features = tfds.features.FeaturesDict(
    {
      "file_name": tfds.features.Text(),
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=list(label_names)),
    }
  )
  infos = []
  for name, (shard_lengths, num_bytes) in splits.items():
    template = tfds.core.ShardedFileTemplate(
      dataset_name=dataset,
      split=name,
      filetype_suffix=_SUFFIX,
      data_dir=folder,
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    infos.append(
      tfds.core.SplitInfo(
        name=name, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=infos,
    version=version,
    description=description,
    check_data=False,
  )


def write_index(folder: pathlib.Path, split: str, labels: np.ndarray, keys: Sequence[str]) -> None:
  """Writes labels and keys in record order to `index-SPLIT.npz`, to save reading images."""
  with replacing(folder / f"index-{split}.npz") as file:
    np.savez_compressed(
      file, labels=labels.astype(np.int32), keys=np.char.encode(np.array(keys, str), "utf-8")
    )


def _part(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}"


def _report(parts: pathlib.Path, split: str, index: int) -> pathlib.Path:
  return parts / f"{split}-{index:05d}.json"
