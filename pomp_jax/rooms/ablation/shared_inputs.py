"""Opens once the CLIPs, images and features that an ablation's cells share."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import itertools
import tempfile
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from pomp_jax.config.fields import Data, Eval
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.ranking import evaluate, topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.prompt_file import Prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.files.terminal import steps_of
from pomp_jax.prompt.learner import Frozen
from pomp_jax.prompt.mesh import DATA, over_all_devices, replicate
from pomp_jax.rooms.ablation.grid import Cell, Replace
from pomp_jax.rooms.ablation.vmapped_training import Stream
from pomp_jax.train import batches, results, setup
from pomp_jax.train.fill_features import fill_features
from pomp_jax.train.training import PromptRun

# Rough number of images rendered or decoded at a time, over all processes.
_IMAGES = 1024

# Splits of a curve: images of the training classes that nothing else reads
# ("validation"), and unseen classes.
CURVE = ("validation", "novel", "new")

# Figures by split and prompt.
Scores = dict[str, dict[str, Accuracy]]


class SharedInputs:
  """Opens or computes each input on its first use, and caches it.

  Streams are in temporary files, mapped into memory. Other features of images are
  stored in `data.feature_store` or the ablation's folder.
  """

  def __init__(self, folder: RunFolder, replace: Replace):
    """Opens nothing yet; `replace` is the method of the ablation's config."""
    self.folder = folder
    self._replace = replace
    self._streams: dict[Any, Stream] = {}
    # Cache per object: each of these functions runs once for equal arguments.
    self._encoder = functools.cache(opening.open_encoder)
    open_source = lambda data, encoder: encoder.sized(
      opening.open_source(data, "train")
    )
    self._source = functools.cache(open_source)
    methods = ("_frozen", "_image_features", "references", "_splits", "_curve_splits")
    for name in methods:
      setattr(self, name, functools.cache(getattr(self, name)))

  def prepare(self, cell: Cell) -> PromptRun:
    """Prepares the training of a cell with the shared CLIP and images."""
    config = self._replace(cell.overrides)
    encoder = self._encoder(
      config.clip, config.mesh.class_size, config.data.feature_store
    )
    source = self._source(config.data, encoder)
    frozen = self._frozen(encoder, config.data, config.prompt.m)
    return setup.prepare(
      config, self.folder, encoder=encoder, source=source, frozen=frozen
    )

  def _frozen(self, encoder: Encoder, data: Data, m: int) -> Frozen:
    """Frozen arrays of the training classes, for a context of m vectors."""
    return encoder.frozen(encoder.vocabulary(self._source(data, encoder).names, m))

  def stream(self, run: PromptRun) -> Stream:
    """Returns the batches that a run is trained on, as features.

    All processes call it together.
    """
    key = run.encoder, run.data, run.loop.batch_size, run.seed
    longest = self._streams.get(key)
    # Runs that differ only in their number of steps share the longest stream.
    if longest is None or len(longest.labels) < run.total_steps:
      fill_features(run.data, run.clip, self.folder, run.source, run.encoder)
      longest = _stream(run, self._image_features(run.encoder))
      self._streams[key] = longest
    steps = slice(run.total_steps)
    return Stream(longest.features[steps], labels=longest.labels[steps])

  def _image_features(self, encoder: Encoder) -> Callable:
    """Compiles the training step's image tower, with its features on all hosts."""
    tower = over_all_devices(encoder.mesh, encoder.image_tower)
    return jax.jit(tower, out_shardings=NamedSharding(encoder.mesh, P()))

  def evaluate(self, run: PromptRun, prompt: Prompt) -> Scores:
    """Measures a prompt's accuracy on every split, as the job pretrain does."""
    names = None
    if prompt.context.ndim == 3:
      # A class-specific context knows only the classes that it was trained on.
      names = tuple(run.source.names)
    splits = self._splits(run.encoder, run.data, run.eval.images, names)
    return _accuracy(run.encoder, splits, {"prompt": prompt})

  def references(self, encoder: Encoder, data: Data, evaluation: Eval) -> Scores:
    """Measures the accuracy of prompts written by hand on every split.

    Args:
      encoder: the CLIP.
      data: fields of the data, which name the splits.
      evaluation: fields of the evaluation, with the number of images and the template.
    """
    by_hand = {"hand_written": evaluation.template, "class_name": "{}."}
    splits = self._splits(encoder, data, evaluation.images)
    return _accuracy(encoder, splits, by_hand)

  def curve(self, run: PromptRun, contexts: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Evaluates a run's contexts, by step, on the available splits of `CURVE`.

    Returns "steps", "top1" by split with one value a step, and the number of "images"
    by split.
    """
    encoder = run.encoder
    prompt = run.prompt
    validated = self._curve_splits(
      encoder, run.data, run.eval.images, prompt.m, prompt.class_specific
    )
    top1: dict[str, list[float]] = {name: [] for name in validated.splits}
    for context in contexts.values():
      # Bypass the encoder's cache of class features: each context is used once.
      params = replicate({"context": context}, encoder.mesh)
      features_NxE = encoder.features_of_classes(
        params, validated.frozen, prompt.position
      )
      for name, split in validated.splits.items():
        classes = features_NxE[validated.rows[name]]
        scores = topk_accuracy(split.features, classes, split.labels, mesh=encoder.mesh)
        top1[name].append(scores["top1"])
    images = {name: len(split.labels) for name, split in validated.splits.items()}
    return {"steps": list(contexts), "top1": top1, "images": images}

  def _curve_splits(
    self, encoder: Encoder, data: Data, n: int, m: int, class_specific: bool
  ) -> "_CurveSplits":
    """Splits of a curve with at most n images each, for contexts of m vectors."""
    source = opening.open_source(data, "validation", n_images=n)
    splits = {
      "validation": batches.readable_features(data, encoder, source, self.folder)
    }
    # A class-specific context knows only the classes that it was trained on.
    if not class_specific:
      for name, split in self._splits(encoder, data, n).items():
        if name in CURVE:
          splits[name] = split
    # Splits may share classes: list each class once, to compute its features once.
    classes = itertools.chain.from_iterable(split.names for split in splits.values())
    names = tuple(dict.fromkeys(classes))
    row_of = {name: row for row, name in enumerate(names)}
    rows = {}
    for name, split in splits.items():
      rows[name] = [row_of[class_name] for class_name in split.names]
    frozen = encoder.frozen(encoder.vocabulary(names, m))
    return _CurveSplits(splits, rows=rows, frozen=frozen)

  def _splits(
    self,
    encoder: Encoder,
    data: Data,
    n_images: int,
    names: tuple[str, ...] | None = None,
  ) -> dict[str, SplitFeatures]:
    """Features of the splits that the job pretrain evaluates on."""
    splits = results.open_splits(data, n_images, encoder, self.folder, names)
    return {name: features for name, (_, features) in splits.items()}


class _CurveSplits(NamedTuple):
  """Splits of a curve and their classes."""

  splits: dict[str, SplitFeatures]
  rows: dict[str, list[int]]  # indices of each split's classes in `frozen`
  frozen: Frozen  # arrays of the classes of all splits


def _accuracy(
  encoder: Encoder,
  splits: Mapping[str, SplitFeatures],
  prompts: Mapping[str, Prompt | str],
) -> Scores:
  """Figures of each split and prompt."""
  scores: Scores = {}
  for split, tallies in evaluate(encoder, splits, prompts).items():
    scores[split] = {name: tally.figures() for name, tally in tallies.items()}
  return scores


def _stream(run: PromptRun, image_features: Callable) -> Stream:
  """Reads this process's rows of the pretrain job's batches, as features.

  Shapes: T steps, G rows of a batch on this process.
  """
  mesh = run.encoder.mesh
  rows = NamedSharding(mesh, P(DATA))
  part, n_parts = batches.own_shard(mesh)
  at_a_time = max(_IMAGES // run.loop.batch_size, 1)
  labels = []
  with (
    contextlib.closing(run.open_batches()) as loader,
    # The file has no name: it is deleted when the process ends.
    tempfile.TemporaryFile() as file,
  ):
    starts = range(0, run.total_steps, at_a_time)
    for start in steps_of(starts, "features of training images", "parts"):
      n_steps = min(at_a_time, run.total_steps - start)
      step_batches = [next(loader) for _ in range(n_steps)]
      # Pixels, or features if these are stored.
      image_rows = np.concatenate([batch["image"] for batch in step_batches])
      if run.data.features == "online":
        images = jax.make_array_from_process_local_data(rows, image_rows)
        features = np.asarray(image_features(run.frozen.image, images))
        # The features of all processes are here. Each part of the data axis has one
        # block of them, with its rows of all `n_steps` batches.
        image_rows = np.split(features, n_parts)[part]
      # Write to the file, not to a memory map: with a map a full disk would kill the
      # process.
      file.write(np.ascontiguousarray(image_rows).data)
      labels += [batch["label"] for batch in step_batches]
    file.flush()
    labels_TxG = np.stack(labels)
    shape = (*labels_TxG.shape, image_rows.shape[-1])
    features_TxGxE = np.memmap(file, image_rows.dtype, mode="r", shape=shape)
    return Stream(features_TxGxE, labels_TxG)
