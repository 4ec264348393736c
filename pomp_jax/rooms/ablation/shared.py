"""CLIPs, images and features that cells of an ablation share, each opened or computed once."""

from collections.abc import Callable, Mapping
import contextlib
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
from pomp_jax.evaluate.predictions import SplitFeatures, evaluate, topk_accuracy
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


class Shared:
  """Opens or computes each thing when it is first asked for, and holds it.

  Streams are in temporary files, mapped into memory. Other features of images are stored in
  `data.feature_store` or the ablation's folder.
  """

  def __init__(self, folder: RunFolder):
    self._folder = folder
    self._held: dict[Any, Any] = {}

  def encoder(self, config: Settings) -> Encoder:
    """The CLIP that a config names."""
    return self._once(config, "encoder", ("clip", "mesh"), lambda: inputs.open_encoder(config))

  def prepare(self, config: Settings, folder: RunFolder) -> setup.Run:
    """A run made ready, its CLIP and its images shared with the others."""
    encoder, source = self.encoder(config), self._source(config)
    frozen = self._once(
      config,
      "frozen",
      ("clip", "mesh", "data", "prompt.m"),
      lambda: encoder.frozen(encoder.vocabulary(source.names, config.prompt.m)),
    )
    return setup.prepare(config, folder, encoder=encoder, source=source, frozen=frozen)

  def _source(self, config: Settings) -> Source:
    """The images and classes of a training."""
    return self._once(
      config,
      "source",
      ("clip.model", "data"),
      lambda: inputs.open_training_source(config.data, self.encoder(config).clip.image_size),
    )

  def stream(self, run: setup.Run) -> Stream:
    """The features that a run is trained on, in order; all processes call it together."""
    key = ("stream", self._key(run.config, ("clip", "mesh", "data", "batch_size", "seed")))
    # Runs of several lengths share the longest stream.
    if key not in self._held or len(self._held[key].labels) < run.total_steps:
      fill_features(run.config, self._folder, run.source, run.encoder)
      self._held[key] = _stream(run, self._image_features(run.config))
    return Stream(*(part[: run.total_steps] for part in self._held[key]))

  def evaluate(self, config: Settings, prompt: Prompt) -> Scores:
    """A prompt's accuracy on every split, as the job pretrain computes it."""
    splits = self._splits(config)
    if prompt.context.ndim == 3:
      # A class-specific context knows no class but those it was trained on.
      names = tuple(self._source(config).names)
      splits = {name: split for name, split in splits.items() if tuple(split.names) == names}
    return self._accuracy(config, splits, {"prompt": prompt})

  def _accuracy(self, config: Settings, splits, prompts: Mapping[str, Prompt | str]) -> Scores:
    found = evaluate(self.encoder(config), splits, prompts)
    return {
      split: {name: one.accuracy() for name, one in tallies.items()}
      for split, tallies in found.items()
    }

  def curve(self, config: Settings, contexts: Mapping[int, np.ndarray]) -> dict[str, list[float]]:
    """Top-1 of a cell's prompts, step by step, on the available splits of `CURVE`.

    Bypasses the encoder's cache of class features, and tokenizes the names once.
    """
    encoder, splits = self.encoder(config), self._curve_splits(config)
    names = tuple(dict.fromkeys(name for split in splits.values() for name in split.names))
    row = {name: i for i, name in enumerate(names)}
    tokens = self._once(
      config,
      "curve_tokens",
      ("clip", "mesh", "data", "prompt.m"),
      lambda: encoder.frozen(encoder.vocabulary(names, config.prompt.m)).tokens,
    )
    found: dict[str, list[float]] = {name: [] for name in splits}
    for context in contexts.values():
      params = replicate({"context": context}, encoder.mesh)
      features_NxE = encoder.features_of_tokens(params, tokens, config.prompt.position)
      for name, split in splits.items():
        rows = features_NxE[[row[own] for own in split.names]]
        scores = topk_accuracy(split.features, rows, split.labels, mesh=encoder.mesh)
        found[name].append(scores["top1"])
    return found

  def curve_images(self, config: Settings) -> dict[str, int]:
    """Number of images behind each split of `curve`."""
    return {name: len(split.labels) for name, split in self._curve_splits(config).items()}

  def _curve_splits(self, config: Settings) -> dict[str, SplitFeatures]:
    validation = self._once(
      config,
      "validation",
      ("clip", "mesh", "data", "eval.images"),
      lambda: self._split_features(config, "validation"),
    )
    # A class-specific context knows no class but those it was trained on.
    others = {} if config.prompt.class_specific else self._splits(config)
    return {"validation": validation} | {
      name: split for name, split in others.items() if name in CURVE
    }

  def references(self, config: Settings) -> Scores:
    """Accuracy of the hand-written prompts."""
    by_hand = {"hand_written": config.eval.template, "class_name": "{}."}
    return self._once(
      config,
      "references",
      ("clip", "mesh", "data", "eval"),
      lambda: self._accuracy(config, self._splits(config), by_hand),
    )

  def _image_features(self, config: Settings) -> Callable:
    """Computes features as a training step does, but gathers them on all hosts."""

    def make():
      encoder = self.encoder(config)
      everywhere = NamedSharding(encoder.mesh, P())
      tower = over_all_devices(encoder.mesh, encoder.image_tower)
      return jax.jit(tower, out_shardings=everywhere)

    return self._once(config, "image_features", ("clip", "mesh"), make)

  def _splits(self, config: Settings) -> dict[str, SplitFeatures]:
    return self._once(
      config,
      "splits",
      ("clip", "mesh", "data", "eval.images"),
      lambda: {
        name: self._split_features(config, name) for name in inputs.evaluation_splits(config.data)
      },
    )

  def _split_features(self, config: Settings, name: str) -> SplitFeatures:
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    return batches.readable_features(config, self.encoder(config), source, self._folder)

  def _once(self, config: Settings, what: str, on: tuple[str, ...], make: Callable) -> Any:
    """Result of `make`, once for all configs that agree on some fields."""
    key = (what, self._key(config, on))
    if key not in self._held:
      self._held[key] = make()
    return self._held[key]

  @staticmethod
  def _key(config: Settings, on: tuple[str, ...]) -> str:
    inside = tuple(f"{name}." for name in on)
    return repr([(f, v) for f, v in config.flat().items() if f in on or f.startswith(inside)])


def _stream(run: setup.Run, image_features: Callable) -> Stream:
  """Reads this process's rows of the batches that the pretrain job would read, as features.

  Raises:
    OSError: the folder for temporary files (`TMPDIR`) is full.
  """
  config, mesh = run.config, run.encoder.mesh
  rows, (part, n_parts) = NamedSharding(mesh, P(DATA)), batches.own_shard(mesh)
  at_a_time = max(_IMAGES // config.batch_size, 1)
  labels = []
  with (
    contextlib.closing(batches.open_batches(config, run.source, run.fetch, mesh)) as loader,
    # The file has no name, and ends with the process.
    tempfile.TemporaryFile() as file,
  ):
    starts = range(0, run.total_steps, at_a_time)
    for start in steps_of(starts, "features of training images", "parts"):
      some = [next(loader) for _ in range(min(at_a_time, run.total_steps - start))]
      images = np.concatenate([batch["image"] for batch in some])
      if config.data.features == "online":
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
