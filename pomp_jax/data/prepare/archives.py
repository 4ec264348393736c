"""Inputs of `prepare.build` as they are distributed: folders, tar files, CoOp's layout."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import pathlib
import shutil
import tarfile

import numpy as np

from pomp_jax.data.class_lists import SYNSET, ClassList, load_class_list
from pomp_jax.data.coop import COOP_SETS, open_aircraft, open_coop
from pomp_jax.data.folder import open_folder, split_folders, subfolders
from pomp_jax.data.prepare.records import MAX_IMAGE_BYTES, Input, IsDone, Tar, Task
from pomp_jax.data.source import SourceError, StoredImages

# Approximate size of a shard: images, or bytes of tar files.
_SHARD_IMAGES, _SHARD_BYTES = 4096, 512 * 2**20
# Assumed size of an image where only some images of a tar are stored.
_IMAGE_BYTES = 128 * 2**10
# Limits: a synset's tar has 1.5 GB at most, FGVC-Aircraft's archive 2.8 GB.
_MAX_TAR_BYTES, _MAX_ARCHIVE_BYTES = 16 * 2**30, 8 * 2**30
_MEBIBYTE = 2**20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError)

_IMAGENET21K = (
  "ImageNet-21K (image-net.org, for non-commercial research); labels are WordNet 3.0 ids."
)
_AIRCRAFT = "FGVC-Aircraft 2013b, variants (Maji et al., 2013); for research only."


def open_input(
  dataset: str, path: str | os.PathLike, *, names: str = "", images_per_class: int = 0
) -> Input:
  """Opens the input of a data set; lists files and headers, reads no image.

  Args:
    dataset: one of DATASETS.
    path: for imagenet21k a folder of synset folders (or of train and val with such folders), a
      folder of synset tar files, one tar of these, or that as .tar.gz; for fgvc_aircraft the
      archive or its `data` folder; for the others CoOp's `$DATA`.
    names: class list whose classes of imagenet21k to store; all of ImageNet-21K's if empty.
    images_per_class: images of each class that will be stored, for the size of the shards; 0: all.

  Raises:
    SourceError: the files don't match the data set.
    VocabularyError: the class list can't be read.
  """
  return _OPENERS[dataset](pathlib.Path(path), names, images_per_class)


def _coop(name: str, path: pathlib.Path, names: str, images_per_class: int) -> Input:
  del names
  description = (
    f"{name} with CoOp's fixed splits (Zhou et al., 2022); the images' licence is their makers'."
  )
  return _from_splits(f"coop_{name}", open_coop(path, name), description, images_per_class)


def _imagenet21k(path: pathlib.Path, names: str, images_per_class: int) -> Input:
  classes = load_class_list(names or "imagenet21k")
  if classes.synsets is None:
    raise SourceError(f"config.prepare.names: got {names!r}, expected a class list with synsets")
  if path.is_file():
    if path.name.endswith((".tar.gz", ".tgz")):
      return _tar_gz(path, classes, images_per_class)
    return _tars(_tars_in_tar(path, classes), path, images_per_class)
  if not subfolders(path, links=True):
    return _tars(_tars_in_folder(path, classes), path, images_per_class)
  splits = {}
  for split, folder in split_folders(path).items():
    found = set(subfolders(folder))
    present = [index for index, synset in enumerate(classes.synsets) if synset in found]
    if not present:
      raise SourceError(f"{folder}: no folder is named after a WordNet id of the class list")
    splits[split] = open_folder(folder, classes.subset(present), all_classes=False)
  # Labels are the synsets of all splits.
  synset_of = dict(zip(classes.names, classes.synsets, strict=True))
  synsets = sorted({synset_of[name] for source in splits.values() for name in source.names})
  label_of = {synset: label for label, synset in enumerate(synsets)}
  for split, source in splits.items():
    labels_N = np.array([label_of[synset_of[name]] for name in source.names])
    splits[split] = source.relabelled(synsets, labels_N[source.labels])
  return _from_splits("imagenet21k", splits, _IMAGENET21K, images_per_class)


def _from_splits(
  dataset: str, splits: dict[str, StoredImages], description: str, images_per_class: int
) -> Input:
  digest = hashlib.blake2b(digest_size=8)
  for split, source in splits.items():
    digest.update(f"{split} {len(source)} ".encode() + source.labels.tobytes())
    digest.update("\n".join(source.keys.tolist()).encode())
  return Input(
    dataset,
    next(iter(splits.values())).names,
    description,
    identity=f"{sum(map(len, splits.values()))} images {digest.hexdigest()}",
    open=lambda is_done, spool: _split_tasks(splits, images_per_class),
    divided=len(splits) > 1,
  )


def _split_tasks(
  splits: dict[str, StoredImages], images_per_class: int
) -> tuple[int, Iterable[Task]]:
  """Shards of whole classes with about the same number of images."""
  tasks, done = [], 0
  for split, source in splits.items():
    order = np.argsort(source.labels, kind="stable")
    sizes = np.bincount(source.labels, minlength=len(source.names))
    stored = np.minimum(sizes, images_per_class) if images_per_class else sizes
    shard_of_class = np.cumsum(stored) // _SHARD_IMAGES
    shard_of_image = shard_of_class[source.labels[order]]
    for index, shard in enumerate(np.unique(shard_of_image)):
      part = order[shard_of_image == shard]
      done += len(part)
      tasks.append(Task(index, split, (source.subset(part),), done))
  return done, tasks


def _tars(tars: Sequence[Tar], path: pathlib.Path, images_per_class: int) -> Input:
  if not tars:
    raise SourceError(f"{path}: no tar file is named after a WordNet id of the class list")
  tars = sorted(tars, key=lambda tar: tar.synset)
  synsets = tuple(tar.synset for tar in tars)
  repeated = next((a for a, b in itertools.pairwise(synsets) if a == b), None)
  if repeated:
    raise SourceError(f"{path}: {repeated}.tar is repeated")
  tars = [dataclasses.replace(tar, label=label) for label, tar in enumerate(tars)]
  listing = "".join(f"{tar.synset} {tar.size}\n" for tar in tars)
  digest = hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()
  ends = list(itertools.accumulate(tar.size for tar in tars))

  def tasks(is_done: IsDone, spool: pathlib.Path) -> tuple[int, Iterable[Task]]:
    positions = zip(tars, ends, strict=True)
    return max(1, ends[-1] // _MEBIBYTE), _tar_tasks(positions, images_per_class)

  return Input("imagenet21k", synsets, _IMAGENET21K, f"{len(tars)} tar files {digest}", tasks)


def _tar_tasks(
  tars: Iterable[tuple[Tar, int]],
  images_per_class: int,
  fetch: Callable[[Tar, int], None] = lambda tar, index: None,
) -> Iterator[Task]:
  """Yields shards of tars, in order.

  Args:
    tars: tars, and end of each in the input, bytes.
    images_per_class: images of each class that will be stored; 0: all.
    fetch: function called with each tar and the number of its shard, before the next tar.
  """
  group: list[Tar] = []
  size = index = position = 0
  for tar, position in tars:
    fetch(tar, index)
    group.append(tar)
    few = images_per_class * _IMAGE_BYTES
    size += min(tar.size, few) if images_per_class else tar.size
    if size >= _SHARD_BYTES:
      yield Task(index, "train", tuple(group), position // _MEBIBYTE)
      group, size, index = [], 0, index + 1
  if group:
    yield Task(index, "train", tuple(group), max(1, position // _MEBIBYTE))


def _tars_in_folder(path: pathlib.Path, classes: ClassList) -> list[Tar]:
  known = set(classes.synsets)
  try:
    with os.scandir(path) as entries:
      return [
        Tar(path / entry.name, 0, entry.stat().st_size, 0, entry.name[:-4])
        for entry in entries
        if entry.name.endswith(".tar") and entry.name[:-4] in known and entry.is_file()
      ]
  except OSError as error:
    raise SourceError(f"{path}: can't be read ({error.strerror})") from error


def _tars_in_tar(path: pathlib.Path, classes: ClassList) -> list[Tar]:
  """Places of the synsets' tars in a tar of them; only headers are read."""
  known = set(classes.synsets)
  try:
    with tarfile.open(path, "r:") as tar:
      found = [
        Tar(path, member.offset_data, member.size, 0, synset)
        for member in tar
        if (synset := _synset(member)) in known
      ]
    if found and found[-1].offset + found[-1].size > path.stat().st_size:
      raise SourceError(f"{path}: is truncated")
  except _TAR_ERRORS as error:
    raise SourceError(f"{path}: not a readable tar file ({error})") from error
  return found


