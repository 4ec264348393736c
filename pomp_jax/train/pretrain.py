"""Learns a prompt on many classes, and evaluates it, also on classes that it never saw.

`config.method` may name a baseline instead. A restart resumes exactly from the run's
folder.
"""

from collections.abc import Mapping
import types
from typing import Any, NamedTuple

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
from pomp_jax.train.resume import Checkpoint, best, check_same_run
from pomp_jax.train.setup import prepare
from pomp_jax.train.training import PromptRun


class Chosen(NamedTuple):
  """Checkpoint and prompts of a finished training, to save and evaluate."""

  checkpoint: Checkpoint
  prompt: Prompt | None  # None for a method that learns no prompt
  others: dict[str, Checkpoint]  # other checkpoints to save as prompts, by key
  # Other prompts to evaluate, by row of the tables.
  rows: Mapping[str, Prompt | str] = types.MappingProxyType({})
  reference: str = results.HAND_WRITTEN  # row that the others are compared with
  # Facts about the choice between words and the trained prompt; empty without
  # candidates.
  words: Mapping[str, Any] = types.MappingProxyType({})


def check(config: TrainingConfig, workdir: str) -> None:
  """Checks everything that is known before weights are read; writes nothing.

  Raises:
    InputError: fields, files, the folder and the devices don't fit together.
  """
  folder = RunFolder(workdir)
  folder.check(config.job)
  n_classes = opening.n_training_classes(config.data)
  clip, tokenizer = opening.clip_config_and_tokenizer(
    config.clip.model, config.clip.image_tower
  )
  if config.data.features == "file":
    source = opening.open_source(config.data, "train")
    opening.check_features(source, config.clip.model, clip)

  if METHODS[config.method].steps:
    fits = config.negatives != "sampled" or config.k <= n_classes
    require(fits, "k", config.k, f"at most the number of classes, {n_classes}")
    expected = "2 classes or more to tell apart; the training data has 1"
    require(n_classes > 1, "negatives", config.negatives, expected)
    check_mesh(config.mesh.class_size, config.loop, config.data.views)
    # SOS, a name of one token, "." and EOT need a place each.
    n_places = clip.text_config.max_position_embeddings - 4
    n_vectors = config.prompt.m
    expected = f"at most {n_places} for this CLIP"
    require(n_vectors <= n_places, "prompt.m", n_vectors, expected)
    methods.method_of(config.method).check(config.prompt, clip)
    if WORDS:
      WORDS.open().check(
        config.contrast, config.prompt, config.data, clip, config.clip.model
      )
    if config.checkpoint.select == "best" and not opening.has_validation(config.data):
      expected = "'last' for data without validation images"
      raise ConfigError("checkpoint.select", "best", expected)
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
  """Checks that each text of the run can hold each class name.

  Args:
    prompt: `config.prompt`, whose M vectors or candidates need places beside a name.
    data: `config.data`, whose training and test classes are checked.
    evaluation: `config.eval`, with the hand-written prompt.
    clip: sizes of the CLIP.
    tokenizer: tokenizer of the CLIP.

  Raises:
    VocabularyError: a name has no room in a text, or two classes have one name.
    TokenizeError: a name can't be tokenized.
  """
  names: dict[str, None] = {}  # without repetition, in order
  for split in ("train", *opening.evaluation_splits(data)):
    names |= dict.fromkeys(opening.open_source(data, split).names)
  data_set = f"{data.source} {data.root}"
  classes = opening.class_list(data, evaluation.template, list(names))
  class_lists.check_names(classes.names, data_set)

  texts: list[AnyPrompt] = [evaluation.template, "{}."]
  candidates: tuple[str, ...] = ()
  if WORDS:
    candidates = WORDS.open().candidates(prompt)
  if candidates:
    for candidate in read_prompts(candidates, "prompt.candidates"):
      texts.append(candidate.prompt)
  if prompt.m:
    # Zeros do: any context of M vectors leaves the same number of places.
    context_MxD = np.zeros((prompt.m, 1), np.float32)
    texts.append(Prompt(context_MxD, UNKNOWN_CLIP))
  for text in texts:
    check_lengths(text, classes, tokenizer, clip.text_config, data_set)


