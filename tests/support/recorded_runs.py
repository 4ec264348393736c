"""Runs of the core's jobs, see `tests.support.recorded_calls`.

A room that has a part in one of these jobs records its own functions, then calls the
run.
"""

import argparse
from collections.abc import Callable
import contextlib
import itertools
import json
import os
import pathlib
import types
from typing import Any
import unittest.mock

import jax.numpy as jnp
import numpy as np

from pomp_jax import main
from pomp_jax.clip.load import Clip
from pomp_jax.config import SOURCES, Config
from pomp_jax.data.loader import Loader
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import evaluate, export, opening, predict, sets_to_evaluate
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import PROFILER
from pomp_jax.registry import load
from pomp_jax.train import (
  batches,
  fill_features,
  loop,
  memory,
  pretrain,
  results,
  setup,
  training,
)
from pomp_jax.train.resume import Checkpoint
from pomp_jax.train.training import PromptRun
from tests.support.recorded_calls import Calls, Recorded, check_and_run


def build_encoder(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The CLIP of a config."""
  calls.note(
    opening, "load_clip", lambda *args, **kwargs: unittest.mock.Mock(spec=Clip)
  )
  calls.note(opening, "make_mesh", lambda *args: None)
  calls.note(opening, "ArrayCache")
  calls.note(opening, "Encoder", Recorded)
  opening.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)


def run_command_line(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The main function, with these fields as options."""

  def nothing(*args):
    return None

  job = types.SimpleNamespace(check=nothing, run=nothing)
  calls.note(main, "use_compilation_cache", nothing)
  calls.note(main.hosts, "describe")
  calls.note(main, "load_job", lambda name: job)
  calls.skip(main, "validate", "commit")
  options = argparse.Namespace(
    settings=config,
    workdir=str(folder),
    default_workdir="",
    coordinator=None,
    num_processes=None,
    process_id=None,
    start_timeout=1,
    heartbeat_timeout=1,
  )
  stop = unittest.mock.Mock(spec=main.hosts.StopSignals, received=None)
  main._run_job(options, stop)


def open_training_images(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The training images of a source."""
  module = load(SOURCES[config.data.source].module)
  module.splits(config.data)
  images = module.open_split(config.data, "train")
  calls.seen["names"] = images.names
  calls.seen["images"] = len(images)


def train(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A training of 30 steps with a loss of 1, but of 9 at the 25th."""
  seen = calls.seen
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note(opening, "open_source")
  calls.note(opening, "check_readable")
  calls.note(training, "Loader", lambda source, *args, **kwargs: _Loader(source))
  calls.note(training, "choose_readers")
  calls.note(training, "memory_plan")
  calls.note(memory, "plan_memory")
  calls.note(Encoder, "text_tower")
  calls.note(loop, "LossMonitor")
  calls.note(loop, "Checkpoints")
  calls.note(loop, "_train_from")
  if PROFILER:
    profiler = load(PROFILER.path.partition(":")[0])
    calls.note(profiler, "Profiler", lambda *args: unittest.mock.Mock())

  def best(run):
    return Checkpoint(7, seen["_train_from.last"].state, 1.0)

  def build_step(run):
    run.learner()
    return _losses()

  accuracy = {"top1": 0.5, "macro_top1": 0.5}
  calls.note(pretrain, "best", best)
  calls.note(MetricsWriter, "write")
  calls.note(Checkpoints, "save", lambda *args, **kwargs: True)
  calls.note(results, "open_tracker", lambda *args: results.Tracker())
  calls.note(results, "open_splits", lambda *args: {})
  calls.note(results, "evaluate", lambda *args: {})
  calls.skip(results, "finish")
  calls.skip(pretrain.plots, "training_curves")
  calls.patch.setattr(pretrain, "PREDICTION_SHEET", "")
  calls.patch.setattr(PromptRun, "build_step", build_step)
  calls.patch.setattr(PromptRun, "validation", lambda run: lambda state: accuracy)
  with contextlib.suppress(loop.TrainingError):
    seen["results"] = check_and_run(config, folder)
    seen["evaluated_step"] = seen["results"]["evaluated_step"]
  seen["attempts"] = len(seen["_train_from.last*"])
  seen["prompts"] = set(seen.get("class_features.prompt*", ()))


class _Loader(Loader):
  """Batches of nothing."""

  def __init__(self, source: Any):
    self.skipped = SkippedImages(source, 0.0)

  def __next__(self) -> dict[str, np.ndarray]:
    return {"image": np.zeros(1), "label": np.zeros(1, np.int32)}

  def close(self) -> None:
    pass


def _losses() -> Callable[..., Any]:
  """A training step that computes nothing but the loss of its number."""
  counts = itertools.count(1)

  def step(state, frozen, batch):
    loss = 9.0 if next(counts) % 30 == 25 else 1.0
    return state, {"loss": jnp.float32(loss), "accuracy": jnp.float32(0.5)}

  return step


def store_features(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The features of a training's images, and of its validation images."""
  calls.open_encoder()
  calls.note(batches, "choose_readers")
  calls.note(batches, "Features")
  calls.note(batches, "split_features", Recorded)
  calls.note(fill_features, "SkippedImages")
  run = setup.prepare(config, RunFolder(folder))
  fill_features.fill_features(run.data, run.clip, run.folder, run.source, run.encoder)
  if config.data.features == "stored":
    calls.seen["features"] = os.path.dirname(calls.seen["Features.folder"])
  run.validation()


def evaluate_sets(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job evaluate, up to the images of its first set."""
  seen = calls.seen
  calls.open_encoder()
  calls.note(evaluate, "_keys")
  calls.note(evaluate, "_count_classes")
  calls.note(evaluate, "fingerprint")
  calls.note(evaluate, "tally", Recorded)
  calls.note(sets_to_evaluate, "open_each")
  with contextlib.suppress(Recorded):
    check_and_run(config, folder)
  sets = seen["_keys.opened"]
  seen["prompts"] = list(seen["tally.classifiers"])
  seen["key"] = tuple(seen["fingerprint.parts*"][0][1:3])
  seen["suite"] = json.loads(seen["fingerprint.parts"][-2])["suite"]
  seen["sets"] = list(sets)
  seen["images"] = {name: len(opened.source) for name, opened in sets.items()}
  seen["classes"] = {name: len(opened.classes) for name, opened in sets.items()}
  seen["templates"] = {opened.classes.template for opened in sets.values()}
  seen["upright"] = {
    getattr(opened.source, "upright", None) for opened in sets.values()
  }


def name_pictures(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job predict, whose answers are the first names."""

  def answers(classifier, images, top):
    # One more than is shown.
    rows = [(name, 0.5) for name in classifier.names[: top + 1]]
    return [rows for _ in images]

  calls.open_encoder()
  calls.note(Classifier, "predict", answers)
  calls.note(predict, "Classifier")
  calls.note(predict, "read_image")
  calls.note(predict, "check_prompt")
  calls.note(predict, "find_images")
  calls.note(predict, "printable")
  predictions = check_and_run(config, folder)
  for name in ("task", "prompt", "names", "upright"):
    calls.seen[name] = predictions[name]
  calls.seen["pictures"] = list(predictions["images"])
  calls.seen["answers"] = {len(rows) for rows in predictions["images"].values()}


def export_prompt(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job export."""
  calls.open_encoder()
  calls.note(export, "encode")
  calls.seen |= check_and_run(config, folder)
