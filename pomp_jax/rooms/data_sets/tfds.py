"""Image source `tfds`: TensorFlow Datasets in ArrayRecord, read without TensorFlow.

A data set is prepared once, by TFDS itself (`tfds build food101
--file_format=array_record`, which needs TensorFlow) or, if TFDS lacks the data set, by
the job `prepare` (which needs no TensorFlow).
"""

from collections.abc import Sequence
import concurrent.futures
import functools
import logging
import os
import pathlib
import threading
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from jaxtyping import Int32
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered
from tensorflow_datasets.proto import tf_example_pb2

from pomp_jax.config.fields import Data
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import (
  CLASS_LISTS,
  ClassList,
  load_class_list,
  read_table,
)
from pomp_jax.data.folder_classes import classes_of, match_classes
from pomp_jax.data.images import ImageError
from pomp_jax.data.source import LabelledSet, SourceError, StoredImages
from pomp_jax.files.paths import is_file, local_copy, scheme_of, to_path
from pomp_jax.files.pieces import ArrayCache, fingerprint
from pomp_jax.rooms.data_sets.coop import class_list_of

log = logging.getLogger(__name__)

# Class list -> data set of the job `prepare` that contains the images of its classes.
_PREPARED = {"imagenet21k_p": "imagenet21k", "imagenet21k_p_w21": "imagenet21k"}
# TFDS's names of the data sets, by class list.
BUILDERS = {
  "imagenet1k": "imagenet2012",
  "imagenet_v2": "imagenet_v2",
  "imagenet_sketch": "imagenet_sketch",
  "imagenet_a": "imagenet_a",
  "imagenet_r": "imagenet_r",
  "caltech101": "caltech101",
  "oxford_pets": "oxford_iiit_pet",
  "stanford_cars": "cars196",
  "flowers102": "oxford_flowers102",
  "food101": "food101",
  "sun397": "sun397",
  "dtd": "dtd",
  "eurosat": "eurosat",
  "ucf101": "ucf101",
}
# Types of the features that can hold the image or the label.
_KINDS = {
  "image": (tfds.features.Image, tfds.features.Video),
  "label": (tfds.features.ClassLabel,),
}
# _THREADS threads read the labels of all records, in chunks of _CHUNK records.
_CHUNK = 256
_THREADS = 8


def splits(data: Data) -> tuple[str, ...]:
  """Lists the splits of the data set; see `tfds_splits`."""
  return tfds_splits(data.dataset, data.root)


def open_split(data: Data, split: str) -> StoredImages:
  """Opens a split, with the classes of `data.names` if it has any; see `open_tfds`."""
  classes = None
  if data.names:
    classes = load_class_list(data.names)
  return open_tfds(
    data.dataset, split, root=data.root, classes=classes, cache=data.cache
  )


def open_test_set(
  root: str | os.PathLike, dataset: str, classes: ClassList | None
) -> LabelledSet:
  """Opens the test split, or else the validation split (ImageNet, Food-101).

  Args:
    root: TFDS's data_dir.
    dataset: name of one of our class lists, or TFDS's name of a data set; see
      `open_tfds`.
    classes: the classes to tell apart; None for the default of `open_tfds`.

  Raises:
    SourceError: the data set is not prepared, or has neither split.
  """
  # TFDS spells some labels differently from our list of the same data set. By default,
  # `open_tfds` maps them by a table; given the list, it would look for our spellings.
  has_spelling_table = dataset in CLASS_LISTS and dataset not in _PREPARED
  if has_spelling_table and classes == load_class_list(dataset):
    classes = None
  splits = tfds_splits(dataset, os.fspath(root))
  if "validation" not in splits and "test" not in splits:
    present = ", ".join(splits)
    raise SourceError(f"{root}: {dataset} has no test split (found {present})")
  split = splits[-1]  # in the order of train, validation, test
  images = open_tfds(dataset, split, root=root, classes=classes)
  if classes is None:
    classes = class_list_of(dataset, images.names)
  return LabelledSet(images, classes, split)


