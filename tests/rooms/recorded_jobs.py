"""Runs of jobs that record their expensive calls instead of computing, and what these
were given.

`RUNS` has a function of each kind of run, `(calls, config, folder) -> None`, which
leaves records in `calls.seen`: arguments of the last call by `function.argument`, those
of all calls by `function.argument*`, and what the function adds.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import inspect
import itertools
import json
import os
import pathlib
import types
from typing import Any
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from pomp_jax import main
from pomp_jax.clip.load import Clip
from pomp_jax.config import SOURCES, Config, load_job
from pomp_jax.config.group import Group
from pomp_jax.data.loader import Loader
from pomp_jax.data.source import Files, StoredImages
from pomp_jax.data.unreadable import SkippedImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import evaluate, evaluation_sets, export, opening, predict
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.evaluate.split_features import SplitFeatures
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.metrics_log import MetricsWriter
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.registry import load
from pomp_jax.rooms.ablation import ablate, shared_inputs, vmapped_training
from pomp_jax.rooms.analysis import analyse, bias, geometry, gradient_bias
from pomp_jax.rooms.baselines import (
  baselines,
  classifiers,
  kdpl,
  learner_accuracy,
  linear_probe,
  repeat,
  tip_adapter,
  visual_tokens,
)
from pomp_jax.rooms.benchmark import benchmark, costs, profiler, towers
from pomp_jax.rooms.benchmark import dry_run as dry_run_job
from pomp_jax.rooms.data_sets import coop, feature_folder, prepare, tfds
from pomp_jax.rooms.interchange import class_features, prompt_hub
from pomp_jax.rooms.mixtures import weights
from pomp_jax.rooms.regions import (
  blocks,
  detect,
  image_sets,
  on_page,
  predict_tasks,
  proposals,
  propose,
  segment,
  train_masks,
  training_crops,
)
from pomp_jax.rooms.regions.mask_former import model, published_weights
from pomp_jax.rooms.regions.region_folder import Regions
from pomp_jax.rooms.regions.region_scorer import Scored
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


class Recorded(BaseException):
  """Ends a run at the call that it was to reach; no job handles it."""


class Calls:
  """Functions that note what they are given; `seen` as the module says."""

  def __init__(self, patch: pytest.MonkeyPatch, encoder: Encoder):
    self.patch, self.encoder = patch, encoder
    self.width = encoder.clip.config.projection_dim
    self.seen: dict[str, Any] = {}

  def note(
    self, owner: Any, name: str, instead: Callable[..., Any] | type | None = None
  ) -> None:
    """Notes the calls of a function, which `instead` answers, or ends if it is
    `Recorded`."""
    function = getattr(owner, name)
    signature = inspect.signature(function)

    def call(*given, **more):
      bound = signature.bind(*given, **more)
      bound.apply_defaults()
      for argument, value in bound.arguments.items():
        value = str(value) if isinstance(value, os.PathLike) else value
        self.seen[f"{name}.{argument}"] = value
        self.seen.setdefault(f"{name}.{argument}*", []).append(value)
        if isinstance(value, Group):
          own = value.flat().items()
          self.seen |= {f"{name}.{argument}.{field}": figure for field, figure in own}
      if instead is Recorded:
        raise Recorded(name)
      return (instead or function)(*given, **more)

    self.patch.setattr(owner, name, call)

  def skip(self, owner: Any, *names: str) -> None:
    """Functions that do nothing."""
    for name in names:
      self.patch.setattr(owner, name, lambda *given, **more: None)

  def open_encoder(self) -> None:
    """Jobs get a CLIP that is open, whose features are ones."""
    self.note_encoder()
    ones = lambda rows: np.ones((len(rows), self.width), np.float32)
    self.patch.setattr(
      Encoder, "image_features", lambda _, images, unit=True: ones(images)
    )
    self.note(Encoder, "class_features", lambda _, names, *given, **more: ones(names))
    of_classes = lambda _, params, frozen, *given, **more: ones(frozen.tokens.lengths)
    self.patch.setattr(Encoder, "features_of_classes", of_classes)

  def note_encoder(self, instead: type | None = None) -> None:
    def open_encoder(settings, class_size=1, feature_store="", devices=None):
      return self.encoder

    # The session's own has other names of arguments.
    self.patch.setattr(opening, "open_encoder", open_encoder)
    self.note(opening, "open_encoder", instead)

  def note_split(self, owner: Any, name: str) -> None:
    """Features of a split's images, all ones."""
    signature = inspect.signature(getattr(owner, name))

    def features(*given, **more):
      source = signature.bind(*given, **more).arguments["source"]
      rows = np.arange(len(source))
      names = tuple(source.names)
      return SplitFeatures(
        names, source.labels, np.ones((len(rows), self.width), np.float32), rows
      )

    self.note(owner, name, features)


