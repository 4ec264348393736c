"""A training's evaluation, and the files of its results."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import time
import types
from typing import Any

import numpy as np

from pomp_jax.config.fields import Data, Log
from pomp_jax.data.source import Source
from pomp_jax.data.unreadable import name_of
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.ranking import evaluate
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.metrics_log import Tracker
from pomp_jax.files.prompt_file import Prompt, PromptFileError
from pomp_jax.files.run_folder import RunFolder, RunFolderError
from pomp_jax.files.terminal import printable
from pomp_jax.hooks import BY_CLASS, TRACKER
from pomp_jax.report import plots
from pomp_jax.report.labels import method_label, run_labels
from pomp_jax.report.run_report import finish_run
from pomp_jax.train import batches
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

# The prompt that others are compared with, and what `results.json` has of each.
HAND_WRITTEN = "hand_written"
_FIGURES = (
  "images",
  "top1",
  "top1_interval",
  "top5",
  "macro_top1",
  "ece",
  "difference",
)
_MOST_NAMED = 1000  # unreadable images of a split in `results.json`


@contextlib.contextmanager
def writing_results(folder: RunFolder) -> Iterator[None]:
  """What can't be written after the training is a TrainingError that says what is
  left."""
  try:
    yield
  except (OSError, PromptFileError, RunFolderError) as error:
    raise TrainingError(
      f"{folder.path}: the results can't be written ({error}); the training is done, its last"
      f" checkpoint is in {folder.checkpoints}, and the same command resumes from there"
    ) from error


def open_tracker(log: Log, folder: RunFolder, config: Mapping[str, Any]) -> Tracker:
  """Starts or resumes the run's record in an experiment tracker, if there is one.

  Args:
    log: `config.log`, which names the tracker.
    folder: folder of the run.
    config: all fields of the run.
  """
  return TRACKER.open()(log, folder, config) if TRACKER else Tracker()


def open_splits(
  data: Data,
  n_images: int,
  encoder: Encoder,
  folder: RunFolder,
  names: Sequence[str] | None,
) -> dict[str, tuple[Source, SplitFeatures]]:
  """Images and features of the test splits with these classes, or of all.

  Args:
    data: `config.data`.
    n_images: images of each split; 0 for all.
    encoder: CLIP that computes the features.
    folder: folder of the run.
    names: classes that a split must have, in this order; None for any.
  """
  splits = {}
  for name in opening.evaluation_splits(data):
    source = opening.open_source(data, name, n_images=n_images)
    if names is None or tuple(source.names) == tuple(names):
      splits[name] = source, batches.readable_features(data, encoder, source, folder)
  return splits


def evaluate_run(
  run: PromptRun,
  learned: Prompt | Any,
  done: Checkpoint,
  rows: Mapping[str, Prompt | str] = types.MappingProxyType({}),
  reference: str = HAND_WRITTEN,
  labels: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Evaluates a prompt, or the parameters of another method.

  Args:
    run: the finished training.
    learned: what it leaves.
    done: its last checkpoint.
    rows: prompts that the tables have beside it, by row.
    reference: row that the others are compared with.
    labels: of rows, where they say what a prompt is.

  Returns:
    What `results.json` holds, and the splits as sets of `rooms.analysis.by_class`.
  """
  start = time.monotonic()
  # A class-specific context knows no class but those it was trained on.
  names = run.source.names if run.prompt.class_specific else None
  log.info("trained; evaluating on %s", ", ".join(opening.evaluation_splits(run.data)))
  splits = open_splits(run.data, run.eval.images, run.encoder, run.folder, names)
  features = {name: split for name, (_, split) in splits.items()}
  own: dict[str, Prompt | str] = (
    {"prompt": learned} if isinstance(learned, Prompt) else {}
  )
  prompts = own | dict(rows) | {HAND_WRITTEN: run.eval.template, "class_name": "{}."}
  tallies = evaluate(run.encoder, features, prompts, reference)
  scores: dict[str, dict[str, Any]] = {
    name: {label: one.figures() | one.by_class() for label, one in of_split.items()}
    for name, of_split in tallies.items()
  }
  if not own:
    accuracy = run.accuracy()
    for name, (source, split) in splits.items():
      scores[name] = {"prompt": accuracy(learned, split, source)} | scores[name]
  results, sets = figures_of_splits(splits, scores, "prompt", reference, labels)
  if done.unreadable:
    results["unreadable"]["train"] = _names(run.source, done.unreadable)
  results |= {
    "by_class": {
      name: BY_CLASS.open().summary(one, "prompt") for name, one in sets.items()
    },
    "n_classes": len(run.source.names),
    "seconds": round(done.seconds, 2),
    "eval_seconds": round(time.monotonic() - start, 2),
    "steps": run.total_steps,
    "roll_backs": done.roll_backs,
    "images_per_second": round(run.total_steps * run.loop.batch_size / done.seconds, 1),
    "productive_share": run.folder.productive_share(),
    "k": run.k,
    "correction": run.contrast.correction,
    "margin": run.contrast.margin,
    "unreadable_images": len(done.unreadable),
  }
  return results, sets