class _OpenRecords(NamedTuple):
  """Records of a split that this process has opened."""

  rows: Any  # sequence of the encoded records
  image_key: str  # feature with the image
  label_key: str  # feature with the label


class Records:
  """Storage of images in a prepared data set's records.

  Each process opens the records for itself.
  """

  def __init__(self, dataset: str, root: str, split: str):
    self._dataset = dataset
    self._root = root
    self.split = split
    self._opened: _OpenRecords | None = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_opened": None}

  def __len__(self) -> int:
    return len(self._open().rows)

  def read(self, row: int, key: str) -> bytes:
    """Reads an encoded image, or the middle frame of a video."""
    records = self._open()
    try:
      frames = _features(records.rows[row])[records.image_key].bytes_list.value
      return frames[len(frames) // 2]
    # Damaged records raise errors of ArrayRecord and protobuf, or hold no image.
    except (
      ValueError,
      RuntimeError,
      IndexError,
      KeyError,
      OSError,
      DecodeError,
    ) as error:
      raise ImageError(
        f"{self.where(row, key)}: can't be read ({_first_line(error)})"
      ) from error

  def where(self, row: int, key: str) -> str:
    """Names the record and the folder of the data set."""
    return f"record {key} of {self._root or 'the default folder of TFDS'}"

  def files(self, keys: Sequence[str]) -> list[str]:
    """Files of all records of the split; `keys` is ignored."""
    builder = _builder(self._dataset, self._root)
    return list(map(str, builder.info.splits[self.split].filepaths))

  def labels(self) -> np.ndarray:
    """Reads the label of every record, int64."""
    records = self._open()
    n_records = len(records.rows)
    log.info("%s: reading the labels of %d records", self._dataset, n_records)

    def read_chunk(start: int) -> list[int]:
      labels = []
      for row in range(start, min(start + _CHUNK, n_records)):
        features = _features(records.rows[row])
        labels.append(features[records.label_key].int64_list.value[0])
      return labels

    try:
      with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        chunks = list(pool.map(read_chunk, range(0, n_records, _CHUNK)))
    except (ValueError, RuntimeError, IndexError, OSError) as error:
      where = self._root or self._dataset
      raise SourceError(
        f"{where}: labels can't be read ({_first_line(error)})"
      ) from error
    return np.array([label for chunk in chunks for label in chunk], np.int64)

  def _open(self) -> _OpenRecords:
    """Opens the records of the split on the first call of this process.

    Raises:
      SourceError: the data set is unknown, or its files can't be read by row.
    """
    if self._opened is not None:
      return self._opened
    builder = _builder(self._dataset, self._root)
    # Leave the records encoded: `data.images` decodes the images of every source.
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
      if scheme_of(str(builder.data_path)) == "s3":
        rows = _CopiedShards(builder.info.splits[self.split])
      else:
        rows = builder.as_data_source(self.split, deserialize_method=raw)
    except (NotImplementedError, ValueError, KeyError) as error:
      raise SourceError(
        f"{builder.data_path}: split {self.split!r} can't be opened by index"
        f" ({_first_line(error)}); prepare it with --file_format=array_record"
      ) from error
    self._opened = _OpenRecords(
      rows=rows,
      image_key=_key(builder, "image"),
      label_key=_key(builder, "label"),
    )
    return self._opened


class _CopiedShards:
  """Records of a split on S3, read from local copies of its shards.

  ArrayRecord can't read parts of an object on S3.
  """

  def __init__(self, split: Any):
    self._paths = list(split.filepaths)
    self._ends = np.cumsum(split.shard_lengths)  # end of each shard's rows, exclusive
    self._readers: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, row: int) -> bytes:
    shard = int(np.searchsorted(self._ends, row, side="right"))
    with self._lock:
      if shard not in self._readers:
        copy = local_copy(str(self._paths[shard]))
        self._readers[shard] = ArrayRecordReader(str(copy), "readahead_buffer_size:0")
    first = int(self._ends[shard - 1]) if shard else 0
    return self._readers[shard].read([int(row) - first])[0]