def check_mesh(
  class_size: int, loop: Loop, n_views: int = 1, devices: Any = None
) -> None:
  """Checks that the devices can share the classes and the images of a step.

  Args:
    class_size: devices along the class axis.
    loop: `config.loop`, with the batch size.
    n_views: views of an image in a step.
    devices: devices of the mesh; all if None.

  Raises:
    ConfigError: `mesh.class_size` or `batch_size` does not fit the devices.
  """
  mesh = make_mesh(class_size, devices)
  own_process = jax.process_index()
  n_local = sum(device.process_index == own_process for device in mesh.devices.flat)
  has_shard = own_process in batches.process_shards(mesh)
  expected = f"a divisor or a multiple of the {n_local} devices of each process"
  require(has_shard, "mesh.class_size", class_size, expected)

  # Each index of the data axis draws negatives for its images in each micro-step.
  n_data = mesh.shape[DATA]
  n_groups = n_data * loop.accumulate
  expected = (
    f"a multiple of {n_groups} (data axis {n_data} x accumulate {loop.accumulate}),"
    " or another number of devices"
  )
  fits = loop.batch_size % n_groups == 0
  require(fits, "batch_size", loop.batch_size, expected)

  # All views of an image are read by one process.
  _, n_shards = batches.own_shard(mesh)
  n_parts = n_views * n_shards
  expected = f"a multiple of {n_parts} (data.views {n_views} x processes {n_shards})"
  fits = loop.batch_size % n_parts == 0
  require(fits, "batch_size", loop.batch_size, expected)


def run(config: TrainingConfig, workdir: str) -> dict[str, Any]:
  """Trains, evaluates, and writes the run's folder; a restart resumes.

  Args:
    config: checked config.
    workdir: folder of the run.

  Returns:
    The content of `results.json`.

  Raises:
    TrainingError: the loss is bad, or the results can't be written.
    CheckpointError: the state can't be saved.
    Preempted: the run is asked to stop; everything is saved.
    RunFolderError: the run has finished, but its prompt file is damaged.
  """
  folder = RunFolder(workdir)
  method = METHODS[config.method]
  if method.saves_prompt and hosts.is_first() and exists(folder.results):
    _check_finished_prompt(folder)
  results_of_finished = folder.finished()
  if results_of_finished is not None:
    return results_of_finished

  if method.steps:
    training = prepare(config, folder)
    _start_folder(training)
    with results.open_tracker(config.log, folder, training.config) as tracker:
      outcome = _train(training, tracker)
  else:
    outcome = load(method.run)(config, folder)
  # Barrier: process 0 has written the results.
  return hosts.from_first(outcome, "the run's results")


def _check_finished_prompt(folder: RunFolder) -> None:
  """Raises RunFolderError if the prompt of a finished run can't be read."""
  try:
    load_prompt(folder.prompt)
  except PromptFileError as error:
    remedy = (
      f"without {folder.results} the same command writes it again from its checkpoints"
    )
    raise RunFolderError(f"{error}; the run has finished: {remedy}") from error


def _start_folder(run: PromptRun) -> None:
  """Writes the config, the classes and the stored features of the training images.

  Raises:
    FeatureStoreError: the CLIP, the images or the augmentation changed since the first
      start.
    CorruptDataError: too many images are unreadable.
  """
  folder = run.folder
  if hosts.is_first():
    folder.create(run.config)
    folder.write_classes(run.source.names)
    if run.candidates:
      write_json(folder.candidates, run.candidates)
    if run.data.features != "online":
      features = batches.open_features(run.data, run.source, run.images, folder)
      check_same_images(folder, features.made_from)
  fill_features(run.data, run.clip, folder, run.source, run.images)


