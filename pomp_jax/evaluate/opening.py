"""Opens what a config names: the CLIP, images, evaluation sets.

What can't be opened raises ClipError, SourceError, VocabularyError or ConfigError, with
a message of one line.
"""

from collections.abc import Sequence
import dataclasses
from types import ModuleType
from typing import Any

from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import Clip, load_clip, read_clip
from pomp_jax.clip.tokens import Tokenizer
from pomp_jax.config import SOURCES, SYNTHETIC_CLIP, fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.data.source import FeatureSource, Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import image_splits
from pomp_jax.files.paths import join
from pomp_jax.files.pieces import ArrayCache
from pomp_jax.files.terminal import waiting
from pomp_jax.hooks import SYNTHETIC_CLIPS
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.registry import load


def open_clip(settings: fields.Clip) -> Clip:
  """Opens the CLIP of `config.clip`; ClipError if it can't be read."""
  model = settings.model
  if model.startswith(SYNTHETIC_CLIP):
    return SYNTHETIC_CLIPS.open().open_clip(model)
  return load_clip(model, settings.activation, image_tower=settings.image_tower)


def clip_config(model: str, image_tower: bool = True) -> ClipConfig:
  """Reads the sizes of `config.clip.model`, without weights; see `open_clip`."""
  return clip_config_and_tokenizer(model, image_tower)[0]


def clip_config_and_tokenizer(
  model: str, image_tower: bool = True
) -> tuple[ClipConfig, Tokenizer]:
  """Reads sizes and tokenizer of `config.clip.model`, without weights; see
  `open_clip`."""
  if model.startswith(SYNTHETIC_CLIP):
    return SYNTHETIC_CLIPS.open().config_and_tokenizer(model)
  clip = read_clip(model, image_tower=image_tower, with_params=False)
  return clip.config, clip.tokenizer


def open_encoder(
  settings: fields.Clip,
  class_size: int = 1,
  feature_store: str = "",
  devices: Any = None,
) -> Encoder:
  """Opens a CLIP on the devices of a mesh.

  Args:
    settings: `config.clip`.
    class_size: number of devices that split the text tower's rows; it divides the
      number of all devices.
    feature_store: folder that keeps features of classes between runs; "" keeps them
      in memory.
    devices: devices of the mesh; all if None.

  Raises:
    ClipError: the CLIP can't be read.
  """
  with waiting(f"loading {settings.model}"):
    clip = open_clip(settings)

  classes_folder = None
  if feature_store:
    classes_folder = join(feature_store, "classes")
  return Encoder(
    clip,
    mesh=make_mesh(class_size, devices),
    tower=settings.text_tower,
    dtype=settings.dtype,
    image_chunk=settings.image_chunk,
    cache=ArrayCache(classes_folder),
  )


def _module(data: Data) -> ModuleType:
  """Module with `open_source`, `n_training_classes` and `evaluation_splits` of
  `data.source`."""
  if SOURCES[data.source].stored:
    return image_splits
  return load(SOURCES[data.source].module)


def open_source(data: Data, split: str, *, n_images: int = 0) -> Source:
  """Opens a split: lists its images with their labels, and reads no image.

  Args:
    data: `config.data`, whose `source` names the module that opens them.
    split: train, validation, or one of `evaluation_splits`.
    n_images: number of images, as evenly over the classes as possible. 0: all stored
      images, or `data.images_per_class` images a class of a generated source.

  Raises:
    SourceError: files are missing or unusable.
  """
  source_module = _module(data)
  with waiting(f"opening the {split} images"):
    return source_module.open_source(data, split, n_images)


def class_list(data: Data, template: str, names: Sequence[str]) -> ClassList:
  """Returns classes with the templates of their data set.

  Args:
    data: `config.data`, whose `dataset` may name a packaged class list.
    template: text with one {}, for a data set that has no templates of its own.
    names: names of the classes, which need not be in the packaged list.
  """
  if data.dataset in CLASS_LISTS:
    templates_of = load_class_list(data.dataset)
  else:
    templates_of = ClassList((), None, template, (template,))
  # Drop the packaged synsets: they belong to the packaged names, and `names` may
  # differ.
  return dataclasses.replace(templates_of, names=tuple(names), synsets=None)


def check_features(source: Source, model: str, clip: ClipConfig) -> None:
  """Checks that a CLIP can encode a source's images, or has computed its features.

  Args:
    source: images, or features of a file.
    model: `config.clip.model`.
    clip: sizes of the CLIP.

  Raises:
    SourceError: the features are those of another CLIP.
    ConfigError: the source has images, and the CLIP has no image tower.
  """
  if isinstance(source, FeatureSource):
    clip_model = model.removeprefix(SYNTHETIC_CLIP)
    source.storage.check_clip(clip_model, clip.projection_dim)
    return
  has_tower = clip.vision_config.image_size > 0
  require(
    has_tower, "clip.image_tower", has_tower, "True where images are to be encoded"
  )


def n_training_classes(data: Data) -> int:
  """Number of classes to train on; checks that every split can be opened, reads no
  image."""
  return _module(data).n_training_classes(data)


def evaluation_splits(data: Data) -> tuple[str, ...]:
  """Splits to evaluate a learned prompt on."""
  return _module(data).evaluation_splits(data)


def left_out(data: Data) -> dict[str, Any]:
  """Classes and files that may be in no figure; see `image_splits.left_out`.

  Empty for generated images.
  """
  return image_splits.left_out(data) if SOURCES[data.source].stored else {}


def check_readable(data: Data, n_images: int) -> None:
  """Decodes the images of a folder before a run.

  All training and validation images are decoded, and `n_images` of each evaluation
  split (0 for all). Large sets and sets in buckets are skipped.

  Raises:
    SourceError: more can't be read than `data.max_corrupt` allows.
  """
  if data.source != "folder":
    return
  # The check is cached by its arguments. Reset the fields that only concern the use of
  # the pixels, so that all cells of an ablation share one check.
  without_views = dataclasses.replace(
    data, features="online", feature_store="", augment="none", views=1
  )
  image_splits.check_readable(without_views, n_images)


def has_validation(data: Data) -> bool:
  """Whether there are validation images beside the training images; always True for
  generated images."""
  return not SOURCES[data.source].stored or image_splits.has_validation(data)