@functools.lru_cache(maxsize=4)
def tfds_splits(dataset: str, root: str = "") -> tuple[str, ...]:
  """Lists which of train, validation and test a data set has.

  Raises:
    SourceError: the data set is unknown or not prepared.
  """
  name = tfds_name(dataset)
  builder = _builder(name, root)
  if not builder.info.splits:
    command = f"tfds build {name} --file_format=array_record --data_dir={root or 'DIR'}"
    raise SourceError(
      f"{builder.data_path}: the data set is not prepared; run {command}"
    )
  labelled = ["train", "validation", "test"]
  if builder.name == "imagenet2012":
    labelled.remove("test")  # this test split has no labels
  return tuple(split for split in labelled if split in builder.info.splits)


def open_tfds(
  dataset: str,
  split: str,
  *,
  root: str | os.PathLike = "",
  classes: ClassList | None = None,
  cache: str | os.PathLike = "",
) -> StoredImages:
  """Opens a split of a prepared data set.

  Images are in TFDS's order; images of classes outside the list are dropped.

  Args:
    dataset: class list, or TFDS's own "name/config:version".
    split: "train", "validation" or "test".
    root: TFDS's data_dir; "" for its default.
    classes: class list that TFDS's label names must match. None stands for the packaged
      class list of the data set. If there is no such list, None stands for
      ImageNet-21K's names if the labels are WordNet ids, and for TFDS's label names
      otherwise.
    cache: folder in which to store the labels, since they are scattered over all
      records; "" for none.

  Raises:
    SourceError: the data set is not prepared or damaged, or has no image of the
      classes.
    VocabularyError: TFDS's labels are not those that are known for the data set.
  """
  builder = _builder(tfds_name(dataset), root)
  label_names = builder.info.features[_key(builder, "label")].names
  names, class_of_label = _classes(dataset, builder.name, label_names, classes)
  records = Records(tfds_name(dataset), os.fspath(root), split)
  labels, keys = _index(builder, records, cache)
  # A test split without labels has -1 for each image.
  is_label = (labels >= 0) & (labels < len(label_names))
  classes_of_rows = np.where(
    is_label, class_of_label[np.where(is_label, labels, 0)], -1
  )
  rows = np.flatnonzero(classes_of_rows >= 0)
  if not len(rows):
    raise SourceError(
      f"{builder.data_path}: no image of split {split!r} is of a class in the list"
    )
  numbered = (f"{builder.name}/{split}/{row:08d}" for row in rows)
  row_keys = list(numbered) if keys is None else keys[rows]
  return StoredImages(names, class_of_label[labels[rows]], row_keys, records, rows=rows)


def tfds_name(dataset: str) -> str:
  """Returns TFDS's or `prepare`'s name of a class list's data set.

  Other names are returned as they are.
  """
  return _PREPARED.get(dataset) or BUILDERS.get(dataset, dataset)


@functools.cache
def load_labels(name: str) -> tuple[tuple[str, ...], Int32[np.ndarray, " T"]]:
  """Returns the T labels of one of BUILDERS, in TFDS's order, and the class of each.

  A label outside the class list has the class -1. TFDS orders some classes differently
  (Caltech101, Food101), has two classes that CoOp drops (Caltech101), and labels
  ImageNet-A and -R with all 1,000 classes of ImageNet-1K.
  """
  classes = load_class_list(name)
  if classes.synsets is not None:
    labels = load_class_list("imagenet1k").synsets or ()
    listed = classes.synsets
    listed_T = labels  # TFDS's labels are WordNet ids, and so are the list's synsets
  else:
    file = pathlib.Path(__file__).with_name("tfds_labels") / f"{name}.tsv"
    labels, listed_T = read_table(file)
    listed = classes.names
  class_of = {name_or_id: index for index, name_or_id in enumerate(listed)}
  classes_T = np.array([class_of.get(label, -1) for label in listed_T], np.int32)
  classes_T.flags.writeable = False  # shared by all callers
  return labels, classes_T


