"""Learns a prompt on many classes, and evaluates it, also on classes that it never saw.

`config.method` may name a baseline instead. A restart resumes exactly from the run's
folder.
"""

from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.architecture import ClipConfig
from pomp_jax.clip.tokens import Tokenizer
from pomp_jax.config import METHODS, SOURCES, ConfigError, fields
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Data, Eval, Loop
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data import class_lists
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import AnyPrompt, check_lengths, read_prompts
from pomp_jax.files.metrics_log import MetricsWriter, Tracker
from pomp_jax.files.paths import exists
from pomp_jax.files.prompt_file import (
  UNKNOWN_CLIP,
  Prompt,
  PromptFileError,
  load_prompt,
  save_prompt,
)
from pomp_jax.files.run_folder import RunFolder, RunFolderError, write_json
from pomp_jax.hooks import PREDICTION_SHEET, WORDS
from pomp_jax.prompt.mesh import DATA, make_mesh
from pomp_jax.registry import load
from pomp_jax.report import plots
from pomp_jax.report.labels import counted, method_label
from pomp_jax.train import batches, loop, methods, results
from pomp_jax.train.fill_features import check_same_images, fill_features
from pomp_jax.train.resume import best, check_same_run
from pomp_jax.train.setup import prepare
from pomp_jax.train.training import PromptRun


def check(config: TrainingConfig, workdir: str) -> None:
  """Checks what is known before weights are read; writes nothing."""
  folder = RunFolder(workdir)
  folder.check(config.job)
  n_classes = opening.n_training_classes(config.data)
  clip, tokenizer = opening.clip_config_and_tokenizer(
    config.clip.model, config.clip.image_tower
  )
  if config.data.features == "file":
    opening.check_features(
      opening.open_source(config.data, "train"), config.clip.model, clip
    )
  if METHODS[config.method].steps:
    fits = config.negatives != "sampled" or config.k <= n_classes
    require(fits, "k", config.k, f"at most the number of classes, {n_classes}")
    takes = "2 classes or more to tell apart; the training data has 1"
    require(n_classes > 1, "negatives", config.negatives, takes)
    check_mesh(config.mesh.class_size, config.loop, config.data.views)
    # SOS, a name of one token, "." and EOT need a place.
    most, m = clip.text_config.max_position_embeddings - 4, config.prompt.m
    require(m <= most, "prompt.m", m, f"at most {most} for this CLIP")
    methods.method_of(config.method).check(config.prompt, clip)
    if WORDS:
      WORDS.open().check(
        config.contrast, config.prompt, config.data, clip, config.clip.model
      )
    if config.checkpoint.select == "best" and not opening.has_validation(config.data):
      raise ConfigError(
        "checkpoint.select", "best", "'last' for data without validation images"
      )
    if SOURCES[config.data.source].stored:
      check_names(config.prompt, config.data, config.eval, clip, tokenizer)
  check_same_run(config.flat(), folder)
  if hosts.is_first() and not folder.config.exists():
    opening.check_readable(config.data, config.eval.images)


def check_names(
  prompt: fields.Prompt,
  data: Data,
  evaluation: Eval,
  clip: ClipConfig,
  tokenizer: Tokenizer,
) -> None:
  """Raises VocabularyError or TokenizeError for a class name that a text of the run
  can't hold.

  Args:
    prompt: fields of the prompt, whose M vectors or candidates need places beside a
    name.
    data: fields of the stored images, whose training and test classes are checked.
    evaluation: fields with the hand-written prompt.
    clip: sizes of the CLIP.
    tokenizer: the CLIP's.
  """
  splits = ("train", *opening.evaluation_splits(data))
  names = dict.fromkeys(
    name for one in splits for name in opening.open_source(data, one).names
  )
  classes = opening.class_list(data, evaluation.template, list(names))
  class_lists.check_names(classes.names, f"{data.source} {data.root}")
  prompts: list[AnyPrompt] = [evaluation.template, "{}."]
  if WORDS and (candidates := WORDS.open().candidates(prompt)):
    prompts += [named.prompt for named in read_prompts(candidates, "prompt.candidates")]
  if prompt.m:
    # Any context of M vectors leaves the same places.
    prompts.append(Prompt(np.zeros((prompt.m, 1), np.float32), UNKNOWN_CLIP))
  for one in prompts:
    check_lengths(
      one, classes, tokenizer, clip.text_config, f"{data.source} {data.root}"
    )


def check_mesh(
  class_size: int, loop: Loop, n_views: int = 1, devices: Any = None
) -> None:
  """Raises InputError unless the devices, all if None, share classes and batches of
  a step.

  Args:
    class_size: devices along the class axis.
    loop: `config.loop`, with the batch size.
    n_views: views of an image in a step.
    devices: devices of the mesh; all if None.
  """
  mesh = make_mesh(class_size, devices)
  shares = jax.process_index() in batches.process_shards(mesh)
  n_local = sum(
    device.process_index == jax.process_index() for device in mesh.devices.flat
  )
  takes = f"a divisor or a multiple of the {n_local} devices of each process"
  require(shares, "mesh.class_size", class_size, takes)
  n_data, n_draws = mesh.shape[DATA], loop.accumulate
  takes = (
    f"a multiple of {n_data * n_draws} (data axis {n_data} x accumulate {n_draws})"
  )
  fits = loop.batch_size % (n_data * n_draws) == 0
  require(fits, "batch_size", loop.batch_size, f"{takes}, or another number of devices")
  _, n_shards = batches.own_shard(mesh)
  takes = (
    f"a multiple of {n_views * n_shards} (data.views {n_views} x processes {n_shards})"
  )
  require(
    loop.batch_size % (n_views * n_shards) == 0, "batch_size", loop.batch_size, takes
  )


