"""What jobs start from, by the names that configs use."""

from jax.sharding import Mesh

from pomp_jax import world
from pomp_jax.clip import Clip, load_clip
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.load import read_clip_config
from pomp_jax.clip.synthetic import synthetic_clip, synthetic_config
from pomp_jax.config import SYNTHETIC_CLIP, WORLD, ConfigError, Settings, fields
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import load_synsets
from pomp_jax.data.source import ClassSubset, Source, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import ArrayCache
from pomp_jax.files.progress import waiting
from pomp_jax.inputs.stored import has_validation as has_stored_validation
from pomp_jax.inputs.stored import n_classes_of, open_stored, stored_splits
from pomp_jax.prompt.mesh import make_mesh


def open_clip(settings: fields.Clip) -> Clip:
  """The CLIP that `config.clip` names.

  Raises:
    ClipError: it can't be read.
  """
  model = settings.model
  if model.startswith(SYNTHETIC_CLIP):
    synsets = load_synsets()
    counts = {f"{name}.": int(n) for name, n in zip(synsets.names, synsets.lengths, strict=True)}
    return synthetic_clip(model.removeprefix(SYNTHETIC_CLIP), counts)
  return load_clip(model, activation=settings.activation)


def clip_config(model: str) -> ClipConfig:
  """The sizes alone of `config.clip.model`, without weights; see `open_clip`."""
  if model.startswith(SYNTHETIC_CLIP):
    return synthetic_config(model.removeprefix(SYNTHETIC_CLIP))
  return read_clip_config(model)


def open_encoder(config: Settings, mesh: Mesh | None = None) -> Encoder:
  """The CLIP on the devices, as `config.clip`, `config.mesh` and `config.eval.cache` say.

  Args:
    config: of the run.
    mesh: other devices than all of them.
  """
  with waiting(f"loading {config.clip.model}"):
    clip = open_clip(config.clip)
  return Encoder(
    clip,
    mesh=make_mesh(config.mesh.class_size) if mesh is None else mesh,
    tower=config.clip.text_tower,
    dtype=config.clip.dtype,
    chunk=config.clip.chunk,
    image_chunk=config.clip.image_chunk,
    cache=ArrayCache(config.eval.cache),
  )


def open_source(data: Data, split: str, **size: int) -> Source:
  """The images of a split.

  Args:
    data: `config.data`.
    split: train, validation, or one of `evaluation_splits`.
    **size: images_per_class=.. (of the world) or n_images=.. (over the classes, as evenly as can
      be; 0: all, of stored images).

  Raises:
    SourceError, VocabularyError, ConfigError: stored images are not as they have to be.
  """
  if data.source != WORLD:
    with waiting(f"opening the {split} images"):
      return open_stored(data, split, size.get("n_images") or None)
  n_classes = min(data.n_classes, len(_names(data.source, split)))
  if not n_classes:
    return world.source(split, **size)
  if "n_images" in size:
    size = {"images_per_class": -(-size["n_images"] // n_classes)}
  return ClassSubset(world.source(split, **size), n_classes)


def open_training_source(data: Data, image_size: int) -> Source:
  """The images to train with, of the size that the CLIP takes; errors as of `open_source`."""
  source = open_source(data, "train", images_per_class=data.images_per_class)
  return source.sized(image_size) if isinstance(source, StoredImages) else source


def n_training_classes(data: Data) -> int:
  """N, without opening any image; finds out whether every split is there.

  Raises:
    SourceError, VocabularyError, ConfigError: stored images are not as they have to be.
  """
  if data.source != WORLD:
    return n_classes_of(data)
  n_all = len(_names(data.source, "train"))
  if data.n_classes > n_all:
    raise ConfigError("data.n_classes", data.n_classes, f"at most {n_all}, or 0 for all")
  return data.n_classes or n_all


def _names(source: str, split: str) -> tuple[str, ...]:
  assert source == WORLD, source
  return world.class_names({"novel": "novel", "shifted": "all"}.get(split, "base"))


# What a prompt learned on the world is evaluated on.
TEST_SPLITS = ("base", "novel", "shifted")


def evaluation_splits(data: Data) -> tuple[str, ...]:
  """What a learned prompt is evaluated on, by names that `open_source` knows.

  Raises:
    SourceError: no stored images there.
  """
  return TEST_SPLITS if data.source == WORLD else stored_splits(data)


def has_validation(data: Data) -> bool:
  """Whether validation images are others than those that are trained on."""
  return data.source == WORLD or has_stored_validation(data)
