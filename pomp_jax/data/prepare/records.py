"""Inputs and outputs of `prepare.build`: images by tasks, and shards with TFDS's metadata."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import itertools
import os
import pathlib
import tarfile

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pomp_jax.data.images import ImageError
from pomp_jax.data.source import SourceError, StoredImages
from pomp_jax.files.atomic import replacing

VERSION = "1.0.0"
# No image of these data sets is larger.
MAX_IMAGE_BYTES = 64 * 2**20
_SUFFIX = "array_record"


@dataclasses.dataclass(frozen=True)
class Tar:
  """Tar file of one synset: a file of its own, or a part of another file.

  Its regular members are read in place. Nothing is extracted, and names are never used as paths.

  Attributes:
    path: the file.
    offset: start of the tar in it, bytes.
    size: length of the tar, bytes.
    label: label of all its images.
    synset: WordNet id; keys of its images are SYNSET/FILE.
    temporary: whether to delete the file once its images are stored.
  """

  path: pathlib.Path
  offset: int
  size: int
  label: int
  synset: str
  temporary: bool = False

  def open(self) -> StoredImages:
    """Lists its images, all with label 0; links, folders and other special members are skipped.

    Raises:
      SourceError: not a tar file, or truncated.
    """
    end = self.offset + self.size
    found: dict[str, tuple[int, int]] = {}
    try:
      with open(self.path, "rb") as file:
        file.seek(self.offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
          for member in itertools.takewhile(lambda member: member.offset < end, tar):
            name = pathlib.PurePosixPath(member.name).name
            if member.isreg() and not member.issparse() and name and not name.startswith("."):
              found.setdefault(name, (member.offset_data, member.size))
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
      raise SourceError(f"{self.path}: the tar of {self.synset} can't be read ({error})") from error
    if any(offset + size > end for offset, size in found.values()):
      raise SourceError(f"{self.path}: the tar of {self.synset} is truncated")
    keys = [f"{self.synset}/{name}" for name in found]
    storage = _Members(self.path, list(found.values()))
    return StoredImages((self.synset,), np.zeros(len(keys), int), keys, storage)


class _Members:
  """Storage of images at (offset, size) in one file."""

  def __init__(self, path: pathlib.Path, places: list[tuple[int, int]]):
    self._path, self._places = path, places

  def read(self, row: int, key: str) -> bytes:
    offset, size = self._places[row]
    if not 0 <= size <= MAX_IMAGE_BYTES:
      raise ImageError(f"{key}: {size} bytes, expected at most {MAX_IMAGE_BYTES}")
    with open(self._path, "rb") as file:
      file.seek(offset)
      return file.read(size)

  def where(self, row: int, key: str) -> str:
    return f"{key} in {self._path}"


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard to write.

  Attributes:
    index: number of the shard in its split.
    split: split of its images.
    units: its images, as whole classes; pickled for worker processes.
    done: position in the input after this shard, in the input's own unit.
  """

  index: int
  split: str
  units: tuple[StoredImages | Tar, ...]
  done: int = 0


# Whether the shard (split, index) exists already.
IsDone = Callable[[str, int], bool]


@dataclasses.dataclass(frozen=True)
class Input:
  """Images of a data set to write.

  Attributes:
    dataset: name of the data set in TFDS.
    label_names: one name a class.
    description: origin and licence of the images.
    identity: text that distinguishes this input from others.
    open: maps `IsDone` and a folder for temporary files to the last task's `done`, and the tasks.
    divided: whether it has several splits, so that no image of train is held out.
  """

  dataset: str
  label_names: tuple[str, ...]
  description: str
  identity: str
  open: Callable[[IsDone, pathlib.Path], tuple[int, Iterable[Task]]]
  divided: bool = False


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
    """Completes the file.

    Raises:
      OSError: it can't be written.
    """
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
  """Writes `dataset_info.json`, `features.json` and the label names.

  Args:
    folder: folder of the shards, named by `shard_name`.
    dataset: name of the data set.
    label_names: one name a class.
    splits: name -> records of each shard, and bytes of all records.
    description: origin and licence of the images.
    version: last part of the folder's path.
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
