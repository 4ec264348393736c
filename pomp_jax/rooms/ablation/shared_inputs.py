"""CLIPs, images and features that cells of an ablation share, each computed once."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import tempfile
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.config.fields import Data, Eval
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.predictions import evaluate, topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.mesh import DATA, over_all_devices, replicate
from pomp_jax.rooms.ablation.grid import Cell, Replace
from pomp_jax.rooms.ablation.vmapped_training import Stream
from pomp_jax.train import batches, results, setup
from pomp_jax.train.fill_features import fill_features

# Images rendered or decoded at a time over all processes, roughly.
_IMAGES = 1024

# Splits of a curve: images of the training classes that nothing else sees, and those of
# unseen classes.
CURVE = ("validation", "novel", "new")

# Split -> prompt -> figures.
Scores = dict[str, dict[str, Accuracy]]


class SharedInputs:
  """Opens or computes each thing when it is first asked for, and holds it.

  Streams are in temporary files, mapped into memory. Other features of images are
  stored in `data.feature_store` or the ablation's folder.
  """

  def __init__(self, folder: RunFolder, replace: Replace):
    """Opens nothing yet; `replace` is that of the ablation's config."""
    self.folder = folder
    self._replace = replace
    self._streams: dict[Any, Stream] = {}
    # Each of these is called once for equal arguments.
    self._encoder = functools.cache(inputs.open_encoder)
    self._source = functools.cache(
      lambda data, encoder: encoder.sized(inputs.open_source(data, "train"))
    )
    for name in (
      "_frozen",
      "_image_features",
      "references",
      "_splits",
      "_curve_splits",
    ):
      setattr(self, name, functools.cache(getattr(self, name)))

  def prepare(self, cell: Cell) -> setup.PromptRun:
    """Makes the training of a cell ready; it shares CLIP and images with others."""
    config = self._replace(cell.overrides)
    encoder = self._encoder(
      config.clip, config.mesh.class_size, config.data.feature_store
    )
    return setup.prepare(
      config,
      self.folder,
      encoder=encoder,
      source=self._source(config.data, encoder),
      frozen=self._frozen(encoder, config.data, config.prompt.m),
    )

  def _frozen(self, encoder: Encoder, data: Data, m: int):
    return encoder.frozen(encoder.vocabulary(self._source(data, encoder).names, m))

  def stream(self, run: setup.PromptRun) -> Stream:
    """The features that a run is trained on, in order; all processes call it together."""
    key = (run.encoder, run.data, run.loop.batch_size, run.seed)
    # Runs of several lengths share the longest stream.
    if key not in self._streams or len(self._streams[key].labels) < run.total_steps:
      fill_features(run.data, run.clip, self.folder, run.source, run.encoder)
      self._streams[key] = _stream(run, self._image_features(run.encoder))
    features, labels = self._streams[key]
    return Stream(features[: run.total_steps], labels[: run.total_steps])

  def _image_features(self, encoder: Encoder) -> Callable:
    """Computes features as a training step does, but gathers them on all hosts."""
    tower = over_all_devices(encoder.mesh, encoder.image_tower)
    return jax.jit(tower, out_shardings=NamedSharding(encoder.mesh, P()))

  def evaluate(self, run: setup.PromptRun, prompt: Prompt) -> Scores:
    """A prompt's accuracy on every split, as the job pretrain computes it."""
    # A class-specific context knows no class but those it was trained on.
    names = tuple(run.source.names) if prompt.context.ndim == 3 else None
    splits = self._splits(run.encoder, run.data, run.eval.images, names)
    return _accuracy(run.encoder, splits, {"prompt": prompt})

  def references(self, encoder: Encoder, data: Data, evaluation: Eval) -> Scores:
    """Accuracy of hand-written prompts on every split.

    Args:
      encoder: CLIP's encoder.
      data: images of the splits.
      evaluation: template of the hand-written prompt, and number of images.
    """
    prompts = {"hand_written": evaluation.template, "class_name": "{}."}
    return _accuracy(encoder, self._splits(encoder, data, evaluation.images), prompts)

  def curve(
    self, run: setup.PromptRun, contexts: Mapping[int, np.ndarray]
  ) -> dict[str, Any]:
    """Accuracy of a run's prompts, by step, on the available splits of `CURVE`.

    Returns:
      `steps`, `top1` by split, and `images` of each split.
    """
    encoder = run.encoder
    prompt = run.prompt
    splits, rows_of, frozen = self._curve_splits(
      encoder, run.data, run.eval.images, prompt.m, prompt.class_specific
    )
    top1: dict[str, list[float]] = {name: [] for name in splits}
    for context in contexts.values():
      # Bypass the encoder's cache of class features.
      params = replicate({"context": context}, encoder.mesh)
      features_NxE = encoder.features_of_classes(params, frozen, prompt.position)
      for name, split in splits.items():
        rows = features_NxE[rows_of[name]]
        scores = topk_accuracy(split.features, rows, split.labels, mesh=encoder.mesh)
        top1[name].append(scores["top1"])
    images = {name: len(split.labels) for name, split in splits.items()}
    return {"steps": list(contexts), "top1": top1, "images": images}

  def _curve_splits(
    self, encoder: Encoder, data: Data, n_images: int, m: int, class_specific: bool
  ):
    """Splits of a curve, the rows of their classes among all names, and their arrays."""
    source = inputs.open_source(data, "validation", n_images=n_images)
    validation = batches.readable_features(data, encoder, source, self.folder)
    splits = {"validation": validation}
    if not class_specific:  # such a context knows no class but those it was trained on
      for name, split in self._splits(encoder, data, n_images).items():
        if name in CURVE:
          splits[name] = split
    names = dict.fromkeys(name for split in splits.values() for name in split.names)
    row_of = {name: row for row, name in enumerate(names)}
    rows_of_splits = {
      split_name: [row_of[name] for name in split.names]
      for split_name, split in splits.items()
    }
    frozen = encoder.frozen(encoder.vocabulary(tuple(names), m))
    return splits, rows_of_splits, frozen

  def _splits(
    self,
    encoder: Encoder,
    data: Data,
    n_images: int,
    names: tuple[str, ...] | None = None,
  ) -> dict[str, SplitFeatures]:
    splits = results.open_splits(data, n_images, encoder, self.folder, names)
    return {name: features for name, (_, features) in splits.items()}