def _classes(
  dataset: str, builder: str, label_names: Sequence[str], classes: ClassList | None
) -> tuple[tuple[str, ...], np.ndarray]:
  """Class names, and the class of each of TFDS's labels: -1 for one outside the list."""
  lists = [name for name, tfds_builder in BUILDERS.items() if tfds_builder == builder]
  if classes is None and lists:
    name = dataset if dataset in lists else lists[0]
    labels, class_of_label = load_labels(name)
    # A later release of TFDS may have other labels.
    if tuple(label_names) != labels:
      differing = sorted(set(labels) ^ set(label_names)) or ["their order"]
      raise class_lists.VocabularyError(
        f"TFDS's {builder}: {len(label_names)} labels are not the {len(labels)} known ones;"
        f" they differ in {differing[0]!r}"
      )
    return load_class_list(name).names, class_of_label
  if classes is None:
    classes = classes_of(label_names, f"TFDS's {builder}")
  class_of = match_classes(label_names, classes, f"the labels of TFDS's {builder}")
  class_of_label = np.array([class_of.get(name, -1) for name in label_names], np.int64)
  return classes.names, class_of_label


def _index(
  builder: Any, records: Records, cache: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray | None]:
  """Labels of all records, and the keys of the records if the data set stores them.

  The job `prepare` writes an index of labels and keys beside the records. Without an
  index all records are read for their labels.

  Args:
    builder: TFDS's builder of the data set.
    records: records of a split.
    cache: folder in which to store labels that were read from records; "" for none.

  Raises:
    SourceError: the index or a record is damaged.
  """
  path = to_path(builder.data_path) / f"index-{records.split}.npz"
  if is_file(path):
    try:
      with np.load(local_copy(path), allow_pickle=False) as index:
        labels = index["labels"].astype(np.int64)
        keys = np.char.decode(index["keys"], "utf-8")
    except Exception as error:  # NumPy does not document all errors of damaged archives
      raise SourceError(f"{path}: can't be read ({_first_line(error)})") from error
    return labels, keys

  # The cache key has the sizes of the shards, which differ between preparations of the
  # same data set.
  shards = ""
  info = builder.info.splits.get(records.split)
  if info is not None:
    shards = f"{info.num_bytes} {info.shard_lengths}"
  n_records = str(len(records))
  key = fingerprint([builder.info.full_name, records.split, n_records, shards])
  labels = ArrayCache(cache).get(key, records.labels)
  return labels, None


def _builder(dataset: str, root: str | os.PathLike) -> Any:
  """Opens TFDS's builder of a data set.

  Args:
    dataset: TFDS's "name/config:version".
    root: TFDS's data_dir; "" for its default.

  Raises:
    SourceError: TFDS does not know the data set, can't open it without TensorFlow, or
      finds its files damaged.
  """
  data_dir = os.fspath(root) or None
  try:
    return tfds.builder(dataset, data_dir=data_dir)
  except registered.DatasetNotFoundError as error:
    where = f" and not prepared in {root}" if root else ""
    raise SourceError(f"data set {dataset!r} is unknown to TFDS{where}") from error
  except ModuleNotFoundError as error:
    # The usual case is UCF101, whose videos TFDS can't read without TensorFlow.
    remedy = "for UCF101's middle frames, use coop_ucf101 of the job prepare"
    raise SourceError(
      f"{dataset}: TFDS needs TensorFlow to open it; {remedy}"
    ) from error
  except (ValueError, AssertionError, RuntimeError, OSError) as error:
    raise SourceError(f"TFDS's {dataset}: {_first_line(error)}") from error


def _key(builder: Any, kind: str) -> str:
  """Name of the feature with the image or the label: the usual one, or the only one."""
  names = []
  for name, feature in builder.info.features.items():
    if isinstance(feature, _KINDS[kind]):
      names.append(name)
  if kind in names:
    return kind
  if len(names) != 1:
    raise SourceError(
      f"TFDS's {builder.name}: found {len(names)} features for the {kind}, expected 1"
    )
  return names[0]


def _features(record: bytes) -> Any:
  return tf_example_pb2.Example.FromString(record).features.feature


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)[:200]
