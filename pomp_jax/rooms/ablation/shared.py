"""CLIPs, images and features that cells of an ablation share, each opened or computed once."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import tempfile
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.config import Settings
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.predictions import evaluate, topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.prompt.step import over_all_devices
from pomp_jax.rooms.ablation.lanes import Stream
from pomp_jax.train import batches, setup
from pomp_jax.train.fill_features import fill_features

# Images rendered or decoded at a time over all processes, roughly.
_IMAGES = 1024

# Splits of a curve: images of the training classes that nothing else sees, and unseen classes.
CURVE = ("validation", "novel", "new")

# Split -> prompt -> figures.
Scores = dict[str, dict[str, Accuracy]]


def _once(*on: str) -> Callable[[Callable], Callable]:
  """Holds a method's result for all configs that agree on some fields."""

  def decorate(method: Callable[["Shared", Settings], Any]) -> Callable[["Shared", Settings], Any]:
    @functools.wraps(method)
    def held(self: "Shared", config: Settings) -> Any:
      key = (method.__name__, _key(config, on))
      if key not in self._held:
        self._held[key] = method(self, config)
      return self._held[key]

    return held

  return decorate


def _key(config: Settings, on: tuple[str, ...]) -> str:
  inside = tuple(f"{name}." for name in on)
  return repr([(f, v) for f, v in config.flat().items() if f in on or f.startswith(inside)])


