"""Opens the inputs of `prepare.build` as distributed: folders, tars, CoOp's layout."""

from collections.abc import Sequence
import dataclasses
import hashlib
import logging
import os
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np

from pomp_jax.data.class_lists import ClassList, load_class_list, repeats
from pomp_jax.data.folder import list_folder, open_folder, split_folders
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.rooms.data_sets.coop import COOP_SETS, open_aircraft, open_coop

log = logging.getLogger(__name__)

# Approximate size of a shard: images from folders, and bytes from tar files.
_SHARD_IMAGES = 4096
_SHARD_BYTES = 512 * 2**20
# Assumed bytes of an image, to plan the shards if only some images of a tar are stored.
_IMAGE_BYTES = 128 * 2**10

_OF_COOP = [name for name in COOP_SETS if not name.startswith(("imagenet", "fgvc"))]
# The data sets that can be prepared.
DATASETS = ("imagenet21k", "fgvc_aircraft", *(f"coop_{name}" for name in _OF_COOP))
_IMAGENET21K = (
  "ImageNet-21K (image-net.org, for non-commercial research);"
  " labels are WordNet 3.0 ids."
)
_AIRCRAFT = "FGVC-Aircraft 2013b, variants (Maji et al., 2013); for research only."


class Tar(NamedTuple):
  """Tar file of one synset: a file of its own, or a part of another file.

  Its regular members are read in place: nothing is extracted, and no member's name is
  used as a path.
  """

  path: pathlib.Path
  offset: int  # start of the tar in the file, bytes
  size: int  # bytes
  synset: str  # WordNet id; keys of its images are SYNSET/FILE
  label: int = 0  # label of all its images

  def open(self) -> StoredImages:
    """Lists the images of the tar, under label 0 instead of `label`."""
    members = _regular_members(self.path, self.offset, self.offset + self.size)
    places: dict[str, tuple[int, int]] = {}
    for name, offset, size in members:
      places.setdefault(name, (offset, size))  # keeps the first of a repeated name
    keys = [f"{self.synset}/{name}" for name in places]
    storage = _Members(self.path, list(places.values()))
    return StoredImages((self.synset,), np.zeros(len(keys), int), keys, storage)


def _regular_members(
  path: pathlib.Path, start: int, end: int
) -> list[tuple[str, int, int]]:
  """Name, offset and size of each file in the tar between two offsets of a file.

  Only headers are read. Hidden files, links, folders and other special members are
  skipped.
  """
  members = []
  try:
    with open(path, "rb") as file:
      file.seek(start)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
          if member.offset >= end:
            break
          name = pathlib.PurePosixPath(member.name).name
          is_file = member.isreg() and not member.issparse()
          if is_file and name and not name.startswith("."):
            members.append((name, member.offset_data, member.size))
  except (tarfile.TarError, OSError, EOFError, ValueError) as error:
    hint = "a .tar.gz has to be extracted (tar -xzf)"
    raise SourceError(
      f"{path}: the tar at byte {start} can't be read ({error}); {hint}"
    ) from error
  if any(not 0 <= size <= end - offset for _, offset, size in members):
    raise SourceError(f"{path}: the tar at byte {start} is truncated")
  return members


class _Members(NamedTuple):
  """Storage of images at (offset, size) in one file."""

  path: pathlib.Path
  places: list[tuple[int, int]]

  def read(self, row: int, key: str) -> bytes:
    offset, size = self.places[row]
    with open(self.path, "rb") as file:
      file.seek(offset)
      return file.read(size)

  def where(self, row: int, key: str) -> str:
    return f"{key} in {self.path}"


@dataclasses.dataclass(frozen=True)
class Task:
  """A shard to write, with whole classes of a split; pickled for a worker process."""

  index: int  # number of the shard in its split
  split: str
  units: tuple[StoredImages | Tar, ...]


class Input(NamedTuple):
  """Images of a data set to write."""

  dataset: str  # name in TFDS
  label_names: tuple[str, ...]
  description: str  # origin and licence of the images
  identity: str  # text that distinguishes this input from others
  tasks: tuple[Task, ...]  # shards to write
  # whether the input has several splits, so that no image of train is held out
  divided: bool = False


def open_input(
  dataset: str, path: str | os.PathLike, *, names: str = "", images_per_class: int = 0
) -> Input:
  """Opens the input of one of DATASETS; lists files and headers, reads no image.

  The path depends on the data set:

  imagenet21k: a folder of synset folders (or of train and val with such folders), a
    folder of synset tar files, or one tar of such tar files.
  fgvc_aircraft: the extracted archive, or its `data` folder.
  others: CoOp's `$DATA`.

  Args:
    dataset: one of DATASETS.
    path: folder or file of the images, see above.
    names: class list whose classes of imagenet21k are stored; "" for all.
    images_per_class: number of images that will be stored for each class, from which
      the shards are planned; 0 for all images.

  Raises:
    SourceError: the files are missing, a tar is damaged, or no class of the list is
      there.
  """
  path = pathlib.Path(path)
  if dataset == "imagenet21k":
    return _imagenet21k(path, names, images_per_class)
  if dataset == "fgvc_aircraft":
    return _aircraft(path, images_per_class)

  # All other data sets are CoOp's, such as coop_dtd.
  coop_name = dataset.removeprefix("coop_")
  splits = open_coop(path, coop_name)
  description = (
    f"{coop_name} with CoOp's fixed splits (Zhou et al., 2022); "
    "the images' licence is their makers'."
  )
  return _from_splits(dataset, splits, description, images_per_class)