def _accuracy(
  encoder: Encoder,
  splits: Mapping[str, SplitFeatures],
  prompts: Mapping[str, Prompt | str],
) -> Scores:
  scores = {}
  for split, tallies in evaluate(encoder, splits, prompts).items():
    scores[split] = {name: tally.figures() for name, tally in tallies.items()}
  return scores


def _stream(run: setup.PromptRun, image_features: Callable) -> Stream:
  """Reads this process's rows of the batches that the pretrain job would read.

  Their images become features.
  """
  n_batches = max(_IMAGES // run.loop.batch_size, 1)
  labels = []
  with (
    contextlib.closing(run.open_batches()) as loader,
    # The file has no name, and ends with the process.
    tempfile.TemporaryFile() as file,
  ):
    starts = range(0, run.total_steps, n_batches)
    for start in steps_of(starts, "features of training images", "parts"):
      n_left = run.total_steps - start
      part = [next(loader) for _ in range(min(n_batches, n_left))]
      images = np.concatenate([batch["image"] for batch in part])
      if run.data.features == "online":
        images = _features_of_rows(run, image_features, images)
      # Not through a memory map: a full disk would kill the process.
      file.write(np.ascontiguousarray(images).data)
      labels += [batch["label"] for batch in part]
    file.flush()
    labels_TxG = np.stack(labels)
    shape = (*labels_TxG.shape, images.shape[-1])
    return Stream(np.memmap(file, images.dtype, mode="r", shape=shape), labels_TxG)


def _features_of_rows(
  run: setup.PromptRun, image_features: Callable, images: np.ndarray
) -> np.ndarray:
  """Features of this process's images, computed with those of all processes."""
  mesh = run.encoder.mesh
  rows = NamedSharding(mesh, P(DATA))
  placed = jax.make_array_from_process_local_data(rows, images)
  features = np.asarray(image_features(run.frozen.image, placed))
  # Each part of the data axis has a block of rows, of all these batches.
  part, n_parts = batches.own_shard(mesh)
  return np.split(features, n_parts)[part]