def run(config: TrainingConfig, workdir: str) -> dict[str, Any]:
  """Trains, evaluates, and leaves the run's folder; returns what `results.json` holds.

  TrainingError if the loss is bad or the results can't be written, CheckpointError if
  the state can't be saved, Preempted when asked to stop: everything is saved.
  """
  folder, method = RunFolder(workdir), METHODS[config.method]
  if method.saves_prompt and hosts.is_first() and exists(folder.results):
    try:
      load_prompt(folder.prompt)
    except PromptFileError as error:
      again = f"without {folder.results} the same command writes it again from its checkpoints"
      raise RunFolderError(f"{error}; the run has finished: {again}") from error
  if (finished := folder.finished()) is not None:
    return finished
  if method.steps:
    run = prepare(config, folder)
    _start_folder(run)
    with results.open_tracker(config.log, folder, run.config) as tracker:
      found = _train(run, tracker)
  else:
    found = load(method.run)(config, folder)
  # Barrier: process 0 has written the results.
  return hosts.from_first(found, "the run's results")


def _start_folder(run: PromptRun) -> None:
  """Writes the config, and computes the features of the training images if they are
  stored."""
  if hosts.is_first():
    run.folder.create(run.config)
    run.folder.write_classes(run.source.names)
    if run.candidates:
      write_json(run.folder.candidates, run.candidates)
    if run.data.features != "online":
      features = batches.open_features(run.data, run.source, run.images, run.folder)
      check_same_images(run.folder, features.made_from)
  fill_features(run.data, run.clip, run.folder, run.source, run.images)


def _train(run: PromptRun, tracker: Tracker) -> dict[str, Any]:
  """Trains and evaluates; writes and returns the results."""
  folder = run.folder
  saves_prompt = METHODS[run.contrast.method].saves_prompt
  last = loop.train(run, tracker)
  checkpoints = {"last": last}
  selected = "last"
  if saves_prompt or run.checkpoint.select == "best":
    best_checkpoint = best(run)
    if best_checkpoint is not None:
      checkpoints["best"] = best_checkpoint
      selected = run.checkpoint.select
  prompt = run.prompt_of(checkpoints[selected].state) if saves_prompt else None
  others = {name: one for name, one in checkpoints.items() if name != selected}
  beside_words = None
  if run.candidates:
    beside_words = WORDS.open().choose(run, last, checkpoints.get("best"))
    prompt = beside_words.prompt
    others = {
      name: one
      for name, one in checkpoints.items()
      if one is not beside_words.checkpoint
    }
    if beside_words.facts["chosen"] != "trained":
      others["trained"] = beside_words.checkpoint
  chosen = beside_words.checkpoint if beside_words else checkpoints[selected]
  if prompt and hosts.is_first():
    # Saved before the evaluation, so that a failure there does not lose it.
    with results.writing_results(folder):
      save_prompt(folder.prompt, prompt)
      for name, other in others.items():
        save_prompt(folder.other_prompts[name], run.prompt_of(other.state))
  figures, sets = results.evaluate_run(
    run,
    prompt or run.result(chosen.state),
    last,
    rows=beside_words.rows if beside_words else {},
    reference=beside_words.reference if beside_words else results.HAND_WRITTEN,
    labels=beside_words.facts["labels"] if beside_words else {},
  )
  found = {
    "job": run.config["job"],
    "method": run.contrast.method,
    "seed": run.seed,
    "clip_model": run.encoder.clip.name,
    **figures,
    "evaluated_step": chosen.step,
  }
  if beside_words:
    found["words"] = beside_words.facts
    if beside_words.facts["chosen"] == "words":
      found["evaluated_step"] = 0
  if left_out := opening.left_out(run.data):
    found["left_out"] = left_out
  # On the devices of all processes, so by all of them.
  sheet = (
    PREDICTION_SHEET.open()(run, prompt, found) if prompt and PREDICTION_SHEET else None
  )
  if hosts.is_first():
    top1 = {
      f"test_top1/{split}/{name}": score["top1"]
      for split, scores in found["eval"].items()
      for name, score in scores.items()
    }
    # Start at step + 1: keep the scalars already logged at the last step.
    with MetricsWriter(folder.path, run.total_steps + 1, tracker) as metrics:
      metrics.write(run.total_steps, **top1)
    title = (
      f"{method_label(run.contrast.method)}, {counted(run.total_steps, 'step')} of"
      f" {counted(run.loop.batch_size, 'image')}, K = {run.k:,} of"
      f" {counted(found['n_classes'], 'class')}, seed {run.seed}"
    )
    with results.writing_results(folder):
      plots.training_curves(folder.plots / "training.png", folder.scalars(), title)
      if sheet:
        sheet(folder.plots / "predictions.png")
      results.finish(folder, run.config, found, sets)
    tracker.finish(found)
  return found
