"""A training's evaluation, and the files of its results."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import time
import types
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.config.fields import Data, Log
from pomp_jax.data.skipped_images import name_of
from pomp_jax.data.source import Source
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

# Row of the hand-written prompt, with which other prompts are compared by default.
HAND_WRITTEN = "hand_written"
# Figures of each prompt in `results.json`.
_FIGURES = (
  "images",
  "top1",
  "top1_interval",
  "top5",
  "macro_top1",
  "ece",
  "difference",
)
_MOST_NAMED = 1000  # unreadable images of a split that `results.json` names


class Split(NamedTuple):
  """A test split that is ready to be scored."""

  source: Source  # all images of the split
  features: SplitFeatures  # features of the readable images


class Figures(NamedTuple):
  """Figures of a run, as its folder records them."""

  results: dict[str, Any]  # content of `results.json`
  sets: dict[str, Any]  # splits as sets of `rooms.analysis.by_class`, for its tables


@contextlib.contextmanager
def writing_results(folder: RunFolder) -> Iterator[None]:
  """Turns an error of writing results into one that says what the run still has.

  Raises:
    TrainingError: a file can't be written; the checkpoints are intact.
  """
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
) -> dict[str, Split]:
  """Opens the test splits, and computes or reads their features.

  Args:
    data: `config.data`.
    n_images: images of each split; 0 for all.
    encoder: CLIP that computes the features.
    folder: folder of the run.
    names: classes in order; a split with other classes is left out. None for all
      splits.

  Returns:
    The splits by name.
  """
  splits = {}
  for split in opening.evaluation_splits(data):
    source = opening.open_source(data, split, n_images=n_images)
    has_classes = names is None or tuple(source.names) == tuple(names)
    if has_classes:
      features = batches.readable_features(data, encoder, source, folder)
      splits[split] = Split(source, features)
  return splits


def evaluate_run(
  run: PromptRun,
  learned: Prompt | Any,
  done: Checkpoint,
  rows: Mapping[str, Prompt | str] = types.MappingProxyType({}),
  reference: str = HAND_WRITTEN,
  labels: Mapping[str, str] = types.MappingProxyType({}),
) -> Figures:
  """Evaluates a finished training beside the hand-written prompt and the bare names.

  Args:
    run: the finished training.
    learned: learned prompt, or the parameters of a method that learns no prompt.
    done: last checkpoint of the training.
    rows: other prompts to evaluate, by row of the tables.
    reference: row with which the other rows are compared.
    labels: texts that explain the prompts of rows, by row.
  """
  start = time.monotonic()
  # A class-specific context has vectors only for the classes of the training.
  names = run.source.names if run.prompt.class_specific else None
  log.info("trained; evaluating on %s", ", ".join(opening.evaluation_splits(run.data)))
  splits = open_splits(run.data, run.eval.images, run.encoder, run.folder, names)
  scores = _scores(run, learned, splits, rows, reference)
  results, sets = figures_of_splits(splits, scores, "prompt", reference, labels)
  if done.unreadable:
    results["unreadable"]["train"] = _names(run.source, done.unreadable)

  by_class = {}
  for split, of_set in sets.items():
    by_class[split] = BY_CLASS.open().summary(of_set, "prompt")
  n_images = run.total_steps * run.loop.batch_size
  results |= {
    "by_class": by_class,
    "n_classes": len(run.source.names),
    "seconds": round(done.seconds, 2),
    "eval_seconds": round(time.monotonic() - start, 2),
    "steps": run.total_steps,
    "roll_backs": done.roll_backs,
    "images_per_second": round(n_images / done.seconds, 1),
    "productive_share": run.folder.productive_share(),
    "k": run.k,
    "correction": run.contrast.correction,
    "margin": run.contrast.margin,
    "unreadable_images": len(done.unreadable),
  }
  return Figures(results, sets)


def _scores(
  run: PromptRun,
  learned: Prompt | Any,
  splits: Mapping[str, Split],
  rows: Mapping[str, Prompt | str],
  reference: str,
) -> dict[str, dict[str, Any]]:
  """Figures of each prompt on each split; the learned one comes first, as "prompt".

  Args:
    run: the finished training.
    learned: learned prompt, or the parameters of a method that learns no prompt.
    splits: images and features by split.
    rows: other prompts to evaluate, by row of the tables.
    reference: row with which the other rows are compared.
  """
  prompts: dict[str, Prompt | str] = {}
  if isinstance(learned, Prompt):
    prompts["prompt"] = learned
  prompts |= rows
  prompts[HAND_WRITTEN] = run.eval.template
  prompts["class_name"] = "{}."
  features = {name: split.features for name, split in splits.items()}
  tallies = evaluate(run.encoder, features, prompts, reference)

  scores: dict[str, dict[str, Any]] = {name: {} for name in tallies}
  score = None
  if not isinstance(learned, Prompt):
    score = run.accuracy()
  if score is not None:
    for name, split in splits.items():
      scores[name]["prompt"] = score(learned, split.features, split.source)
  for name, tally_of_prompt in tallies.items():
    for label, tally in tally_of_prompt.items():
      scores[name][label] = tally.figures() | tally.by_class()
  return scores


def figures_of_splits(
  splits: Mapping[str, Split],
  scores: Mapping[str, Any],
  learned: str,
  reference: str = HAND_WRITTEN,
  labels: Mapping[str, str] = types.MappingProxyType({}),
) -> Figures:
  """Builds the part of `results.json` that all methods have.

  Args:
    splits: images and features by split.
    scores: figures by split and prompt.
    learned: name of the learned prompt or method in `scores`.
    reference: prompt with which the other prompts are compared.
    labels: texts that explain prompts, by prompt.
  """
  results: dict[str, Any] = {
    "reference": reference,
    "eval_images": {},
    "eval_classes": {},
    "eval": {},
    "eval_unreadable": {},
    "unreadable": {},
    "top1": {},
  }
  for name, (source, features) in splits.items():
    results["eval_images"][name] = len(features.labels)
    results["eval_classes"][name] = len(features.names)
    results["eval"][name] = {}
    for prompt, figures in scores[name].items():
      kept = {key: value for key, value in figures.items() if key in _FIGURES}
      results["eval"][name][prompt] = kept
    unreadable = np.setdiff1d(np.arange(len(source)), features.indices).tolist()
    results["eval_unreadable"][name] = len(unreadable)
    if unreadable:
      results["unreadable"][name] = _names(source, unreadable)
  for name, figures_of_prompt in scores.items():
    results["top1"][name] = figures_of_prompt[learned]["top1"]

  sets: dict[str, Any] = {}
  if BY_CLASS:
    names = {name: split.features.names for name, split in splits.items()}
    sets = BY_CLASS.open().sets_of(names, scores, reference, labels)
  return Figures(results, sets)


def _names(source: Source, indices: Sequence[int]) -> list[str]:
  """Names of the first unreadable images, for `results.json`."""
  return [name_of(source, index) for index in indices[:_MOST_NAMED]]


def finish(
  folder: RunFolder,
  config: Mapping[str, Any],
  results: Mapping[str, Any],
  sets: Mapping[str, Any],
) -> None:
  """Writes the tables of all classes, the plot of the accuracy and, last, the results.

  Logs the accuracy and the unreadable images.

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
    # The line has room for one interval: that of the first prompt.
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