def _imagenet21k(path: pathlib.Path, names: str, images_per_class: int) -> Input:
  """ImageNet-21K, or the classes of a list, from folders or from tars."""
  classes = load_class_list(names or "imagenet21k")
  if classes.synsets is None:
    raise SourceError(
      f"config.prepare.names: got {names!r}, expected a class list with synsets"
    )
  known = set(classes.synsets)
  if path.is_file() or not list_folder(path, links=True).folders:
    source = _from_tars(_find_tars(path, known), path, images_per_class)
  else:
    source = _from_folders(path, known, images_per_class)
  missing = sorted(known - set(source.label_names))
  if missing:
    # Only warn: this may be a subset on purpose, or the wrong release.
    log.warning(
      "%s: %d of the list's %d classes are missing, such as %s; the data set will have %d classes",
      path,
      len(missing),
      len(classes.synsets),
      missing[0],
      len(source.label_names),
    )
  return source


def _from_folders(path: pathlib.Path, known: set[str], images_per_class: int) -> Input:
  """ImageNet-21K's splits from folders that are named after synsets."""
  folders = split_folders(path)
  # All splits share the labels, even if a split lacks a class.
  synsets: set[str] = set()
  for folder in folders.values():
    synsets |= known & set(list_folder(folder).folders)
  if not synsets:
    raise SourceError(
      f"{path}: no folder is named after a WordNet id of the class list"
    )
  classes = ClassList(tuple(sorted(synsets)))
  splits = {
    split: open_folder(folder, classes, all_classes=False)
    for split, folder in folders.items()
  }
  return _from_splits("imagenet21k", splits, _IMAGENET21K, images_per_class)


def _from_splits(
  dataset: str, splits: dict[str, StoredImages], description: str, images_per_class: int
) -> Input:
  """An input of listed images; its identity is a digest of their labels and paths."""
  digest = hashlib.blake2b(digest_size=8)
  n_images = 0
  for split, source in splits.items():
    n_images += len(source)
    digest.update(f"{split} {len(source)} ".encode() + source.labels.tobytes())
    digest.update("\n".join(source.keys.tolist()).encode())
  first, *_ = splits.values()  # all have the same names
  return Input(
    dataset=dataset,
    label_names=first.names,
    description=description,
    identity=f"{n_images} images {digest.hexdigest()}",
    tasks=_split_tasks(splits, images_per_class),
    divided=len(splits) > 1,
  )


def _split_tasks(
  splits: dict[str, StoredImages], images_per_class: int
) -> tuple[Task, ...]:
  """Shards of whole classes with about the same number of images."""
  tasks = []
  for split, source in splits.items():
    order = np.argsort(source.labels, kind="stable")
    sizes = np.bincount(source.labels, minlength=len(source.names))
    if images_per_class:
      sizes = np.minimum(sizes, images_per_class)
    shard_of_class = np.cumsum(sizes) // _SHARD_IMAGES
    shard_of_image = shard_of_class[source.labels[order]]
    for index, shard in enumerate(np.unique(shard_of_image)):
      images = source.subset(order[shard_of_image == shard])
      tasks.append(Task(index, split, (images,)))
  return tuple(tasks)


def _from_tars(tars: Sequence[Tar], path: pathlib.Path, images_per_class: int) -> Input:
  """ImageNet-21K from tars; its identity is a digest of their names and sizes."""
  if not tars:
    raise SourceError(
      f"{path}: no tar file is named after a WordNet id of the class list"
    )
  tars = sorted(tars, key=lambda tar: tar.synset)
  synsets = tuple(tar.synset for tar in tars)
  for index in repeats(synsets):
    raise SourceError(f"{path}: {synsets[index]}.tar is repeated")
  shards: list[list[Tar]] = [[]]
  size = 0  # bytes of the last shard
  for label, tar in enumerate(tars):
    if size >= _SHARD_BYTES:
      shards.append([])
      size = 0
    shards[-1].append(tar._replace(label=label))
    # 0 images per class stand for all images.
    size += min(tar.size, images_per_class * _IMAGE_BYTES or tar.size)
  listing = "".join(f"{tar.synset} {tar.size}\n" for tar in tars)
  digest = hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()
  tasks = [Task(index, "train", tuple(shard)) for index, shard in enumerate(shards)]
  return Input(
    dataset="imagenet21k",
    label_names=synsets,
    description=_IMAGENET21K,
    identity=f"{len(tars)} tar files {digest}",
    tasks=tuple(tasks),
  )


def _find_tars(path: pathlib.Path, known: set[str]) -> list[Tar]:
  """Tars of known synsets, in a folder or within a tar."""
  tars = []
  if path.is_file():
    for name, offset, size in _regular_members(path, 0, path.stat().st_size):
      synset = name.removesuffix(".tar")
      if name.endswith(".tar") and synset in known:
        tars.append(Tar(path, offset, size, synset))
  else:
    for name in list_folder(path, links=True).others:
      file = path / name
      if file.suffix == ".tar" and file.stem in known:
        tars.append(Tar(file, 0, file.stat().st_size, file.stem))
  return tars


def _aircraft(path: pathlib.Path, images_per_class: int) -> Input:
  """FGVC-Aircraft's splits, from the archive as it was extracted."""
  if not path.is_dir():
    raise SourceError(
      f"{path}: expected the folder of the extracted archive (tar -xzf)"
    )
  folders = (path, path / "data", path / "fgvc-aircraft-2013b/data")
  with_list = [folder for folder in folders if (folder / "variants.txt").exists()]
  folder = with_list[0] if with_list else path
  splits = open_aircraft(folder)
  variants = load_class_list("fgvc_aircraft").names
  if set(splits["train"].names) != set(variants):
    raise SourceError(
      f"{folder / 'variants.txt'}: expected FGVC-Aircraft's {len(variants)} variants"
    )
  return _from_splits("fgvc_aircraft", splits, _AIRCRAFT, images_per_class)
