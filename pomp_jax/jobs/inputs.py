"""What jobs start from, by the names that configs use."""

from ml_collections import ConfigDict

from pomp_jax import world
from pomp_jax.clip import Clip, load_clip
from pomp_jax.clip.load import read_clip_config
from pomp_jax.config import WORLD
from pomp_jax.data.source import Source
from pomp_jax.prompt.train_step import make_mesh
from pomp_jax.transfer import Encoder


def open_clip(model: str) -> Clip:
  """The CLIP that `config.clip.model` names.

  Raises:
    ClipError: it can't be read.
  """
  return load_clip(str(world.CLIP_PATH), name=WORLD) if model == WORLD else load_clip(model)


def clip_config(model: str):
  """Its HuggingFace configuration alone, without weights; see `open_clip`."""
  return read_clip_config(str(world.CLIP_PATH) if model == WORLD else model)


def open_encoder(config: ConfigDict) -> Encoder:
  """The CLIP on all devices, as `config.clip` and `config.mesh` say."""
  return Encoder(
    open_clip(config.clip.model),
    mesh=make_mesh(config.mesh["class"]),
    tower=config.clip.text_tower,
    dtype=config.clip.dtype,
    chunk=config.clip.chunk,
  )


def open_source(name: str, split: str, **size: int) -> Source:
  """The images of a split; `size` is images_per_class=.. or n_images=.. .

  Args:
    name: `config.data.source`.
    split: train, validation, or one of TEST_SPLITS.
  """
  assert name == WORLD, name
  return world.source(split, **size)


def training_names(name: str) -> tuple[str, ...]:
  """The classes of the train split, without opening any image."""
  assert name == WORLD, name
  return world.class_names("base")


# What a learned prompt is evaluated on.
TEST_SPLITS = ("base", "novel", "shifted")
