"""What the data sets are built from, as it is distributed: folders, tar files, CoOp's layout."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import tarfile
from typing import BinaryIO

import numpy as np

from pomp_jax.data.class_lists import SYNSET, ClassList, load_class_list
from pomp_jax.data.coop import COOP_SETS, open_aircraft, open_coop
from pomp_jax.data.folder import open_folder, split_folders, subfolders
from pomp_jax.data.prepare.store import Input, Task
from pomp_jax.data.prepare.units import MAX_IMAGE_BYTES, Slice, Tar
from pomp_jax.data.source import SourceError, StoredImages

BUILDERS = (
  "imagenet21k",
  "fgvc_aircraft",
  *(f"coop_{name}" for name in COOP_SETS if not name.startswith(("imagenet", "fgvc"))),
)

# What goes into a shard, about: of images, or of tar files in bytes.
_SHARD_IMAGES, _SHARD_BYTES = 4096, 512 * 2**20
# An image's share of that when only a few of a tar are taken.
_IMAGE_BYTES = 128 * 2**10
# A synset's tar is 1.5 GB at most, FGVC-Aircraft's archive 2.8 GB; larger is no such file.
_MAX_TAR_BYTES, _MAX_ARCHIVE_BYTES = 16 * 2**30, 8 * 2**30
_MEBIBYTE = 2**20

_DESCRIPTIONS = {
  "imagenet21k": "ImageNet-21K (image-net.org, for non-commercial research); labels are WordNet 3.0"
  " ids.",
  "fgvc_aircraft": "FGVC-Aircraft 2013b, variants (Maji et al., 2013); for research only.",
}


def open_input(
  builder: str, path: str | os.PathLike, *, names: str = "", images_per_class: int = 0
) -> Input:
  """What a builder reads.

  Args:
    builder: one of BUILDERS.
    path: for imagenet21k a folder of synset folders (or of train and val, with such folders
      below), a folder of synset tar files, one tar of these, or that as .tar.gz; for fgvc_aircraft
      the archive or its `data` folder; for the others CoOp's `$DATA`.
    names: for imagenet21k, the class list whose classes to take; all of ImageNet-21K's if empty.
    images_per_class: how many will be taken of a class, for the size of the shards; 0: all.

  Raises:
    SourceError: not such files.
    VocabularyError: the class list can't be read.
  """
  path = pathlib.Path(path)
  if builder == "imagenet21k":
    return _imagenet21k(path, load_class_list(names or "imagenet21k"), images_per_class)
  if builder == "fgvc_aircraft":
    return _aircraft(path, images_per_class)
  splits = open_coop(path, builder.removeprefix("coop_"))
  return _from_sources(
    builder,
    splits,
    splits["train"].names,
    f"{builder.removeprefix('coop_')} with CoOp's fixed splits (Zhou et al., 2022); the images'"
    " licence is their makers'.",
    images_per_class,
  )


def _imagenet21k(path: pathlib.Path, classes: ClassList, images_per_class: int) -> Input:
  if classes.synsets is None:
    raise SourceError(
      "the class list for imagenet21k needs synsets: imagenet21k, imagenet21k_p, .."
    )
  if path.is_file():
    if path.name.endswith((".tar.gz", ".tgz")):
      return _stream(path, classes, images_per_class)
    return _tars(_tars_in_tar(path, classes), path, classes, images_per_class)
  folders = subfolders(path, links=True)
  if not folders:
    return _tars(_tars_in_folder(path, classes), path, classes, images_per_class)
  sources = {
    split: open_folder(folder, _present(folder, classes), all_classes=False)
    for split, folder in split_folders(path).items()
  }
  # Labels are the synsets that any of the splits has.
  synset_of = dict(zip(classes.names, classes.synsets, strict=True))
  there = sorted({synset_of[name] for source in sources.values() for name in source.names})
  label_of = {synset: label for label, synset in enumerate(there)}
  for split, source in sources.items():
    of_own = np.array([label_of[synset_of[name]] for name in source.names])
    sources[split] = source.relabelled(there, of_own[source.labels])
  return _from_sources(
    "imagenet21k", sources, there, _DESCRIPTIONS["imagenet21k"], images_per_class
  )


def _present(folder: pathlib.Path, classes: ClassList) -> ClassList:
  """The classes of the list that have a folder."""
  there = set(subfolders(folder))
  kept = [index for index, synset in enumerate(classes.synsets) if synset in there]
  if not kept:
    raise SourceError(f"{folder}: no folder is called by a WordNet id of the class list")
  return ClassList(tuple(classes.names[i] for i in kept), tuple(classes.synsets[i] for i in kept))


def _from_sources(
  dataset: str,
  sources: dict[str, StoredImages],
  label_names: Iterable[str],
  description: str,
  images_per_class: int,
) -> Input:
  digest = hashlib.blake2b(digest_size=8)
  for split, source in sources.items():
    digest.update(f"{split} {len(source)} ".encode() + source.labels.tobytes())
    digest.update("\n".join(source.keys.tolist()).encode())
  return Input(
    dataset=dataset,
    label_names=tuple(label_names),
    description=description,
    identity=f"{sum(map(len, sources.values()))} images {digest.hexdigest()}",
    open=lambda is_done, spool: _slices(sources, images_per_class),
    divided=len(sources) > 1,
  )


def _slices(sources: dict[str, StoredImages], images_per_class: int) -> tuple[int, Iterable[Task]]:
  """Shards of whole classes, with about the same number of images."""
  tasks, done = [], 0
  for split, source in sources.items():
    order = np.argsort(source.labels, kind="stable")
    sizes = np.bincount(source.labels, minlength=len(source.names))
    taken = np.minimum(sizes, images_per_class) if images_per_class else sizes
    shard_of_class = np.cumsum(taken) // _SHARD_IMAGES
    shard_of_image = shard_of_class[source.labels[order]]
    for index, shard in enumerate(np.unique(shard_of_image)):
      part = order[shard_of_image == shard]
      done += len(part)
      tasks.append(Task(index, split, (Slice(source.subset(part)),), done))
  return done, tasks


def _tars(units: list[Tar], path: pathlib.Path, classes: ClassList, images_per_class: int) -> Input:
  if not units:
    raise SourceError(f"{path}: no tar file in it that is called by a WordNet id of the class list")
  units = sorted(units, key=lambda unit: unit.synset)
  there = [unit.synset for unit in units]
  twice = next((a for a, b in zip(there, there[1:], strict=False) if a == b), None)
  if twice:
    raise SourceError(f"{path}: {twice}.tar is in it twice")
  units = [dataclasses.replace(unit, label=label) for label, unit in enumerate(units)]
  listing = "".join(f"{unit.synset} {unit.size}\n" for unit in units)
  digest = hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()
  ends = itertools.accumulate(unit.size for unit in units)
  positions = list(zip(units, ends, strict=True))

  def tasks(is_done: Callable[[str, int], bool], spool: pathlib.Path) -> tuple[int, Iterable[Task]]:
    return max(1, positions[-1][1] // _MEBIBYTE), _grouped(positions, images_per_class)

  return Input(
    "imagenet21k",
    tuple(there),
    _DESCRIPTIONS["imagenet21k"],
    f"{len(units)} tar files {digest}",
    tasks,
  )


def _grouped(
  units: Iterable[tuple[Tar, int]],
  images_per_class: int,
  fetch: Callable[[Tar, int], None] = lambda unit, index: None,
) -> Iterator[Task]:
  """Shards of units, in their order.

  Args:
    units: tars, and how far into the input each ends, bytes.
    images_per_class: how many will be taken of a class; 0: all.
    fetch: called with each unit and the number of the shard that it goes to, before the next.
  """
  group: list[Tar] = []
  size = index = position = 0
  for unit, position in units:
    fetch(unit, index)
    group.append(unit)
    few = images_per_class * _IMAGE_BYTES
    size += min(unit.size, few) if images_per_class else unit.size
    if size >= _SHARD_BYTES:
      yield Task(index, "train", tuple(group), position // _MEBIBYTE)
      group, size, index = [], 0, index + 1
  if group:
    yield Task(index, "train", tuple(group), max(1, position // _MEBIBYTE))


def _tars_in_folder(path: pathlib.Path, classes: ClassList) -> list[Tar]:
  wanted = set(classes.synsets)
  try:
    with os.scandir(path) as entries:
      return [
        Tar(path / entry.name, 0, entry.stat().st_size, 0, entry.name[:-4])
        for entry in entries
        if entry.name.endswith(".tar") and entry.name[:-4] in wanted and entry.is_file()
      ]
  except OSError as error:
    raise SourceError(f"{path}: can't be read ({error.strerror})") from error


def _tars_in_tar(path: pathlib.Path, classes: ClassList) -> list[Tar]:
  """Where the synsets' tars lie in a tar of them; only headers are read."""
  wanted = set(classes.synsets)
  try:
    with tarfile.open(path, "r:") as tar:
      found = [
        Tar(path, member.offset_data, member.size, 0, synset)
        for member in tar
        if (synset := _synset(member)) in wanted
      ]
    if found and found[-1].offset + found[-1].size > path.stat().st_size:
      raise SourceError(f"{path}: is cut short")
  except (tarfile.TarError, OSError) as error:
    raise SourceError(f"{path}: not a tar file that can be read ({error})") from error
  return found