def figures_of_splits(
  splits: Mapping[str, tuple[Source, SplitFeatures]],
  scores: Mapping[str, Any],
  learned: str,
  reference: str = HAND_WRITTEN,
  labels: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The part of `results.json` that all methods have, and sets of
  `rooms.analysis.by_class`.

  `learned` names the method's own scores, `reference` those that the others are
  compared with.

  Args:
    splits: images and features by split.
    scores: figures by split and prompt.
    learned: prompt of the method's own scores.
    reference: prompt that the others are compared with.
    labels: texts that explain prompts, by prompt.
  """
  results: dict[str, Any] = {
    "reference": reference,
    "eval_images": {name: len(split.labels) for name, (_, split) in splits.items()},
    "eval_classes": {name: len(split.names) for name, (_, split) in splits.items()},
    "eval": {},
    "eval_unreadable": {},
    "unreadable": {},
    "top1": {name: of_split[learned]["top1"] for name, of_split in scores.items()},
  }
  for name, (source, split) in splits.items():
    results["eval"][name] = {
      label: {key: value for key, value in one.items() if key in _FIGURES}
      for label, one in scores[name].items()
    }
    unreadable = np.setdiff1d(np.arange(len(source)), split.indices).tolist()
    results["eval_unreadable"][name] = len(unreadable)
    if unreadable:
      results["unreadable"][name] = _names(source, unreadable)
  names = {name: split.names for name, (_, split) in splits.items()}
  return results, BY_CLASS.open().sets_of(
    names, scores, reference, labels
  ) if BY_CLASS else {}


def _names(source: Source, indices: Sequence[int]) -> list[str]:
  return [name_of(source, index) for index in indices[:_MOST_NAMED]]


def finish(
  folder: RunFolder,
  config: Mapping[str, Any],
  results: Mapping[str, Any],
  sets: Mapping[str, Any],
) -> None:
  """Writes tables of all classes, the plot of the accuracy and, last, the results;
  logs these.

  Args:
    folder: folder of the run.
    config: all fields of the run.
    results: facts and figures, as `results.json` holds them.
    sets: splits as sets of `rooms.analysis.by_class`.
  """
  if BY_CLASS:
    BY_CLASS.open().write(folder, sets)
  title = f"{method_label(results['method'])}, seed {results['seed']}: top-1 (%)"
  title += ", 95% intervals over the images"
  images = results["eval_images"]
  classes = results["eval_classes"]
  splits = results["eval"]
  top1: dict[str, dict[str, float]] = {}  # prompt -> split -> fraction
  intervals: dict[str, dict[str, Sequence[float]]] = {}
  for split, scores in splits.items():
    for name, score in scores.items():
      top1.setdefault(name, {})[split] = score["top1"]
      intervals.setdefault(name, {})[split] = score["top1_interval"]
  labels = run_labels(list(top1), folder.path.name, results)
  label_of = dict(zip(top1, labels, strict=True))
  plots.accuracy_panels(
    folder.plots / "accuracy.png",
    top1,
    labels,
    title,
    images=images,
    classes=classes,
    intervals=intervals,
    published={},
  )
  finish_run(folder, config, results)
  for split, scores in splits.items():
    line = ", ".join(
      f"{label_of[name]} {100 * score['top1']:.1f}%" for name, score in scores.items()
    )
    name, score = next(iter(scores.items()))
    low, high = score["top1_interval"]
    log.info(
      "%s top-1 of %d images over %d classes: %s; 95%% interval of %s %.1f to %.1f%%",
      split,
      images[split],
      classes[split],
      line,
      label_of[name],
      100 * low,
      100 * high,
    )
  if words := results.get("words"):
    log.info("%s", words["remark"])
  for split, files in results["unreadable"].items():
    log.warning(
      "%s: SKIPPED, can't be read: %s", split, printable(", ".join(files), 2000)
    )
  log.info("done; open the report: %s", folder.path / "report.html")