class Shared:
  """Opens or computes each thing when it is first asked for, and holds it.

  Streams are in temporary files, mapped into memory. Other features of images are stored in
  `data.feature_store` or the ablation's folder.
  """

  def __init__(self, folder: RunFolder):
    self._folder = folder
    self._held: dict[Any, Any] = {}

  @_once("clip", "mesh")
  def encoder(self, config: Settings) -> Encoder:
    """The CLIP that a config names."""
    return inputs.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)

  def prepare(self, config: Settings, folder: RunFolder) -> setup.PromptRun:
    """A run made ready, its CLIP and its images shared with the others."""
    shared = {"encoder": self.encoder(config), "source": self._source(config)}
    return setup.prepare(config, folder, frozen=self._frozen(config), **shared)

  @_once("clip.model", "data")
  def _source(self, config: Settings) -> Source:
    """The images and classes of a training."""
    return inputs.open_training_source(config.data, self.encoder(config).clip.image_size)

  @_once("clip", "mesh", "data", "prompt.m")
  def _frozen(self, config: Settings):
    encoder = self.encoder(config)
    return encoder.frozen(encoder.vocabulary(self._source(config).names, config.prompt.m))

  def stream(self, run: setup.PromptRun) -> Stream:
    """The features that a run is trained on, in order; all processes call it together."""
    mesh = dict(run.encoder.mesh.shape)
    key = ("stream", repr((run.clip, mesh, run.data, run.loop.batch_size, run.seed)))
    # Runs of several lengths share the longest stream.
    if key not in self._held or len(self._held[key].labels) < run.total_steps:
      fill_features(run.data, run.clip, self._folder, run.source, run.encoder)
      self._held[key] = _stream(run, self._image_features(run.encoder))
    return Stream(*(part[: run.total_steps] for part in self._held[key]))

  def _image_features(self, encoder: Encoder) -> Callable:
    """Computes features as a training step does, but gathers them on all hosts."""
    key = ("image features", id(encoder))
    if key not in self._held:
      tower = over_all_devices(encoder.mesh, encoder.image_tower)
      self._held[key] = jax.jit(tower, out_shardings=NamedSharding(encoder.mesh, P()))
    return self._held[key]

  def evaluate(self, config: Settings, prompt: Prompt) -> Scores:
    """A prompt's accuracy on every split, as the job pretrain computes it."""
    splits = self._splits(config)
    if prompt.context.ndim == 3:
      # A class-specific context knows no class but those it was trained on.
      names = tuple(self._source(config).names)
      splits = {name: split for name, split in splits.items() if tuple(split.names) == names}
    return self._accuracy(config, splits, {"prompt": prompt})

  @_once("clip", "mesh", "data", "eval")
  def references(self, config: Settings) -> Scores:
    """Accuracy of the hand-written prompts."""
    by_hand = {"hand_written": config.eval.template, "class_name": "{}."}
    return self._accuracy(config, self._splits(config), by_hand)

  def _accuracy(self, config: Settings, splits, prompts: Mapping[str, Prompt | str]) -> Scores:
    found = evaluate(self.encoder(config), splits, prompts)
    return {
      split: {name: one.accuracy() for name, one in tallies.items()}
      for split, tallies in found.items()
    }

  def curve(self, config: Settings, contexts: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Steps of a cell's prompts, and top-1 and images of the available splits of `CURVE`."""
    # Bypass the encoder's cache of class features.
    encoder, (splits, rows_of, tokens) = self.encoder(config), self._curve_splits(config)
    top1: dict[str, list[float]] = {name: [] for name in splits}
    for context in contexts.values():
      params = replicate({"context": context}, encoder.mesh)
      features_NxE = encoder.features_of_tokens(params, tokens, config.prompt.position)
      for name, split in splits.items():
        rows = features_NxE[rows_of[name]]
        scores = topk_accuracy(split.features, rows, split.labels, mesh=encoder.mesh)
        top1[name].append(scores["top1"])
    images = {name: len(split.labels) for name, split in splits.items()}
    return {"steps": list(contexts), "top1": top1, "images": images}

  @_once("clip", "mesh", "data", "eval.images", "prompt.m", "prompt.class_specific")
  def _curve_splits(self, config: Settings):
    """Splits of a curve, the rows of their classes among all names, and the tokens of these."""
    # A class-specific context knows no class but those it was trained on.
    others = {} if config.prompt.class_specific else self._splits(config)
    splits = {"validation": self._validation(config)} | {
      name: split for name, split in others.items() if name in CURVE
    }
    names = tuple(dict.fromkeys(name for split in splits.values() for name in split.names))
    row = {name: i for i, name in enumerate(names)}
    rows_of = {name: [row[own] for own in split.names] for name, split in splits.items()}
    encoder = self.encoder(config)
    return splits, rows_of, encoder.frozen(encoder.vocabulary(names, config.prompt.m)).tokens

  @_once("clip", "mesh", "data", "eval.images")
  def _validation(self, config: Settings) -> SplitFeatures:
    return self._split_features(config, "validation")

  @_once("clip", "mesh", "data", "eval.images")
  def _splits(self, config: Settings) -> dict[str, SplitFeatures]:
    names = inputs.evaluation_splits(config.data)
    return {name: self._split_features(config, name) for name in names}

  def _split_features(self, config: Settings, name: str) -> SplitFeatures:
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    return batches.readable_features(config.data, self.encoder(config), source, self._folder)


def _stream(run: setup.PromptRun, image_features: Callable) -> Stream:
  """Reads this process's rows of the batches that the pretrain job would read, as features."""
  mesh = run.encoder.mesh
  rows, (part, n_parts) = NamedSharding(mesh, P(DATA)), batches.own_shard(mesh)
  at_a_time = max(_IMAGES // run.loop.batch_size, 1)
  labels = []
  with (
    contextlib.closing(run.open_batches()) as loader,
    # The file has no name, and ends with the process.
    tempfile.TemporaryFile() as file,
  ):
    starts = range(0, run.total_steps, at_a_time)
    for start in steps_of(starts, "features of training images", "parts"):
      some = [next(loader) for _ in range(min(at_a_time, run.total_steps - start))]
      images = np.concatenate([batch["image"] for batch in some])
      if run.data.features == "online":
        images = jax.make_array_from_process_local_data(rows, images)
        # Each part of the data axis has a block of rows, of all these batches.
        images = np.split(np.asarray(image_features(run.frozen.image, images)), n_parts)[part]
      # Not through a memory map: a full disk would kill the process.
      file.write(np.ascontiguousarray(images).data)
      labels += [batch["label"] for batch in some]
    file.flush()
    labels_TxG = np.stack(labels)
    shape = (*labels_TxG.shape, images.shape[-1])
    return Stream(np.memmap(file, images.dtype, mode="r", shape=shape), labels_TxG)
