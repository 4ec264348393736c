"""A data set's files as TFDS reads them: shards of records, and what it says about them."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from pomp_jax.files.atomic import replacing

VERSION = "1.0.0"
_SUFFIX = "array_record"
_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Split:
  """What TFDS has to know of a split.

  Attributes:
    shard_lengths: records of each shard.
    num_bytes: of all records.
  """

  shard_lengths: tuple[int, ...]
  num_bytes: int


class Shard:
  """One file of records; it bears its name only once it is complete."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._partial = path.with_name(f"{path.name}.partial")
    # Each image is fetched alone, and JPEG doesn't compress further.
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
      OSError: not all of it could be written.
    """
    self._writer.close()
    os.replace(self._partial, self._path)


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
  """A shard's file name in a finished data set."""
  return f"{dataset}-{split}.{_SUFFIX}-{index:05d}-of-{count:05d}"


def write_metadata(
  folder: pathlib.Path,
  dataset: str,
  *,
  label_names: Sequence[str],
  splits: dict[str, Split],
  description: str,
  version: str = VERSION,
) -> None:
  """Writes `dataset_info.json`, `features.json` and the label names.

  Args:
    folder: holds the shards, named by `shard_name`.
    dataset: its name.
    label_names: one a class.
    splits: by name.
    description: where the images are from, and whose they are.
    version: the last part of the folder's path.
  """
  features = tfds.features.FeaturesDict(
    {
      "file_name": tfds.features.Text(),
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=list(label_names)),
    }
  )
  infos = [
    tfds.core.SplitInfo(
      name=name,
      shard_lengths=list(split.shard_lengths),
      num_bytes=split.num_bytes,
      filename_template=tfds.core.ShardedFileTemplate(
        dataset_name=dataset,
        split=name,
        filetype_suffix=_SUFFIX,
        data_dir=folder,
        template=_NAMES,
      ),
    )
    for name, split in splits.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=infos,
    version=version,
    description=description,
    check_data=False,
  )


def write_index(folder: pathlib.Path, split: str, labels: np.ndarray, keys: Sequence[str]) -> None:
  """Writes `index-SPLIT.npz`, so that labels are known without reading all images.

  Args:
    folder: the data set's.
    split: its name.
    labels: int [n], in the order of the records.
    keys: n strings, as `file_name` of the records.
  """
  with replacing(folder / f"index-{split}.npz") as file:
    np.savez_compressed(
      file, labels=labels.astype(np.int32), keys=np.char.encode(np.array(keys, str), "utf-8")
    )
