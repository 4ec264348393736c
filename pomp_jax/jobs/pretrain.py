"""Learns a prompt on many classes, and evaluates it, also on classes that it never saw.

`config.method` trains a baseline instead of the prompt. The run's folder holds everything that a
restart needs to resume exactly.
"""

from collections.abc import Iterator
import contextlib
import logging
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis import plots
from pomp_jax.config import METHODS, ConfigError, Settings
from pomp_jax.data.source import readable_images, spread_evenly
from pomp_jax.files.prompt_file import Prompt, PromptFileError, save_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json, write_json
from pomp_jax.inference.classify import Classifier
from pomp_jax.inference.evaluate import evaluate, split_features
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import batches, feature_methods, loop, methods
from pomp_jax.train.resume import Checkpoint, check_same_run, may_change
from pomp_jax.train.setup import Run, prepare, prompt_of
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

_SHEET_IMAGES = 12


def check(config: Settings, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing.

  Raises:
    ConfigError, ClipError, RunFolderError: one line each.
  """
  folder = RunFolder(workdir)
  folder.check(config.job)
  n_classes = inputs.n_training_classes(config.data)
  clip = inputs.clip_config(config.clip.model)
  if METHODS[config.method].by_steps:
    _check_step(config, n_classes, clip.text_config.max_position_embeddings)
    methods.check(config, clip)
  check_same_run(config, folder, may_change)


def _check_step(config: Settings, n_classes: int, positions: int) -> None:
  if config.negatives == "sampled" and config.k > n_classes:
    raise ConfigError("k", config.k, f"at most the number of classes, {n_classes}")
  if n_classes < 2:
    takes = "2 classes or more to tell apart; the training data has 1"
    raise ConfigError("negatives", config.negatives, takes)
  class_size, n_devices = config.mesh.class_size, jax.device_count()
  if n_devices % class_size:
    raise ConfigError("mesh.class_size", class_size, f"a divisor of the {n_devices} devices")
  if jax.process_index() not in batches.process_shards(make_mesh(class_size)):
    takes = f"a divisor or a multiple of the {jax.local_device_count()} devices of each process"
    raise ConfigError("mesh.class_size", class_size, takes)
  groups = n_devices // class_size * config.accumulate
  if config.batch_size % groups:
    raise ConfigError(
      "batch_size",
      config.batch_size,
      f"a multiple of {groups} (data axis {groups // config.accumulate} x accumulate"
      f" {config.accumulate}), or another number of devices",
    )
  if config.prompt.m > positions - 4:
    # SOS, a name of one token, "." and EOT need a place.
    raise ConfigError("prompt.m", config.prompt.m, f"at most {positions - 4} for this CLIP")


def run(config: Settings, workdir: str) -> dict:
  """Trains, evaluates, and leaves the run's folder; returns what `results.json` holds.

  Raises:
    TrainingError: the loss is not finite, or the results can't be written.
    CheckpointError: the state can't be saved.
    Preempted: asked to stop; everything is saved.
    ConfigError, VocabularyError, TokenizeError: found before anything is written.
  """
  folder = RunFolder(workdir)
  # What process 0 sees: another one may look at the folder later, or at another disk.
  finished = hosts.is_first() and folder.results.exists()
  stored = read_json(folder.results) if finished else None
  stored = hosts.from_first(stored, "the run's results")
  if stored is not None:
    log.info("%s: this run has finished; nothing to do", workdir)
    return stored
  of_features = not METHODS[config.method].by_steps
  results = feature_methods.run(config, folder) if of_features else _run(config, folder)
  # The files are complete for every process from here on.
  return hosts.from_first(results, "the run's results")


def _run(config: Settings, folder: RunFolder) -> dict:
  """As `run`, of a method that learns by steps."""
  job = prepare(config, folder)
  if hosts.is_first():
    folder.create()
    write_json(folder.config, config.to_dict())
  done = loop.train(job)
  prompt = prompt_of(job, done.state) if METHODS[config.method].saves_prompt else None
  if prompt and hosts.is_first():
    # Saved before the evaluation, so that a failure there does not lose it.
    with _writing(folder):
      save_prompt(folder.prompt, prompt)
  results = _results(job, prompt or done.state.params, done)
  # On the devices of all processes, so by all of them.
  sheet = _prediction_sheet(job, prompt, results) if prompt else None
  if hosts.is_first():
    with _writing(folder):
      _write(folder, results, sheet)
    _log_results(results, folder)
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


def _write(folder: RunFolder, results: dict, sheet: tuple | None) -> None:
  plots.training_curves(folder.plots / "training.png", folder.scalars())
  plots.accuracy_bars(folder.plots / "accuracy.png", results["eval"])
  if sheet:
    plots.prediction_sheet(folder.plots / "predictions.png", *sheet)
  # Last: a folder with results is a finished run.
  write_json(folder.results, results)


def _results(job: Run, learned: Any, done: Checkpoint) -> dict:
  """Everything that `results.json` says of a prompt, or of the parameters of another method."""
  config = job.config
  start = time.monotonic()
  splits, sources = {}, {}
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    # A class-specific context knows no class but those it was trained on.
    if not config.prompt.class_specific or tuple(source.names) == tuple(job.source.names):
      sources[name] = source
      splits[name] = split_features(
        job.encoder, source, threads=config.data.threads, max_corrupt=config.data.max_corrupt
      )
  prompts = {"hand_written": config.eval.template, "class_name": "{}."}
  if isinstance(learned, Prompt):
    scores = evaluate(job.encoder, splits, {"prompt": learned} | prompts)
  else:
    scores = evaluate(job.encoder, splits, prompts)
    accuracy = methods.accuracy_of_learner(config, job.encoder, job.module)
    for name, split in splits.items():
      scores[name]["prompt"] = accuracy(learned, split, sources[name])
  return {
    "job": config.job,
    "method": config.method,
    "seed": config.seed,
    "steps": job.total_steps,
    "roll_backs": done.roll_backs.count,
    "seconds": round(done.seconds, 2),
    "images_per_second": round(job.total_steps * config.batch_size / done.seconds, 1),
    "eval_seconds": round(time.monotonic() - start, 2),
    "clip_model": job.encoder.clip.name,
    "n_classes": len(job.source.names),
    "k": job.k,
    "correction": config.correction,
    "eval_images": {name: len(split.labels) for name, split in splits.items()},
    "eval_classes": {name: len(split.names) for name, split in splits.items()},
    "eval": scores,
    "eval_unreadable": {
      name: len(sources[name]) - len(split.labels) for name, split in splits.items()
    },
    "unreadable_images": len(done.unreadable),
    "top1": {split: of_split["prompt"]["top1"] for split, of_split in scores.items()},
  }


def _prediction_sheet(job: Run, prompt: Prompt, results: dict) -> tuple | None:
  """Images, their classes, and what the prompt takes them for: for `plots.prediction_sheet`.

  None if no image among those chosen can be read.
  """
  # Classes that the training did not see, where there are such.
  splits = list(results["eval"])
  split = next((name for name in splits if name.endswith(("novel", "new"))), splits[0])
  source = inputs.open_source(job.config.data, split, n_images=_SHEET_IMAGES)
  shown = spread_evenly(min(_SHEET_IMAGES, len(source)), len(source))
  images, reasons = readable_images(source, shown)
  read = ~np.isin(shown, list(reasons))
  if not read.any():
    return None
  images, shown = images[read], shown[read]
  top3 = Classifier(job.encoder, prompt, source.names).predict(list(images), top=3)
  return (
    images,
    [source.names[label] for label in source.labels[shown]],
    [[name for name, _ in row] for row in top3],
    [[probability for _, probability in row] for row in top3],
  )


def _log_results(results: dict, folder: RunFolder) -> None:
  for split, scores in results["eval"].items():
    line = ", ".join(f"{name} {100 * score['top1']:.1f}%" for name, score in scores.items())
    counts = results["eval_images"][split], results["eval_classes"][split]
    low, high = scores["prompt"]["top1_interval"]
    log.info(
      "%s top-1 of %d images over %d classes: %s; 95%% interval of prompt %.1f to %.1f%%",
      *(split, *counts, line, 100 * low, 100 * high),
    )
  log.info("what was learned, results and plots are in %s", folder.path)
