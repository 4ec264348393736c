"""Learns a prompt on many classes, and evaluates it, also on classes that it never saw.

`config.method` may name a baseline instead. A restart resumes exactly from what the run's folder
holds.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.config import METHODS, ConfigError, Settings
from pomp_jax.config.declare import require
from pomp_jax.data.loader import name_of
from pomp_jax.data.source import Source, readable_images
from pomp_jax.data.subsets import spread_evenly
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import inputs
from pomp_jax.evaluate.classify import Classifier
from pomp_jax.evaluate.predictions import evaluate
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.atomic import replacing
from pomp_jax.files.metrics_log import MetricsWriter, Tracker
from pomp_jax.files.paths import exists
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, write_json, writing
from pomp_jax.files.terminal import printable
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.registry import TRACKERS, load
from pomp_jax.report import plots
from pomp_jax.report.evaluation_report import class_summary, write_class_tables
from pomp_jax.report.labels import counted, method_label
from pomp_jax.report.run_report import finish_run
from pomp_jax.train import batches, loop, methods
from pomp_jax.train.fill_features import check_same_images, fill_features
from pomp_jax.train.resume import Checkpoint, best, check_same_run, may_change
from pomp_jax.train.setup import Run, prepare, prompt_of
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

_SHEET_IMAGES = 12
# The prompt that others are compared with, and what `results.json` has of each.
_REFERENCE = "hand_written"
_FIGURES = ("images", "top1", "top1_interval", "top5", "macro_top1", "ece", "difference")
_MOST_NAMED = 1000  # unreadable images of a split in `results.json`


def check(config: Settings, workdir: str) -> None:
  """Checks what is known before weights are read; writes nothing."""
  folder = RunFolder(workdir)
  folder.check(config.job)
  n_classes = inputs.n_training_classes(config.data)
  clip = inputs.clip_config(config.clip.model)
  if METHODS[config.method].by_steps:
    _check_step(config, n_classes, clip.text_config.max_position_embeddings)
    methods.check(config, clip)
    if config.checkpoint.select == "best" and not inputs.has_validation(config.data):
      raise ConfigError("checkpoint.select", "best", "'last' for data without validation images")
  check_same_run(config, folder, may_change)
  if hosts.is_first() and not folder.config.exists():
    inputs.check_readable(config.data, config.eval.images)


def _check_step(config: Settings, n_classes: int, positions: int) -> None:
  fits = config.negatives != "sampled" or config.k <= n_classes
  require(fits, "k", config.k, f"at most the number of classes, {n_classes}")
  takes = "2 classes or more to tell apart; the training data has 1"
  require(n_classes > 1, "negatives", config.negatives, takes)
  class_size, n_devices = config.mesh.class_size, jax.device_count()
  takes = f"a divisor of the {n_devices} devices"
  require(n_devices % class_size == 0, "mesh.class_size", class_size, takes)
  shares = jax.process_index() in batches.process_shards(make_mesh(class_size))
  takes = f"a divisor or a multiple of the {jax.local_device_count()} devices of each process"
  require(shares, "mesh.class_size", class_size, takes)
  n_data, n_draws = n_devices // class_size, config.accumulate
  takes = f"a multiple of {n_data * n_draws} (data axis {n_data} x accumulate {n_draws})"
  fits = config.batch_size % (n_data * n_draws) == 0
  require(fits, "batch_size", config.batch_size, f"{takes}, or another number of devices")
  # SOS, a name of one token, "." and EOT need a place.
  most = positions - 4
  require(config.prompt.m <= most, "prompt.m", config.prompt.m, f"at most {most} for this CLIP")


def run(config: Settings, workdir: str) -> dict:
  """Trains, evaluates, and leaves the run's folder; returns what `results.json` holds.

  TrainingError if the loss is bad or the results can't be written, CheckpointError if the state
  can't be saved, Preempted when asked to stop: everything is saved.
  """
  folder = RunFolder(workdir)
  if METHODS[config.method].saves_prompt and hosts.is_first() and exists(folder.results):
    try:
      load_prompt(folder.prompt)
    except PromptFileError as error:
      again = f"without {folder.results} the same command writes it again from its checkpoints"
      raise RunFolderError(f"{error}; the run has finished: {again}") from error
  if (finished := folder.finished()) is not None:
    return finished
  learn = _train if METHODS[config.method].by_steps else _fit
  # Barrier: process 0 has written the results.
  return hosts.from_first(learn(config, folder), "the run's results")


def _train(config: Settings, folder: RunFolder) -> dict:
  """As `run`, of a method that learns by steps."""
  run = prepare(config, folder)
  if hosts.is_first():
    folder.create()
    write_json(folder.config, config.to_dict())
  if config.data.features == "stored":
    if hosts.is_first():
      check_same_images(folder, batches.open_features(config.data, run.source, run.encoder, folder))
    fill_features(config, folder, run.source, run.encoder)
  with _open_tracker(config.log.tracker, folder, config.to_dict()) as tracker:
    return _train_prepared(run, tracker)


def _open_tracker(name: str, folder: RunFolder, config: Mapping[str, Any]) -> Tracker:
  return load(TRACKERS[name])(folder, config) if name in TRACKERS else Tracker()


def _train_prepared(run: Run, tracker: Tracker) -> dict:
  """Trains and evaluates; writes and returns the results."""
  config, folder = run.config, run.folder
  done, saves_prompt = loop.train(run, tracker), METHODS[config.method].saves_prompt
  select = config.checkpoint.select
  others = {"last": done, "best": best(run) if saves_prompt or select == "best" else None}
  chosen = others.pop(select) or done
  prompt = prompt_of(run, chosen.state) if saves_prompt else None
  if prompt and hosts.is_first():
    # Saved before the evaluation, so that a failure there does not lose it.
    with _writing(folder):
      save_prompt(folder.prompt, prompt)
      for name, other in others.items():
        if other is not None:
          save_prompt(folder.other_prompts[name], prompt_of(run, other.state))
  results, sets = _results_of_steps(run, prompt or chosen.state.params, done)
  results["evaluated_step"] = chosen.step
  # On the devices of all processes, so by all of them.
  sheet = _prediction_sheet(run, prompt, results) if prompt else None
  if hosts.is_first():
    top1 = {
      f"test_top1/{split}/{name}": score["top1"]
      for split, scores in results["eval"].items()
      for name, score in scores.items()
    }
    # Start at step + 1: keep the scalars already logged at the last step.
    with MetricsWriter(folder.path, run.total_steps + 1, tracker) as metrics:
      metrics.write(run.total_steps, **top1)
    title = (
      f"{method_label(config.method)}, {counted(run.total_steps, 'step')} of"
      f" {counted(config.batch_size, 'image')}, K = {run.k:,} of"
      f" {counted(results['n_classes'], 'class')}, seed {config.seed}"
    )
    with _writing(folder):
      plots.training_curves(folder.plots / "training.png", folder.scalars(), title)
      if sheet:
        plots.prediction_sheet(folder.plots / "predictions.png", *sheet)
      _write(config, folder, results, sets)
    tracker.finish(results)
  return results


def _fit(config: Settings, folder: RunFolder) -> dict:
  """As `run`, of zero-shot CLIP or a classifier: `classifier.npz` instead of a prompt."""
  encoder = inputs.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)
  start, fits = time.monotonic(), METHODS[config.method].learns == "features"
  try:
    fitted = methods.fit(config, encoder, folder) if fits else None
  except FloatingPointError as error:
    raise TrainingError(f"{config.method}: {error}") from error
  evaluation = time.monotonic()
  if fitted and hosts.is_first():
    # Saved before the evaluation, which may fail.
    folder.create()
    path = folder.path / "classifier.npz"
    with writing(path), replacing(path) as file:
      np.savez(file, names=np.array(fitted.names), **fitted.classifier._asdict())
  # A classifier knows only the classes of its training.
  splits, skipped = _splits(config, encoder, folder, fitted and fitted.names)
  scores = {
    name: methods.scores_of_features(config, encoder, split, fitted)
    for name, (_, split) in splits.items()
  }
  results = {
    **_results(config, encoder, splits, scores, config.method if fitted else "hand_written"),
    "n_classes": inputs.n_training_classes(config.data),
    "seconds": round(evaluation - start, 2),
    "eval_seconds": round(time.monotonic() - evaluation, 2),
    "not_evaluated": skipped,
    **({"found": fitted.found} if fitted else {}),
  }
  if hosts.is_first():
    folder.create()
    write_json(folder.config, config.to_dict())
    with writing(folder.plots):
      _write(config, folder, results, _sets(splits, scores))
    with _open_tracker(config.log.tracker, folder, config.to_dict()) as tracker:
      tracker.finish(results)
  return results


@contextlib.contextmanager
def _writing(folder: RunFolder) -> Iterator[None]:
  """What can't be written after the training is a TrainingError that says what is left."""
  try:
    yield
  except (OSError, PromptFileError, RunFolderError) as error:
    raise TrainingError(
      f"{folder.path}: the results can't be written ({error}); the training is done, its last"
      f" checkpoint is in {folder.checkpoints}, and the same command resumes from there"
    ) from error