def _synset(member: tarfile.TarInfo) -> str | None:
  """The synset whose tar a member is."""
  name = pathlib.PurePosixPath(member.name).name
  is_tar = member.isreg() and not member.issparse() and name.endswith(".tar")
  return name[:-4] if is_tar and SYNSET.fullmatch(name[:-4]) else None


def _stream(path: pathlib.Path, classes: ClassList, images_per_class: int) -> Input:
  """A .tar.gz of synsets' tars: read once from its start, each tar held in a file for a while.

  Which synsets there are is known at the end only, so the labels are those of the whole list.
  """
  size = path.stat().st_size
  with open(path, "rb") as file:
    if file.read(2) != b"\x1f\x8b":
      raise SourceError(f"{path}: not a gzip file")
  return Input(
    "imagenet21k",
    classes.synsets,
    _DESCRIPTIONS["imagenet21k"],
    f"{path.name} {size} {images_per_class}",
    functools.partial(_stream_tasks, path, classes, images_per_class),
  )


def _stream_tasks(
  path: pathlib.Path,
  classes: ClassList,
  images_per_class: int,
  is_done: Callable[[str, int], bool],
  spool: pathlib.Path,
) -> tuple[int, Iterator[Task]]:
  label_of = {synset: label for label, synset in enumerate(classes.synsets)}

  seen: dict[str, tarfile.TarInfo] = {}

  def units(raw: BinaryIO, tar: tarfile.TarFile) -> Iterator[tuple[Tar, int]]:
    for member in tar:
      synset = _synset(member)
      if synset not in label_of:
        continue
      if member.size > _MAX_TAR_BYTES or synset in seen:
        raise SourceError(f"{path}: {synset}.tar is in it twice, or larger than any synset's")
      seen[synset] = member
      file = spool / f"{synset}.tar"
      yield Tar(file, 0, member.size, label_of[synset], synset, temporary=True), raw.tell()

  def tasks() -> Iterator[Task]:
    try:
      with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as tar:

        def fetch(unit: Tar, index: int) -> None:
          if not is_done("train", index):
            _copy(tar.extractfile(seen[unit.synset]), unit.path, unit.size)

        yield from _grouped(units(raw, tar), images_per_class, fetch)
    except (tarfile.TarError, OSError, EOFError) as error:
      raise SourceError(f"{path}: can't be read to its end ({error})") from error
    if not seen:
      raise SourceError(f"{path}: no tar file in it that is called by a WordNet id of the list")

  return max(1, path.stat().st_size // _MEBIBYTE), tasks()


def _copy(stream, path: pathlib.Path, size: int) -> None:
  """Copies a member to a file of ours, if the disk holds it."""
  free = shutil.disk_usage(path.parent).free
  if free < size + 2**30:
    raise SourceError(f"{path.parent}: {free} bytes are free, {size} and 1 GiB to spare are needed")
  with open(path, "wb") as file:
    shutil.copyfileobj(stream, file, _MEBIBYTE)


def _aircraft(path: pathlib.Path, images_per_class: int) -> Input:
  known = load_class_list("fgvc_aircraft").names
  if path.is_dir():
    folder = next(
      (
        f
        for f in (path, path / "data", path / "fgvc-aircraft-2013b/data")
        if (f / "variants.txt").exists()
      ),
      path,
    )
    splits = open_aircraft(folder)
    names = splits["train"].names
    if set(names) != set(known):
      raise SourceError(
        f"{folder / 'variants.txt'}: not the {len(known)} variants of FGVC-Aircraft"
      )
    return _from_sources(
      "fgvc_aircraft", splits, names, _DESCRIPTIONS["fgvc_aircraft"], images_per_class
    )
  if not path.is_file():
    raise SourceError(f"{path}: no such file or folder")

  def tasks(is_done: Callable[[str, int], bool], spool: pathlib.Path) -> tuple[int, Iterable[Task]]:
    _extract_aircraft(path, spool)
    splits = open_aircraft(spool)
    if splits["train"].names != known:
      raise SourceError(f"{path}: not the {len(known)} variants of FGVC-Aircraft")
    return _slices(splits, images_per_class)

  return Input(
    "fgvc_aircraft",
    known,
    _DESCRIPTIONS["fgvc_aircraft"],
    f"{path.name} {path.stat().st_size}",
    tasks,
    divided=True,
  )


def _extract_aircraft(path: pathlib.Path, spool: pathlib.Path) -> None:
  """Lays out the archive's lists and images in our folder, whatever folders it names."""
  (spool / "images").mkdir()
  total = 0
  try:
    with tarfile.open(path, "r|*") as tar:
      for member in tar:
        parts = pathlib.PurePosixPath(member.name).parts
        if not member.isreg() or member.issparse() or len(parts) < 2:
          continue
        total += member.size
        if member.size > MAX_IMAGE_BYTES or total > _MAX_ARCHIVE_BYTES:
          raise SourceError(f"{path}: holds more than FGVC-Aircraft's archive does")
        if parts[-2] == "images" and parts[-1].endswith(".jpg"):
          _copy(tar.extractfile(member), spool / "images" / parts[-1], member.size)
        elif parts[-2] == "data" and parts[-1].endswith(".txt"):
          _copy(tar.extractfile(member), spool / parts[-1], member.size)
  except (tarfile.TarError, OSError, EOFError) as error:
    raise SourceError(f"{path}: not an archive that can be read ({error})") from error