def _synset(member: tarfile.TarInfo) -> str | None:
  """WordNet id of a member that is a synset's tar."""
  stem, dot, suffix = pathlib.PurePosixPath(member.name).name.rpartition(".")
  is_tar = member.isreg() and not member.issparse() and suffix == "tar"
  return stem if is_tar and SYNSET.fullmatch(stem) else None


def _tar_gz(path: pathlib.Path, classes: ClassList, images_per_class: int) -> Input:
  """A .tar.gz of synsets' tars, read once from its start; each tar is a file for a while.

  Its synsets are known only at its end, so the labels are those of the whole list.
  """
  with open(path, "rb") as file:
    if file.read(2) != b"\x1f\x8b":
      raise SourceError(f"{path}: not a gzip file")
  identity = f"{path.name} {path.stat().st_size} {images_per_class}"
  tasks = functools.partial(_tar_gz_tasks, path, classes.synsets, images_per_class)
  return Input("imagenet21k", classes.synsets, _IMAGENET21K, identity, tasks)


def _tar_gz_tasks(
  path: pathlib.Path,
  synsets: Sequence[str],
  images_per_class: int,
  is_done: IsDone,
  spool: pathlib.Path,
) -> tuple[int, Iterator[Task]]:
  label_of = {synset: label for label, synset in enumerate(synsets)}
  seen: dict[str, tarfile.TarInfo] = {}

  def tars(raw: io.BufferedIOBase, archive: tarfile.TarFile) -> Iterator[tuple[Tar, int]]:
    for member in archive:
      synset = _synset(member)
      if synset not in label_of:
        continue
      if member.size > _MAX_TAR_BYTES or synset in seen:
        raise SourceError(f"{path}: {synset}.tar is repeated or too large")
      seen[synset] = member
      file = spool / f"{synset}.tar"
      yield Tar(file, 0, member.size, label_of[synset], synset, temporary=True), raw.tell()

  def tasks() -> Iterator[Task]:
    try:
      with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as archive:

        def fetch(tar: Tar, index: int) -> None:
          if not is_done("train", index):
            _copy(archive.extractfile(seen[tar.synset]), tar.path, tar.size)

        yield from _tar_tasks(tars(raw, archive), images_per_class, fetch)
    except _TAR_ERRORS as error:
      raise SourceError(f"{path}: can't be read to its end ({error})") from error
    if not seen:
      raise SourceError(f"{path}: no tar file is named after a WordNet id of the class list")

  return max(1, path.stat().st_size // _MEBIBYTE), tasks()


def _copy(stream: io.BufferedIOBase, path: pathlib.Path, size: int) -> None:
  """Copies a member to a file if the disk has room for it."""
  free = shutil.disk_usage(path.parent).free
  if free < size + 2**30:
    raise SourceError(f"{path.parent}: {free} bytes are free, expected {size} and 1 GiB to spare")
  with open(path, "wb") as file:
    shutil.copyfileobj(stream, file, _MEBIBYTE)


def _aircraft(path: pathlib.Path, names: str, images_per_class: int) -> Input:
  del names
  known = load_class_list("fgvc_aircraft").names
  if path.is_dir():
    folders = (path, path / "data", path / "fgvc-aircraft-2013b/data")
    folder = next((folder for folder in folders if (folder / "variants.txt").exists()), path)
    splits = open_aircraft(folder)
    if set(splits["train"].names) != set(known):
      raise SourceError(
        f"{folder / 'variants.txt'}: expected FGVC-Aircraft's {len(known)} variants"
      )
    return _from_splits("fgvc_aircraft", splits, _AIRCRAFT, images_per_class)
  if not path.is_file():
    raise SourceError(f"{path}: no such file or folder")

  def tasks(is_done: IsDone, spool: pathlib.Path) -> tuple[int, Iterable[Task]]:
    _extract_aircraft(path, spool)
    splits = open_aircraft(spool)
    if splits["train"].names != known:
      raise SourceError(f"{path}: expected FGVC-Aircraft's {len(known)} variants")
    return _split_tasks(splits, images_per_class)

  identity = f"{path.name} {path.stat().st_size}"
  return Input("fgvc_aircraft", known, _AIRCRAFT, identity, tasks, divided=True)


def _extract_aircraft(path: pathlib.Path, spool: pathlib.Path) -> None:
  """Extracts the archive's lists and images into the spool, whatever folders it names."""
  (spool / "images").mkdir()
  total = 0
  try:
    with tarfile.open(path, "r|*") as archive:
      for member in archive:
        parts = pathlib.PurePosixPath(member.name).parts
        if not member.isreg() or member.issparse() or len(parts) < 2:
          continue
        total += member.size
        if member.size > MAX_IMAGE_BYTES or total > _MAX_ARCHIVE_BYTES:
          raise SourceError(f"{path}: larger than FGVC-Aircraft's archive")
        if parts[-2] == "images" and parts[-1].endswith(".jpg"):
          _copy(archive.extractfile(member), spool / "images" / parts[-1], member.size)
        elif parts[-2] == "data" and parts[-1].endswith(".txt"):
          _copy(archive.extractfile(member), spool / parts[-1], member.size)
  except _TAR_ERRORS as error:
    raise SourceError(f"{path}: not a readable archive ({error})") from error


# The data sets that can be prepared.
_OPENERS: dict[str, Callable[[pathlib.Path, str, int], Input]] = {
  "imagenet21k": _imagenet21k,
  "fgvc_aircraft": _aircraft,
} | {
  f"coop_{name}": functools.partial(_coop, name)
  for name in COOP_SETS
  if not name.startswith(("imagenet", "fgvc"))
}
DATASETS = tuple(_OPENERS)