def _train(run: PromptRun, tracker: Tracker) -> dict[str, Any]:
  """Trains and evaluates; writes `results.json` and returns its content.

  Raises:
    TrainingError: the loss is bad, or the results can't be written.
  """
  folder = run.folder
  last = loop.train(run, tracker)
  chosen = _choose(run, last)
  if chosen.prompt and hosts.is_first():
    # Save the prompt before the evaluation, so that a failure there does not lose it.
    with results.writing_results(folder):
      save_prompt(folder.prompt, chosen.prompt)
      for name, checkpoint in chosen.others.items():
        save_prompt(folder.other_prompts[name], run.prompt_of(checkpoint.state))

  figures, sets = results.evaluate_run(
    run,
    chosen.prompt or run.result(chosen.checkpoint.state),
    last,
    rows=chosen.rows,
    reference=chosen.reference,
    labels=chosen.words.get("labels", {}),
  )
  outcome = {
    "job": run.config["job"],
    "method": run.contrast.method,
    "seed": run.seed,
    "clip_model": run.encoder.clip.name,
    **figures,
    "evaluated_step": chosen.checkpoint.step,
  }
  if chosen.words:
    outcome["words"] = chosen.words
    if chosen.words["chosen"] == "words":
      outcome["evaluated_step"] = 0
  left_out = opening.left_out(run.data)
  if left_out:
    outcome["left_out"] = left_out

  # The sheet is computed on the devices of all processes, so all of them make this
  # call.
  draw_sheet = None
  if PREDICTION_SHEET and chosen.prompt:
    draw_sheet = PREDICTION_SHEET.open()(run, chosen.prompt, outcome)
  if hosts.is_first():
    _log_accuracy(run, outcome["eval"], tracker)
    with results.writing_results(folder):
      title = _title_of_curves(run, outcome["n_classes"])
      plots.training_curves(folder.plots / "training.png", folder.scalars(), title)
      if draw_sheet:
        draw_sheet(folder.plots / "predictions.png")
      results.finish(folder, run.config, outcome, sets)
    tracker.finish(outcome)
  return outcome


def _choose(run: PromptRun, last: Checkpoint) -> Chosen:
  """Chooses the checkpoint to evaluate, or the words that training started from.

  Args:
    run: the finished training.
    last: last checkpoint of the training.
  """
  saves_prompt = METHODS[run.contrast.method].saves_prompt
  checkpoints = {"last": last}
  selected = "last"
  if saves_prompt or run.checkpoint.select == "best":
    best_checkpoint = best(run)
    if best_checkpoint is not None:
      checkpoints["best"] = best_checkpoint
      selected = run.checkpoint.select

  if run.candidates:
    choice = WORDS.open().choose(run, last, checkpoints.get("best"))
    others = {}
    for name, checkpoint in checkpoints.items():
      if checkpoint is not choice.checkpoint:
        others[name] = checkpoint
    if choice.facts["chosen"] != "trained":
      others["trained"] = choice.checkpoint
    return Chosen(
      checkpoint=choice.checkpoint,
      prompt=choice.prompt,
      others=others,
      rows=choice.rows,
      reference=choice.reference,
      words=choice.facts,
    )

  checkpoint = checkpoints.pop(selected)
  prompt = None
  if saves_prompt:
    prompt = run.prompt_of(checkpoint.state)
  return Chosen(checkpoint, prompt, others=checkpoints)


def _log_accuracy(
  run: PromptRun, scores: Mapping[str, Mapping[str, Any]], tracker: Tracker
) -> None:
  """Writes the top-1 of each test split and prompt among the scalars of the last step.

  Args:
    run: the finished training.
    scores: figures by split and prompt.
    tracker: record in an experiment tracker.
  """
  top1 = {}
  for split, score_of_prompt in scores.items():
    for prompt, score in score_of_prompt.items():
      top1[f"test_top1/{split}/{prompt}"] = score["top1"]
  # Start at step + 1: keep the scalars already logged at the last step.
  with MetricsWriter(run.folder.path, run.total_steps + 1, tracker) as metrics:
    metrics.write(run.total_steps, **top1)


def _title_of_curves(run: PromptRun, n_classes: int) -> str:
  """Title of the plot of the loss: the method and the size of the training."""
  return (
    f"{method_label(run.contrast.method)}, {counted(run.total_steps, 'step')} of"
    f" {counted(run.loop.batch_size, 'image')}, K = {run.k:,} of"
    f" {counted(n_classes, 'class')}, seed {run.seed}"
  )