def check_and_run(config: Config, folder: pathlib.Path) -> Any:
  """Runs a job as the command line does; its fields are not checked beside each
  other."""
  job = load_job(config.job)
  job.check(config, str(folder))
  return job.run(config, str(folder))


def open_clip_alone(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """Any job, up to its CLIP."""
  calls.note_encoder(Recorded)
  load_job(config.job).run(config, str(folder))


def encoder(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The CLIP of a config."""
  calls.note(opening, "load_clip", lambda *given, **more: unittest.mock.Mock(spec=Clip))
  calls.note(opening, "make_mesh", lambda *given: None)
  calls.note(opening, "ArrayCache")
  calls.note(opening, "Encoder", Recorded)
  opening.open_encoder(config.clip, config.mesh.class_size, config.data.feature_store)


def command_line(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The main function, with these fields as options."""
  calls.note(main, "use_compilation_cache", lambda *given: None)
  calls.note(main.hosts, "describe")
  nothing = lambda *given: None
  job = types.SimpleNamespace(check=nothing, run=nothing)
  calls.note(main, "load_job", lambda name: job)
  calls.skip(main, "validate", "commit")
  options = argparse.Namespace(settings=config, workdir=str(folder), default_workdir="")
  options.coordinator = options.num_processes = options.process_id = None
  options.start_timeout = options.heartbeat_timeout = 1
  stop = unittest.mock.Mock(spec=main.hosts.StopSignals, received=None)
  main._run_job(options, stop)


def source(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The training images of a source that another program has made."""
  header = types.SimpleNamespace(splits=())
  images = StoredImages(("a", "b"), (0, 1), ("0.png", "1.png"), Files("images"))
  calls.note(coop, "_open_all", lambda *given: {"train": images})
  calls.note(tfds, "tfds_splits", lambda *given: ())
  calls.note(tfds, "open_tfds", Recorded)
  calls.note(feature_folder, "read_header", lambda root: header)
  calls.note(feature_folder, "_open", Recorded)
  calls.note(training_crops, "open_pixels")
  calls.note(training_crops, "ArrayCache")
  calls.note(training_crops, "_Crops")
  module = load(SOURCES[config.data.source].module)
  module.splits(config.data)
  found = module.open_split(config.data, "train")
  calls.seen |= {"names": found.names, "images": len(found)}


def train(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A training of 30 steps with a loss of 1, but of 9 at the 25th."""
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note(opening, "open_source")
  calls.note(opening, "check_readable")
  calls.note(training, "Loader", lambda source, *given, **more: _Loader(source))
  calls.note(training, "choose_readers")
  calls.note(training, "memory_plan")
  calls.note(memory, "plan_memory")
  calls.note(Encoder, "text_tower")
  calls.note(loop, "LossMonitor")
  calls.note(loop, "Checkpoints")
  calls.note(loop, "_train_from")
  calls.note(profiler, "Profiler", lambda *given: unittest.mock.Mock())
  best = lambda run: Checkpoint(7, calls.seen["_train_from.last"].state, 1.0)
  calls.note(pretrain, "best", best)
  calls.note(MetricsWriter, "write")
  calls.note(Checkpoints, "save", lambda *given, **more: True)
  calls.note(results, "open_tracker", lambda *given: results.Tracker())
  calls.note(results, "open_splits", lambda *given: {})
  calls.note(results, "evaluate", lambda *given: {})
  calls.skip(results, "finish")
  calls.skip(pretrain.plots, "training_curves")
  calls.patch.setattr(pretrain, "PREDICTION_SHEET", "")
  calls.patch.setattr(PromptRun, "build_step", lambda run: run.learner() and _losses())
  accuracy = {"top1": 0.5, "macro_top1": 0.5}
  calls.patch.setattr(PromptRun, "validation", lambda run: lambda state: accuracy)
  seen = calls.seen
  with contextlib.suppress(loop.TrainingError):
    seen["results"] = check_and_run(config, folder)
    seen["evaluated_step"] = seen["results"]["evaluated_step"]
  seen["attempts"] = len(seen["_train_from.last*"])
  seen["prompts"] = {*seen.get("class_features.prompt*", ())}


class _Loader(Loader):
  """Batches of nothing."""

  def __init__(self, source: Any):
    self.skipped = SkippedImages(source, 0.0)

  def __next__(self) -> dict[str, np.ndarray]:
    return {"image": np.zeros(1), "label": np.zeros(1, np.int32)}

  def close(self) -> None:
    pass


def _losses() -> Callable[..., Any]:
  counts = itertools.count(1)

  def step(state, frozen, batch):
    loss = 9.0 if next(counts) % 30 == 25 else 1.0
    return state, {"loss": jnp.float32(loss), "accuracy": jnp.float32(0.5)}

  return step


def taught(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A training that has a teacher."""
  calls.open_encoder()
  calls.note(kdpl, "features_under")
  setup.prepare(config, RunFolder(folder))


def images_learner(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The accuracy of a method with tokens of the image tower."""
  calls.open_encoder()
  calls.note(visual_tokens, "activation_memory")
  calls.note(visual_tokens, "prompted_image_tower")
  calls.note(learner_accuracy, "image_batches", Recorded)
  calls.note(learner_accuracy, "SkippedImages")
  calls.patch.setattr(Encoder, "in_chunks", lambda _, compute, rows, what: rows)
  calls.note_split(batches, "split_features")
  run = setup.prepare(config, RunFolder(folder))
  source = opening.open_source(config.data, "validation", n_images=4)
  split = batches.split_features(calls.encoder, source)
  run.accuracy()({}, split, source)


def dry_run(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A dry run whose parts take a second each."""
  calls.open_encoder()
  calls.note(setup, "prepare")
  second = costs.Cost(1.0, 10, 10)
  figures = {"test_images": second, "class_features": second, "read": second}
  figures |= {"step_seconds": 1.0, "checkpoint_seconds": 1.0}
  figures |= {"checkpoint_bytes": 100, "prompt_bytes": 7}
  calls.note(costs, "measure", lambda run: figures)
  calls.patch.setattr(dry_run_job, "_lines", lambda *given: [])
  calls.seen |= dry_run_job.run(config, str(folder))


def absent_machine(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A dry run for a machine that is not here; nothing is compiled."""
  outcome = types.SimpleNamespace(there=None)

  def run(text, job_of):
    calls.seen["job"] = job_of({})
    return outcome

  calls.patch.setattr(dry_run_job.absent, "run", run)
  calls.note(dry_run_job.forecast, "figures_of", lambda *given: {})
  calls.patch.setattr(dry_run_job.forecast, "lines", lambda *given: [])
  dry_run_job.run(config, str(folder))


def stored_features(calls: Calls, config: Config, folder: pathlib.Path) -> None:
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


def classifier(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A linear probe, or Tip-Adapter."""
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note_split(classifiers, "split_features")
  calls.note(classifiers, "fill_features", lambda *given: None)
  calls.note(opening, "open_source")
  calls.note(results, "open_splits", lambda *given: {})
  calls.note(results, "open_tracker", lambda *given: results.Tracker())
  calls.skip(results, "finish")
  calls.note(linear_probe, "fit", lambda *given, **more: _PROBE)
  calls.note(tip_adapter, "SkippedImages")
  calls.note(tip_adapter, "read_ahead")
  calls.note(tip_adapter, "view_features")
  calls.note(
    tip_adapter, "open_fetch", lambda data, *_: lambda rows, epochs: _views(data, rows)
  )
  calls.note(tip_adapter, "tune", lambda adapter, *given, **more: adapter)
  calls.note(tip_adapter.TipAdapter, "searched", lambda adapter, *given: adapter)
  found = load_job(config.job).run(config, str(folder))
  calls.seen |= {name: found[name] for name in ("method", "seed")}
  if (epochs := calls.seen.get("tune.epochs")) is not None:
    calls.seen["epochs"] = len(list(epochs))


_PROBE = linear_probe.LinearProbe(
  np.ones((128, 6), np.float32), np.ones(6, np.float32), 1.0
)


def _views(data: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return np.ones((len(rows), data.views, 128), np.float32), np.ones(len(rows), bool)


def seeds(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The trainings of `repeat` and of `baselines`."""
  found = dict.fromkeys(
    ("method", "clip_model", "steps", "n_classes", "k", "correction")
  )
  found |= {"eval_classes": {}, "eval": {}, "seconds": 1.0}
  calls.note(pretrain, "check", lambda *given: None)
  calls.note(pretrain, "run", lambda *given: found)
  for job in (repeat, baselines):
    calls.skip(job, "finish_run", "method_dots")
  calls.skip(baselines, "_share_programs", "validate")
  calls.patch.setattr(baselines, "_rows", lambda *given: {})
  calls.skip(RunFolder, "write_results")
  calls.patch.setattr(
    baselines, "in_own_process", lambda function, *given: function(*given)
  )
  results = check_and_run(config, folder)
  calls.seen |= {"seeds": results["seeds"], "settings": results.get("settings")}
  for name in ("check", "run"):
    trainings = zip(
      calls.seen[f"{name}.workdir*"], calls.seen[f"{name}.config*"], strict=True
    )
    calls.seen[f"{name}.seeds"] = [
      (pathlib.Path(own).name, one.seed) for own, one in trainings
    ]


def ablation(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """Cells without a training: losses of 1, but the 25th of 9."""
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note(pretrain, "check", lambda *given: None)
  calls.note(setup, "prepare")
  calls.note(ablate, "activation_memory")
  calls.note(ablate, "LossMonitor")
  calls.note(ablate, "_step_times", lambda *given: [])
  calls.note(ablate, "_write_results")
  calls.note(ablate, "train_lanes", _untrained)
  calls.note(results, "open_splits")
  calls.note(shared_inputs.SharedInputs, "stream", lambda _, run: None)
  calls.note(shared_inputs, "evaluate", lambda *given: {})
  calls.note(shared_inputs, "topk_accuracy", lambda *given, **more: {"top1": 0.5})
  calls.skip(ablate, "write_cells", "finish_run")
  with contextlib.suppress(ablate.TrainingError):
    check_and_run(config, folder)
  calls.seen["grid"] = calls.seen["_write_results.facts"]["grid"]
  calls.seen["batches"] = [run.loop.batch_size for run in calls.seen["stream.run*"]]
  calls.seen["images"] = {*calls.seen.get("open_splits.n_images*", ())}
  prompts = itertools.chain(
    *(one.values() for one in calls.seen.get("evaluate.prompts*", ()))
  )
  calls.seen["templates"] = {one for one in prompts if isinstance(one, str)}


def _untrained(
  runs: Sequence[PromptRun], streams: Any, size: int, curve_every: int
) -> Any:
  losses = np.array([*[1] * 24, 9, *[1] * 5], np.float32)
  for run in runs:
    context = np.zeros((run.prompt.m, run.encoder.clip.text_width), np.float32)
    curve = dict.fromkeys(
      vmapped_training.curve_steps(curve_every, run.total_steps), context
    )
    yield vmapped_training.Trained(context, losses, 1.0, 1.0, curve)


def evaluation(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """An evaluation up to the images of its first set."""
  calls.open_encoder()
  calls.note(evaluate, "_keys")
  calls.note(evaluate, "_count_classes")
  calls.note(evaluate, "fingerprint")
  calls.note(evaluate, "tally", Recorded)
  calls.note(evaluation_sets, "open_each")
  calls.note_split(weights, "split_features")
  calls.note(weights, "topk_accuracy", lambda *given, **more: {"macro_top1": 0.5})
  calls.note(weights, "features_under")
  with contextlib.suppress(Recorded):
    check_and_run(config, folder)
  seen, opened = calls.seen, calls.seen["_keys.opened"]
  seen["prompts"] = list(seen["tally.classifiers"])
  seen["key"] = tuple(seen["fingerprint.parts*"][0][1:3])
  seen["suite"] = json.loads(seen["fingerprint.parts"][-2])["suite"]
  if "split_features.source" in seen:
    seen["validation"] = len(seen["split_features.source"])
  seen["sets"] = list(opened)
  seen["images"] = {name: len(one.source) for name, one in opened.items()}
  seen["classes"] = {name: len(one.classes) for name, one in opened.items()}
  seen["templates"] = {one.classes.template for one in opened.values()}
  seen["upright"] = {getattr(one.source, "upright", None) for one in opened.values()}


def analysis(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job analyse."""
  calls.open_encoder()
  calls.note_split(analyse, "split_features")
  calls.note(analyse, "check_prompts")
  calls.note(analyse, "open_everywhere")
  calls.note(analyse, "topk_accuracy", lambda *given, **more: {"top1": 0.5})
  calls.note(geometry, "nearest_tokens")
  calls.skip(geometry, "token_spacing", "alignment_uniformity")
  calls.skip(analyse, "finish_run")
  calls.seen["results"] = check_and_run(config, folder)
  calls.seen["sets"] = list(calls.seen["results"]["sets"])
  calls.seen["prompts"] = [one["label"] for one in calls.seen["results"]["prompts"]]
  calls.seen["images"] = [
    one["images"] for one in calls.seen["results"]["sets"].values()
  ]


def prediction(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job predict, whose answers are the first names."""
  calls.open_encoder()
  # One more than is shown.
  rows = lambda names, top: [(name, 0.5) for name in names[: top + 1]]
  answers = lambda own, images, top: [rows(own.names, top) for _ in images]
  calls.note(Classifier, "predict", answers)
  calls.note(predict, "Classifier")
  calls.note(predict, "read_image")
  calls.note(predict, "check_prompt")
  calls.note(predict, "find_images")
  calls.note(predict, "printable")
  calls.note(predict_tasks, "DenseSegmenter", Recorded)
  calls.note(predict_tasks, "RegionScorer", Recorded)
  calls.note(predict_tasks, "open_region_source", lambda *given: None)
  calls.skip(predict_tasks, "check_region_source")
  found = check_and_run(config, folder)
  calls.seen |= {name: found[name] for name in ("task", "prompt", "names", "upright")}
  calls.seen["pictures"] = list(found["images"])
  calls.seen["answers"] = {len(rows) for rows in found["images"].values()}


def exported(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job export."""
  calls.open_encoder()
  calls.note(class_features, "category_features")
  calls.note(class_features, "check_prompt")
  calls.note(class_features, "pictures_upright")
  calls.note(export, "encode")
  calls.note(prompt_hub, "results_of")
  calls.note(prompt_hub, "check_upload", lambda *given: None)
  calls.note(prompt_hub, "push_prompt", Recorded)
  found = check_and_run(config, folder)
  calls.seen |= found
  if (categories := calls.seen.get("category_features.categories")) is not None:
    calls.seen["categories"] = [one.name for one in categories]


def prepared(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job prepare."""
  report = {"splits": {}, "n_unreadable": 0, "dataset": ""}
  calls.note(prepare, "open_input", lambda *given, **more: None)
  calls.note(prepare, "build", lambda *given: report)
  check_and_run(config, folder)
  selection = calls.seen["build.selection"]
  calls.seen |= {f"selection.{name}": value for name, value in vars(selection).items()}


def gradients(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job gradient_bias; gradients are ones."""
  calls.open_encoder()
  calls.note(gradient_bias, "fingerprint")
  calls.note(gradient_bias, "SkippedImages")
  calls.note(gradient_bias, "memory_plan")
  calls.note(gradient_bias, "sampling_arrays")
  calls.note(gradient_bias, "PromptContext")
  calls.note(
    bias, "gradient_function", lambda learner, settings, corrections: corrections
  )
  ones = lambda corrections, arguments, n, seed: np.ones((n, len(corrections), 3))
  calls.note(bias, "draws_of", ones)
  calls.skip(bias, "gradient_bias_panels")
  calls.skip(gradient_bias, "finish_run")
  calls.patch.setattr(gradient_bias, "readable_images", lambda source, rows: (rows, {}))
  found = check_and_run(config, folder)
  contrasts = calls.seen["gradient_function.settings*"][1:]  # without the exact one
  calls.seen["draws"] = [(one.sampling.name, one.k) for one in contrasts]
  calls.seen["key"] = calls.seen["fingerprint.parts*"][0][0]
  calls.seen["cell"] = calls.seen["fingerprint.parts"][1:]
  calls.seen["n_draws"] = calls.seen["draws_of.n_draws*"][1:]
  calls.seen["logit_bias"] = contrasts[0].logit_bias
  calls.seen |= {
    f"sampling.{name}": value for name, value in vars(contrasts[0].sampling).items()
  }
  calls.seen |= {name: found[name] for name in ("images", "prompt", "n_classes")}


def measured(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job benchmark, which measures nothing."""
  compiled = unittest.mock.Mock(spec=jax.stages.Compiled)
  step = types.SimpleNamespace(compile=lambda: compiled)
  calls.note(
    benchmark, "measure_in_turn", lambda steps, *given: [one for one, _ in steps]
  )
  calls.note(
    towers, "text_tower", lambda kind, config, *given: _tower(config.projection_dim)
  )
  weights = lambda config, m, seed: ({}, jnp.zeros((m + 1, config.hidden_size)))
  calls.note(towers, "random_inputs", weights)
  calls.note(towers, "plan_memory")
  calls.note(towers, "place_rows")
  calls.note(
    towers,
    "make_train_step",
    lambda parts: types.SimpleNamespace(lower=lambda *_: step),
  )
  calls.note(towers, "create_state")
  calls.note(towers, "PromptContext")
  calls.note(jax.random, "key")
  calls.note(np.random, "default_rng")
  calls.skip(towers, "temporaries_mib")
  calls.skip(benchmark, "plot")
  calls.skip(RunFolder, "write_results")
  calls.patch.setattr(benchmark, "has_flax_clip", lambda: True)
  found = check_and_run(config, folder)["rows"]
  calls.seen["rows"] = [
    (one.implementation, one.k, one.n_classes, one.renew) for one in found
  ]
  given = (
    "random_inputs.seed*",
    "create_state.seed*",
    "key.seed*",
    "default_rng.seed*",
  )
  calls.seen["seeds"] = {
    *itertools.chain(*(calls.seen.get(name, ()) for name in given))
  }
  calls.seen["tokens"] = [one.tokens for one in found]
  calls.seen["rows_at_a_time"] = {
    one.implementation: one.rows_at_a_time for one in found
  }


def _tower(width: int) -> Callable[..., Any]:
  return lambda params, prefix, suffix, lengths: (
    jnp.ones((len(lengths), width)) * prefix.mean()
  )


class _Scorer:
  """Scores of regions, in the order of the names."""

  def __init__(
    self, regions, source, encoder, classes, matrices, *, logit_scale, **more
  ):
    self._source, self._shape = source, (len(matrices), len(classes))

  def scored(self, block):
    for row, found in zip(block, self._source.find(block), strict=True):
      n_prompts, n_classes = self._shape
      scores = np.linspace(1, 0, len(found.boxes) * n_classes, dtype=np.float32)
      yield row, Scored(found, n_prompts * [scores.reshape(-1, n_classes)])


def detection(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job detect, without crops and figures."""
  calls.open_encoder()
  calls.note(image_sets, "read_annotations")
  calls.note(image_sets, "Scenes")
  calls.note(blocks, "fingerprint")
  calls.note(detect, "Comparison")
  calls.note(detect, "RegionScorer", _Scorer)
  calls.note(detect, "average_precision", lambda *given, **more: {})
  calls.skip(detect, "_draw")
  calls.skip(blocks, "finish_run")
  found = check_and_run(config, folder)
  data = calls.seen["Comparison.data"]
  calls.seen |= {"classes": data.classes.names, "synonyms": data.classes.synonyms}
  calls.seen |= {"images": len(data.keys), "root": data.root}
  calls.seen["prompts"] = [one["label"] for one in found["prompts"]]
  calls.seen["key"] = calls.seen["fingerprint.parts"][4]
  calls.seen["files"] = [file.name for file in sorted(folder.glob("detections/*"))]


def segmentation(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job segment, up to its patches."""
  calls.open_encoder()
  calls.note(segment, "DenseSegmenter", Recorded)
  load_job(config.job).run(config, str(folder))


def proposing(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job propose, up to its network."""
  calls.open_encoder()
  calls.note(published_weights, "check_clip", lambda *given: None)
  calls.note(model, "mask_predictor", lambda *given: None)
  calls.note(proposals, "Proposer")
  calls.note(proposals, "network_key_parts")
  calls.note(propose, "fingerprint", Recorded)
  with contextlib.suppress(Recorded):
    load_job(config.job).run(config, str(folder))
  calls.seen["key"] = calls.seen["fingerprint.parts"][3]
  calls.note(proposals, "resized_image")
  calls.note(proposals, "split_rows", Recorded)
  network = proposals.open_network(config.propose, config.clip, 0.5, calls.encoder)
  with contextlib.suppress(Recorded):
    network.regions([np.zeros((40, 40, 3), np.uint8)])
  calls.seen["batch"] = len(calls.seen["split_rows.tree"][0])


def masks(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The job train_masks, up to its training, and its step."""
  calls.open_encoder()
  calls.note(train_masks, "open_mask_set")
  calls.note(train_masks, "MaskViews")
  calls.note(train_masks, "precision_of")
  calls.note(train_masks, "make_mask_step", lambda **given: lambda: None)
  calls.note(loop, "train", Recorded)
  with contextlib.suppress(Recorded):
    load_job(config.job).run(config, str(folder))
  calls.seen["train.run"].build_step()


def page_regions(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """What the page does with the regions of a picture."""
  pixels = np.zeros((40, 40, 3), np.uint8)
  boxes = np.array([[1, 1, 9, 9], [1, 1, 9, 8], [20, 20, 30, 30]], np.float32)
  regions = Regions(
    boxes, np.ones(3, np.float32), np.full((3, 10, 10), 2**14, np.int16)
  )
  network = types.SimpleNamespace(header=None, regions=lambda images: [regions])
  calls.open_encoder()
  calls.note(on_page, "open_network", lambda *given: network)
  calls.note(on_page, "DenseSegmenter")
  calls.note(on_page, "RegionEncoder")
  calls.note(on_page, "RegionScorer", _Scorer)
  calls.note(on_page, "select_detections")
  calls.note(Regions, "top")
  calls.patch.setattr(on_page, "_drawn", lambda *given: b"")
  calls.note(on_page, "RegionsOfPictures")
  page = on_page.RegionsOfPictures(calls.encoder, config.clip, config.page)
  if not page.finds:
    return
  rows = np.ones((2, calls.width), np.float32)
  asked = Image.fromarray(pixels), ("cat", "dog"), lambda: [rows], ["a prompt"]
  page.segment(asked)
  page.find_objects(asked)
  page.name_boxes(asked, boxes)


RUNS: dict[str, Callable[[Calls, Config, pathlib.Path], None]] = {
  "open": open_clip_alone,
  "encoder": encoder,
  "main": command_line,
  "source": source,
  "training": train,
  "dry_run": dry_run,
  "absent": absent_machine,
  "taught": taught,
  "images_learner": images_learner,
  "stored_features": stored_features,
  "classifier": classifier,
  "seeds": seeds,
  "ablate": ablation,
  "evaluate": evaluation,
  "analyse": analysis,
  "predict": prediction,
  "export": exported,
  "prepare": prepared,
  "gradient_bias": gradients,
  "benchmark": measured,
  "detect": detection,
  "segment": segmentation,
  "propose": proposing,
  "train_masks": masks,
  "page": page_regions,
}