def _sets(splits: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
  """The splits as sets of `report.evaluation_report`."""
  return {
    name: {
      "split": name.split("/")[0] if name.split("/")[0] in ("train", "validation") else "test",
      "classes": split.names,
      "reference": _REFERENCE,
      "prompts": scores[name],
    }
    for name, (_, split) in splits.items()
  }


def _write(config: Settings, folder: RunFolder, results: dict, sets: Mapping[str, Any]) -> None:
  write_class_tables(folder, sets)
  plots.accuracy_bars(
    folder.plots / "accuracy.png",
    results["eval"],
    title=f"{method_label(config.method)}, seed {config.seed}",
    classes=results["eval_classes"],
  )
  finish_run(folder, config.to_dict(), results)
  for split, scores in results["eval"].items():
    line = ", ".join(f"{name} {100 * score['top1']:.1f}%" for name, score in scores.items())
    counts = results["eval_images"][split], results["eval_classes"][split]
    name, score = next(iter(scores.items()))
    log.info(
      "%s top-1 of %d images over %d classes: %s; 95%% interval of %s %.1f to %.1f%%",
      *(split, *counts, line, name, *(100 * end for end in score["top1_interval"])),
    )
  for split, files in results["unreadable"].items():
    log.warning("%s: SKIPPED, can't be read: %s", split, printable(", ".join(files), 2000))
  log.info("what was learned, results and plots are in %s", folder.path)


def _splits(
  config: Settings, encoder: Encoder, folder: RunFolder, names: Sequence[str] | None
) -> tuple[dict[str, tuple[Source, SplitFeatures]], list[str]]:
  """Images and features of the test splits with these classes, or of all; and the other splits."""
  splits, others = {}, []
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    if names is None or tuple(source.names) == tuple(names):
      splits[name] = source, batches.readable_features(config, encoder, source, folder)
    else:
      others.append(name)
  return splits, others


def _results_of_steps(run: Run, learned: Any, done: Checkpoint) -> tuple[dict, dict]:
  """`results.json` of a prompt, or of the parameters of another method; and answers by class."""
  config = run.config
  start = time.monotonic()
  # A class-specific context knows no class but those it was trained on.
  names = run.source.names if config.prompt.class_specific else None
  splits, _ = _splits(config, run.encoder, run.folder, names)
  features = {name: split for name, (_, split) in splits.items()}
  prompts = {_REFERENCE: config.eval.template, "class_name": "{}."}
  own = {"prompt": learned} if isinstance(learned, Prompt) else {}
  tallies = evaluate(run.encoder, features, own | prompts, _REFERENCE)
  scores = {
    name: {label: one.figures() | one.by_class() for label, one in of_split.items()}
    for name, of_split in tallies.items()
  }
  if not own:
    accuracy = methods.accuracy_of_learner(config, run.encoder, run.module)
    for name, (source, split) in splits.items():
      scores[name] = {"prompt": accuracy(learned, split, source)} | scores[name]
  sets = _sets(splits, scores)
  scores = {
    name: {
      label: {key: value for key, value in one.items() if key in _FIGURES}
      for label, one in of_split.items()
    }
    for name, of_split in scores.items()
  }
  results = _results(config, run.encoder, splits, scores, "prompt")
  if done.unreadable:
    results["unreadable"]["train"] = _names(run.source, done.unreadable)
  results |= {
    "by_class": {name: class_summary(of_split, "prompt") for name, of_split in sets.items()},
    "n_classes": len(run.source.names),
    "seconds": round(done.seconds, 2),
    "eval_seconds": round(time.monotonic() - start, 2),
    "steps": run.total_steps,
    "roll_backs": done.roll_backs.count,
    "images_per_second": round(run.total_steps * config.batch_size / done.seconds, 1),
    "k": run.k,
    "correction": config.correction,
    "unreadable_images": len(done.unreadable),
  }
  return results, sets


def _names(source: Source, indices: Sequence[int]) -> list[str]:
  return [name_of(source, index) for index in indices[:_MOST_NAMED]]


def _results(
  config: Settings,
  encoder: Encoder,
  splits: Mapping[str, tuple[Source, SplitFeatures]],
  scores: Mapping[str, Any],
  learned: str,
) -> dict:
  """The part of `results.json` that all methods have; `learned` names the method's own scores."""
  unreadable = {
    name: _names(source, np.setdiff1d(np.arange(len(source)), split.indices).tolist())
    for name, (source, split) in splits.items()
  }
  return {
    "job": config.job,
    "method": config.method,
    "seed": config.seed,
    "clip_model": encoder.clip.name,
    "eval_images": {name: len(split.labels) for name, (_, split) in splits.items()},
    "eval_classes": {name: len(split.names) for name, (_, split) in splits.items()},
    "eval": scores,
    "eval_unreadable": {
      name: len(source) - len(split.labels) for name, (source, split) in splits.items()
    },
    "unreadable": {name: files for name, files in unreadable.items() if files},
    "top1": {split: of_split[learned]["top1"] for split, of_split in scores.items()},
  }


def _prediction_sheet(run: Run, prompt: Prompt, results: dict) -> tuple | None:
  """Arguments of `plots.prediction_sheet`; None if none of its images can be read."""
  # Prefer classes that the training did not see.
  splits = list(results["eval"])
  split = next((name for name in splits if name.endswith(("novel", "new"))), splits[0])
  source = inputs.open_source(run.config.data, split, n_images=_SHEET_IMAGES)
  shown = spread_evenly(_SHEET_IMAGES, len(source))
  images, reasons = readable_images(source, shown)
  read = ~np.isin(shown, list(reasons))
  if not read.any():
    return None
  images, shown = images[read], shown[read]
  top3 = Classifier(run.encoder, prompt, source.names).predict(list(images), top=3)
  return (
    images,
    [source.names[label] for label in source.labels[shown]],
    [[name for name, _ in row] for row in top3],
    [[probability for _, probability in row] for row in top3],
    f"{split}: {len(images)} of {counted(results['eval_images'][split], 'image')},"
    f" {counted(len(source.names), 'class')}",
  )
