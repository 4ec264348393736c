"""Writes a data set that TFDS lacks as records: ImageNet-21K, Aircraft, CoOp's splits.

`config.prepare.input` holds the files of `config.prepare.dataset` as distributed.
`--workdir` is TFDS's data_dir: the data set and its `report.json` are written to
`WORKDIR/NAME/1.0.0`, and `data.source='tfds'` with `data.root=WORKDIR` reads the data
set. Unreadable images are left out. An incomplete data set is in
`WORKDIR/NAME.incomplete/`. Its folder `parts/` holds the finished shards and a piece
(`files.pieces`) for each finished task. A restart skips these tasks.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
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
from typing import Any

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pomp_jax import hosts
from pomp_jax.config.errors import ConfigError
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.data.subsets import ranked
from pomp_jax.files.atomic import replacing
from pomp_jax.files.paths import exists, is_bucket
from pomp_jax.files.pieces import Piece, Pieces
from pomp_jax.files.run_folder import RunFolderError, read_json, write_json
from pomp_jax.files.terminal import steps_of
from pomp_jax.rooms.data_sets.archives import DATASETS, Input, Tar, Task, open_input
from pomp_jax.rooms.data_sets.fields import PrepareConfig

log = logging.getLogger(__name__)

VERSION = "1.0.0"
_SUFFIX = "array_record"


class PrepareError(SourceError):
  """A data set can't be built, or not in this folder; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Choice of each class's images; a resumed build must make the same choice.

  Images for "validation" are chosen first, but one image of each class is left to train
  on.
  """

  shots: int = 0  # images a class in "train"; 0: all
  seed: int = 0  # random seed of the choice
  held_out: int = 0  # images a class for "validation"


def check(config: PrepareConfig, workdir: str) -> None:
  """Checks the fields; reads no image and writes nothing.

  Args:
    config: config of the job.
    workdir: folder that the data set is written to.

  Raises:
    RunFolderError: a path is in a bucket.
    ConfigError: the input is missing, or a field has a value that the others forbid.
  """
  prepare = config.prepare
  for path in (prepare.input, workdir):
    if is_bucket(path):
      raise RunFolderError(f"{path}: job=prepare takes local paths; copy what it makes")
  if not exists(prepare.input):
    accepted = "a file or folder that exists"
    raise ConfigError("prepare.input", prepare.input, accepted)
  if prepare.dataset not in DATASETS:
    accepted = f"one of {', '.join(DATASETS)}"
    raise ConfigError("prepare.dataset", prepare.dataset, accepted)
  if prepare.names and prepare.dataset != "imagenet21k":
    accepted = "'' for other sets than imagenet21k"
    raise ConfigError("prepare.names", prepare.names, accepted)


def run(config: PrepareConfig, workdir: str) -> dict:
  """Writes the data set, or resumes writing it, and returns its `report.json`.

  Raises:
    SourceError: the input is unusable.
    PrepareError: the folder holds another data set, or no image is readable.
  """
  prepare = config.prepare
  images_per_class = 0  # all
  if prepare.shots:
    images_per_class = prepare.shots + prepare.held_out
  source = open_input(
    prepare.dataset,
    prepare.input,
    names=prepare.names,
    images_per_class=images_per_class,
  )
  selection = Selection(
    shots=prepare.shots, seed=prepare.shots_seed, held_out=prepare.held_out
  )
  workers = prepare.workers or hosts.own_cores()
  report = build(source, workdir, selection, workers)
  for split, counts in report["splits"].items():
    log.info(
      "%s: %d images of %d classes in %d shards, %.2f GB",
      split,
      counts["images"],
      counts["classes"],
      counts["shards"],
      counts["bytes"] / 1e9,
    )
  log.info("%d unreadable images are listed in report.json", report["n_unreadable"])
  log.info("read it with data.source='tfds', data.dataset='%s'", report["dataset"])
  return report


def build(
  source: Input, data_dir: str | os.PathLike, selection: Selection, workers: int = 1
) -> dict[str, Any]:
  """Writes a data set to `data_dir/NAME/1.0.0`, or resumes writing it.

  Args:
    source: images to write.
    data_dir: folder of all data sets, TFDS's data_dir.
    selection: choice of each class's images.
    workers: number of worker processes; 1 writes in this process.

  Returns:
    `report.json`: counts of each split, and the unreadable images.

  Raises:
    PrepareError: another data set of this name exists, or no image is readable.
  """
  final = pathlib.Path(data_dir) / source.dataset / VERSION
  identity = {"input": source.identity, **dataclasses.asdict(selection)}
  if final.exists():
    report = _report_of(final, identity)
    log.info("%s: is complete; nothing to do", final)
    return report

  # The folder of an interrupted build belongs to one input and selection.
  work = pathlib.Path(data_dir) / f"{source.dataset}.incomplete"
  plans = Pieces(work / "parts", "plan")
  plan = plans.load("plan")
  if plan is None:
    plan = plans.save("plan", {"identity": identity})
  _check_identity(work, plan.facts["identity"], identity)

  if source.divided:
    # The data set has a validation split: hold out no image of the training split.
    selection = dataclasses.replace(selection, held_out=0)
  parts = Pieces(work / "parts", json.dumps(identity))
  pieces = _store_all(source, parts, selection, workers)
  report = {"dataset": source.dataset, "built_from": identity}
  report |= _finish(source, work, pieces, selection.held_out > 0)
  write_json(work / "report.json", report)
  final.parent.mkdir(parents=True, exist_ok=True)
  os.replace(work, final)
  # Remove the pieces only now: an interrupted build resumes from them.
  Pieces(final / "parts", "").remove()
  return report


def _report_of(folder: pathlib.Path, identity: dict[str, Any]) -> dict[str, Any]:
  """Reads the report of a finished data set; PrepareError for another data set."""
  try:
    report = read_json(folder / "report.json")
  except RunFolderError as error:
    raise PrepareError(
      f"{folder}: found a data set that was not built here ({error})"
    ) from error
  _check_identity(folder, report.get("built_from"), identity)
  return report


def _store_all(
  source: Input, parts: Pieces, selection: Selection, workers: int
) -> list[Piece]:
  """Calls `_store` for each task, in this process or in worker processes."""
  store = functools.partial(_store, parts=parts, selection=selection)
  n_tasks = len(source.tasks)
  with contextlib.ExitStack() as stack:
    map_tasks: Any = map
    if workers > 1:
      # Spawn the workers: a fork would inherit locks that this process's threads hold.
      spawn = multiprocessing.get_context("spawn")
      pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
      map_tasks = stack.enter_context(pool).map
    stored = map_tasks(store, source.tasks)
    return list(steps_of(stored, source.dataset, "shards", n_tasks))


def _check_identity(
  folder: pathlib.Path, stored: Any, identity: dict[str, Any]
) -> None:
  """Checks that a folder was begun with the same input and selection."""
  if stored != identity:
    raise PrepareError(
      f"{folder}: has another input (found {stored}, expected {identity})"
    )


def _store(task: Task, parts: Pieces, selection: Selection) -> Piece:
  """Writes a task's shards, unless an earlier start has finished the task.

  A task of the training split may write two shards: held-out images go to a shard of
  the validation split.

  Args:
    task: images to write.
    parts: finished tasks, and the folder of their shards.
    selection: choice of each class's images.

  Returns:
    The finished piece. Its facts are `bytes`, the size of each split's shard, and
    `unreadable`, the images that can't be decoded. Its arrays are the labels and keys
    of each split.
  """
  name = _part(task.split, task.index)
  finished = parts.load(name)
  if finished is not None:
    return finished

  shards: dict[str, Shard] = {}
  unreadable: list[dict[str, str]] = []
  for unit in task.units:
    for split, key, label, image in _chosen(unit, task.split, selection, unreadable):
      if split not in shards:
        shards[split] = Shard(parts.folder / _part(split, task.index))
      shards[split].write(image, label, key)

  sizes: dict[str, int] = {}
  arrays: dict[str, np.ndarray] = {}
  for split, shard in shards.items():
    shard.close()
    sizes[split] = shard.num_bytes
    arrays[f"{split}_labels"] = np.array(shard.labels, np.int32)
    # Store UTF-8: NumPy stores a text with four bytes a character.
    arrays[f"{split}_keys"] = np.char.encode(np.array(shard.keys, str), "utf-8")
  # The task is finished only with its piece: an interrupted task starts again.
  return parts.save(name, {"bytes": sizes, "unreadable": unreadable}, arrays)


def _chosen(
  unit: StoredImages | Tar,
  split: str,
  selection: Selection,
  unreadable: list[dict[str, str]],
) -> Iterator[tuple[str, str, int, bytes]]:
  """Yields (split, key, label, image) of the chosen images, class by class.

  An unreadable image is replaced by the next image of its class. Splits other than
  train are kept whole.
  """
  if isinstance(unit, Tar):
    images = unit.open()
    first_label = unit.label
  else:
    images = unit
    first_label = 0
  if split != "train":
    selection = Selection()
  ranks = ranked(images.labels, images.keys, selection.seed)[0].tolist()
  label_of = lambda index: int(images.labels[index])
  for label_in_unit, indices in itertools.groupby(ranks, key=label_of):
    label = first_label + label_in_unit
    readable = _readable(images, indices, unreadable)
    chosen = next(readable, None)
    if chosen is None:
      continue
    # Hold out an image only if another readable image follows, so that at least one is
    # left to train on. `range` is first in the zip, which then takes no image too many.
    for _, following in zip(range(selection.held_out), readable, strict=False):
      key, image = chosen
      yield "validation", key, label, image
      chosen = following
    n_more = selection.shots - 1 if selection.shots else None
    for key, image in itertools.chain([chosen], itertools.islice(readable, n_more)):
      yield split, key, label, image


def _readable(
  images: StoredImages, indices: Iterable[int], unreadable: list[dict[str, str]]
) -> Iterator[tuple[str, bytes]]:
  """Yields the decodable images with their keys; appends others to `unreadable`."""
  for index in indices:
    key = str(images.keys[index])
    image, reason = images.checked(index)
    if reason:
      unreadable.append({"image": key, "reason": reason})
    else:
      yield key, image


def _finish(
  source: Input, work: pathlib.Path, pieces: Sequence[Piece], validated: bool
) -> dict[str, Any]:
  """Renames the shards, writes metadata and indices, and returns the report's counts.

  After an interruption this function can be called again.
  """
  pieces_of_split: dict[str, list[tuple[Task, Piece]]] = collections.defaultdict(list)
  unreadable = []
  tasks = zip(source.tasks, pieces, strict=True)
  for task, piece in sorted(tasks, key=lambda pair: (pair[0].split, pair[0].index)):
    unreadable += piece.facts["unreadable"]
    for split in sorted(piece.facts["bytes"]):
      pieces_of_split[split].append((task, piece))
  if not pieces_of_split:
    raise PrepareError(f"{work}: no readable image; {len(unreadable)} are unreadable")
  labels = {}
  counts = {}
  sizes = {}
  for split, shards in pieces_of_split.items():
    for number, (task, _) in enumerate(shards):
      path = work / "parts" / _part(split, task.index)
      if path.exists():
        os.replace(path, work / shard_name(source.dataset, split, number, len(shards)))
    labels_of_shards = [piece.arrays[f"{split}_labels"] for _, piece in shards]
    labels[split] = np.concatenate(labels_of_shards)
    keys = np.concatenate([piece.arrays[f"{split}_keys"] for _, piece in shards])
    # The index spares a reader from reading all images for their labels.
    with replacing(work / f"index-{split}.npz") as file:
      np.savez_compressed(file, labels=labels[split], keys=keys)
    n_bytes = sum(piece.facts["bytes"][split] for _, piece in shards)
    sizes[split] = [len(shard) for shard in labels_of_shards], n_bytes
    counts[split] = {
      "images": len(keys),
      "classes": len(np.unique(labels[split])),
      "shards": len(shards),
      "bytes": n_bytes,
    }
  write_metadata(work, source.dataset, source.label_names, sizes, source.description)
  not_validated = []
  if validated:
    # These classes have one readable image each, which is left to train on.
    single = np.setdiff1d(labels.get("train", ()), labels.get("validation", ()))
    not_validated = [source.label_names[label] for label in single]
  if not_validated:
    log.warning(
      "%d classes have one readable image each: it is trained on, and nothing validates"
      " them, such as %s",
      len(not_validated),
      not_validated[0],
    )
  return {
    "splits": counts,
    "n_unreadable": len(unreadable),
    "unreadable": unreadable,
    "not_validated": not_validated,
  }


class Shard:
  """A file of records that is being written, with labels and keys of its images."""

  def __init__(self, path: pathlib.Path):
    # One record a group, because images are read one by one. No compression, because a
    # JPEG file does not get smaller.
    self._writer = array_record_module.ArrayRecordWriter(
      str(path), "group_size:1,uncompressed"
    )
    self.labels: list[int] = []
    self.keys: list[str] = []
    self.num_bytes = 0  # of all records

  def write(self, image: bytes, label: int, key: str) -> None:
    """Appends an image file as a record, a `tf.train.Example` as TFDS reads it.

    Args:
      image: content of the file, which is stored as it is.
      label: class of the image.
      key: path of the image in the input.
    """
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(image)
    features["label"].int64_list.value.append(label)
    features["file_name"].bytes_list.value.append(key.encode())
    record = example.SerializeToString()
    self._writer.write(record)

    # Collect the index of the split, and the sizes for TFDS's metadata.
    self.labels.append(label)
    self.keys.append(key)
    self.num_bytes += len(record)

  def close(self) -> None:
    """Completes the file."""
    self._writer.close()


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
  """Returns the file name of a shard in a finished data set, as TFDS expects it.

  Args:
    dataset: name of the data set.
    split: name of the split.
    index: number of the shard in its split, from 0.
    count: number of the split's shards.
  """
  return f"{dataset}-{split}.{_SUFFIX}-{index:05d}-of-{count:05d}"


def write_metadata(
  folder: pathlib.Path,
  dataset: str,
  label_names: Sequence[str],
  splits: dict[str, tuple[list[int], int]],
  description: str,
) -> None:
  """Writes `dataset_info.json`, `features.json` and the label names beside the shards.

  Args:
    folder: folder of the shards.
    dataset: name of the data set.
    label_names: names of the classes, in the order of the labels.
    splits: by split, the number of records in each shard, and the bytes of all records.
    description: origin and licence of the images.
  """
  features = {
    "file_name": tfds.features.Text(),
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=list(label_names)),
  }
  infos = []
  for name, (shard_lengths, num_bytes) in splits.items():
    template = tfds.core.ShardedFileTemplate(
      dataset_name=dataset, split=name, filetype_suffix=_SUFFIX, data_dir=folder
    )
    info = tfds.core.SplitInfo(
      name=name,
      filename_template=template,
      shard_lengths=shard_lengths,
      num_bytes=num_bytes,
    )
    infos.append(info)
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=tfds.features.FeaturesDict(features),
    split_infos=infos,
    version=VERSION,
    description=description,
    check_data=False,
  )


def _part(split: str, index: int) -> str:
  """Name of a task, and of its shard until the data set is complete."""
  return f"{split}-{index:05d}"
