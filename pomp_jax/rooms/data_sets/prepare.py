"""A data set that TFDS lacks, as records: ImageNet-21K, FGVC-Aircraft, CoOp's fixed
splits.

`config.prepare.input` is what `config.prepare.dataset` is made of, as distributed.
`--workdir` is TFDS's data_dir: the data set and its `report.json` are written to
`WORKDIR/NAME/1.0.0`, and `data.source='tfds'`, `data.root=WORKDIR` reads it. Unreadable
images are left out. Until it is complete, it lies in `NAME.incomplete/`, whose folder
`parts/` holds the finished shards and a piece for each task (`files.pieces`), which a
restart skips.
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
from pomp_jax.config.declare import require
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
  """Data set that can't be built, or not in this folder; one line."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Choice of each class's images; a resumed build must have the same.

  Images for "validation" are chosen first, but one image of each class is left to train
  on.
  """

  shots: int = 0  # images a class in "train"; 0: all
  seed: int = 0  # random seed of the choice
  held_out: int = 0  # images a class for "validation"


def check(config: PrepareConfig, workdir: str) -> None:
  """Checks the fields, and that the folder can be written; reads and writes nothing."""
  prepare = config.prepare
  for path in (prepare.input, workdir):
    if is_bucket(path):
      raise RunFolderError(f"{path}: job=prepare takes local paths; copy what it makes")
  require(
    exists(prepare.input),
    "prepare.input",
    prepare.input,
    "a file or folder that exists",
  )
  expected = f"one of {', '.join(DATASETS)}"
  require(prepare.dataset in DATASETS, "prepare.dataset", prepare.dataset, expected)
  fits = not prepare.names or prepare.dataset == "imagenet21k"
  require(fits, "prepare.names", prepare.names, "'' for other sets than imagenet21k")


def run(config: PrepareConfig, workdir: str) -> dict:
  """Makes the data set, or the rest of it; returns `report.json`. Raises as its two
  steps do."""
  prepare = config.prepare
  size = prepare.shots and prepare.shots + prepare.held_out
  source = open_input(
    prepare.dataset, prepare.input, names=prepare.names, images_per_class=size
  )
  selection = Selection(prepare.shots, prepare.shots_seed, prepare.held_out)
  report = build(source, workdir, selection, prepare.workers or hosts.own_cores())
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
  """Writes a data set to `data_dir/NAME/1.0.0`, or resumes writing it, in worker
  processes.

  Returns its `report.json`: counts, and the unreadable images. PrepareError if another
  data set of this name exists, or no image is readable.
  """
  final = pathlib.Path(data_dir) / source.dataset / VERSION
  identity = {"input": source.identity} | dataclasses.asdict(selection)
  if final.exists():
    try:
      report = read_json(final / "report.json")
    except RunFolderError as error:
      raise PrepareError(
        f"{final}: found a data set that was not built here ({error})"
      ) from error
    _check_identity(final, report.get("built_from"), identity)
    log.info("%s: is complete; nothing to do", final)
    return report
  work = pathlib.Path(data_dir) / f"{source.dataset}.incomplete"
  parts = Pieces(work / "parts", json.dumps(identity))
  plans = Pieces(work / "parts", "plan")
  plan = plans.load("plan") or plans.save("plan", {"identity": identity})
  _check_identity(work, plan.facts["identity"], identity)
  if source.divided:
    selection = dataclasses.replace(selection, held_out=0)
  store = functools.partial(_store, parts=parts, selection=selection)
  with contextlib.ExitStack() as stack:
    each: Any = map
    if workers > 1:
      # Spawned: a fork would inherit locks that this process's threads hold.
      spawn = multiprocessing.get_context("spawn")
      pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
      each = stack.enter_context(pool).map
    done = each(store, source.tasks)
    pieces = list(steps_of(done, source.dataset, "shards", len(source.tasks)))
  report = {"dataset": source.dataset, "built_from": identity}
  report |= _finish(source, work, pieces, selection.held_out > 0)
  write_json(work / "report.json", report)
  final.parent.mkdir(parents=True, exist_ok=True)
  os.replace(work, final)
  # Only now: an interrupted build resumes from these pieces.
  Pieces(final / "parts", "").remove()
  return report


def _check_identity(folder: pathlib.Path, found: Any, identity: dict[str, Any]) -> None:
  if found != identity:
    raise PrepareError(
      f"{folder}: has another input (found {found}, expected {identity})"
    )


def _store(task: Task, parts: Pieces, selection: Selection) -> Piece:
  """Writes a task's shards unless they exist.

  The piece has `bytes` of each split's shard, the `unreadable` images, and labels and
  keys.
  """
  name = _part(task.split, task.index)
  if piece := parts.load(name):
    return piece
  shards: dict[str, Shard] = {}
  unreadable: list[dict[str, str]] = []
  for unit in task.units:
    for split, key, label, image in _chosen(unit, task.split, selection, unreadable):
      if split not in shards:
        shards[split] = Shard(parts.folder / _part(split, task.index))
      shards[split].write(image, label, key)
  arrays: dict[str, np.ndarray] = {}
  for split, shard in shards.items():
    shard.close()
    arrays[f"{split}_labels"] = np.array(shard.labels, np.int32)
    arrays[f"{split}_keys"] = np.char.encode(np.array(shard.keys, str), "utf-8")
  sizes = {split: shard.num_bytes for split, shard in shards.items()}
  return parts.save(name, {"bytes": sizes, "unreadable": unreadable}, arrays)


def _chosen(
  unit: StoredImages | Tar,
  split: str,
  selection: Selection,
  unreadable: list[dict[str, str]],
) -> Iterator[tuple[str, str, int, bytes]]:
  """Yields (split, key, label, image) of the chosen images, class by class.

  The next image of its class replaces an unreadable one. Splits other than train are
  kept whole.
  """
  images, first = (unit.open(), unit.label) if isinstance(unit, Tar) else (unit, 0)
  if split != "train":
    selection = Selection()
  ranks = ranked(images.labels, images.keys, selection.seed)[0].tolist()
  for label, indices in itertools.groupby(
    ranks, key=lambda index: int(images.labels[index])
  ):
    readable = _readable(images, indices, unreadable)
    chosen = next(readable, None)
    if chosen is not None:
      # An image is held out only if another readable one follows, which is left to
      # train on.
      for _, following in zip(range(selection.held_out), readable, strict=False):
        yield "validation", chosen[0], label + first, chosen[1]
        chosen = following
      n_more = selection.shots - 1 if selection.shots else None
      for key, image in itertools.chain([chosen], itertools.islice(readable, n_more)):
        yield split, key, label + first, image


def _readable(
  images: StoredImages, indices: Iterable[int], unreadable: list[dict[str, str]]
) -> Iterator[tuple[str, bytes]]:
  """Yields key and content of the images that can be decoded, and appends the
  others."""
  for index in indices:
    key, (image, reason) = str(images.keys[index]), images.checked(index)
    if reason:
      unreadable.append({"image": key, "reason": reason})
    else:
      yield key, image


def _finish(
  source: Input, work: pathlib.Path, pieces: Sequence[Piece], validated: bool
) -> dict[str, Any]:
  """Renames the shards and writes metadata and indices; can be repeated. Returns
  counts."""
  found: dict[str, list[tuple[Task, Piece]]] = collections.defaultdict(list)
  unreadable = []
  tasks = zip(source.tasks, pieces, strict=True)
  for task, piece in sorted(tasks, key=lambda done: (done[0].split, done[0].index)):
    unreadable += piece.facts["unreadable"]
    for split in sorted(piece.facts["bytes"]):
      found[split].append((task, piece))
  if not found:
    raise PrepareError(f"{work}: no readable image; {len(unreadable)} are unreadable")
  labels, counts, splits = {}, {}, {}
  for split, shards in found.items():
    for number, (task, _) in enumerate(shards):
      path = work / "parts" / _part(split, task.index)
      if path.exists():
        os.replace(path, work / shard_name(source.dataset, split, number, len(shards)))
    of_shards = [piece.arrays[f"{split}_labels"] for _, piece in shards]
    labels[split] = np.concatenate(of_shards)
    # Labels and keys in the order of the records save their reader from reading all
    # images.
    with replacing(work / f"index-{split}.npz") as file:
      keys = np.concatenate([piece.arrays[f"{split}_keys"] for _, piece in shards])
      np.savez_compressed(file, labels=labels[split], keys=keys)
    size = sum(piece.facts["bytes"][split] for _, piece in shards)
    splits[split] = list(map(len, of_shards)), size
    n_classes = len(np.unique(labels[split]))
    of_split = {"images": len(keys), "classes": n_classes, "shards": len(shards)}
    counts[split] = of_split | {"bytes": size}
  write_metadata(work, source.dataset, source.label_names, splits, source.description)
  # Classes with one readable image, which is left to train on.
  single = (
    np.setdiff1d(labels.get("train", ()), labels.get("validation", ()))
    if validated
    else ()
  )
  not_validated = [source.label_names[label] for label in single]
  if not_validated:
    told = "have one readable image each: it is trained on, and nothing validates them"
    log.warning("%d classes %s, such as %s", len(not_validated), told, not_validated[0])
  of_images = {"n_unreadable": len(unreadable), "unreadable": unreadable}
  return {"splits": counts, **of_images, "not_validated": not_validated}


class Shard:
  """One file of records, with `labels` and `keys` of its images, and the records'
  `num_bytes`."""

  def __init__(self, path: pathlib.Path):
    # Images are read one by one, and JPEG does not compress further.
    self._writer = array_record_module.ArrayRecordWriter(
      str(path), "group_size:1,uncompressed"
    )
    self.labels: list[int] = []
    self.keys: list[str] = []
    self.num_bytes = 0

  def write(self, image: bytes, label: int, key: str) -> None:
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(image)
    feature["label"].int64_list.value.append(label)
    feature["file_name"].bytes_list.value.append(key.encode())
    record = example.SerializeToString()
    self._writer.write(record)
    self.labels.append(label)
    self.keys.append(key)
    self.num_bytes += len(record)

  def close(self) -> None:
    self._writer.close()


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
  """File name of a shard in a finished data set."""
  return f"{dataset}-{split}.{_SUFFIX}-{index:05d}-of-{count:05d}"


def write_metadata(
  folder: pathlib.Path,
  dataset: str,
  label_names: Sequence[str],
  splits: dict[str, tuple[list[int], int]],
  description: str,
) -> None:
  """Writes `dataset_info.json`, `features.json` and the label names beside the shards.

  `splits` has the number of records in each shard, and the bytes of all records.
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
    sizes = {"shard_lengths": shard_lengths, "num_bytes": num_bytes}
    infos.append(tfds.core.SplitInfo(name=name, filename_template=template, **sizes))
  more = {"version": VERSION, "description": description, "check_data": False}
  written = tfds.features.FeaturesDict(features)
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=written, split_infos=infos, **more
  )


def _part(split: str, index: int) -> str:
  """Name of a task's shard, and of a task, while the data set is built."""
  return f"{split}-{index:05d}"
