"""Runs and cases of the fields of methods, `repeat` and `baselines`, see
`tests/rooms/test_each_field.py`."""

import pathlib
from typing import Any

import numpy as np

from pomp_jax.config import Config, load_job
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.run_folder import RunFolder
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
from pomp_jax.train import batches, pretrain, results, setup
from tests.support.field_cases import TRAINING, WORLD
from tests.support.recorded_calls import (
  Calls,
  Case,
  Recorded,
  check_and_run,
  clip_case,
)
from tests.support.recorded_runs import train

FITTED = WORLD | {
  "method": "tip_adapter_f",
  "data.augment": "crop_flip",
}
SEEDS = {
  "job": "repeat",
  "repeat.seeds": (5,),
}
FOLDERS_3_4 = [("seed_3", 3), ("seed_4", 4)]
SEEDS_3_4 = {
  "run.seeds": FOLDERS_3_4,
  "check.seeds": FOLDERS_3_4,
  "seeds": [3, 4],
}
METHODS = (("one", {"k": "8"}),)


def prepare_with_teacher(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A training that has a teacher."""
  calls.open_encoder()
  calls.note(kdpl, "features_under")
  setup.prepare(config, RunFolder(folder))


def score_prompted_images(calls: Calls, config: Config, folder: pathlib.Path) -> None:
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


def fit_classifier(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """A linear probe, or Tip-Adapter."""
  seen = calls.seen
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note_split(classifiers, "split_features")
  calls.note(classifiers, "fill_features", lambda *args: None)
  calls.note(opening, "open_source")
  calls.note(results, "open_splits", lambda *args: {})
  calls.note(results, "open_tracker", lambda *args: results.Tracker())
  calls.skip(results, "finish")
  calls.note(linear_probe, "fit", lambda *args, **kwargs: _PROBE)
  calls.note(tip_adapter, "SkippedImages")
  calls.note(tip_adapter, "read_ahead")
  calls.note(tip_adapter, "view_features")
  calls.note(tip_adapter, "open_fetch", _open_fetch)
  calls.note(tip_adapter, "tune", lambda adapter, *args, **kwargs: adapter)
  calls.note(tip_adapter.TipAdapter, "searched", lambda adapter, *args: adapter)
  outcome = load_job(config.job).run(config, str(folder))
  for name in ("method", "seed"):
    seen[name] = outcome[name]
  if (epochs := seen.get("tune.epochs")) is not None:
    seen["epochs"] = len(list(epochs))


_PROBE = linear_probe.LinearProbe(
  np.ones((128, 6), np.float32), np.ones(6, np.float32), 1.0
)


def _open_fetch(data: Any, *args: Any) -> Any:
  """Views whose features are ones."""

  def fetch(rows, epochs):
    features = np.ones((len(rows), data.views, 128), np.float32)
    return features, np.ones(len(rows), bool)

  return fetch


def train_each(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """The trainings of `repeat` and of `baselines`."""
  seen = calls.seen
  names = ("method", "clip_model", "steps", "n_classes", "k", "correction")
  outcome = dict.fromkeys(names)
  outcome |= {"eval_classes": {}, "eval": {}, "seconds": 1.0}
  calls.note(pretrain, "check", lambda *args: None)
  calls.note(pretrain, "run", lambda *args: outcome)
  for job in (repeat, baselines):
    calls.skip(job, "finish_run", "method_dots")
  calls.skip(baselines, "_share_programs", "validate")
  calls.skip(RunFolder, "write_results")
  calls.patch.setattr(baselines, "_rows", lambda *args: {})
  calls.patch.setattr(
    baselines, "in_own_process", lambda function, *args: function(*args)
  )
  report = check_and_run(config, folder)
  seen["seeds"] = report["seeds"]
  seen["settings"] = report.get("settings")
  for name in ("check", "run"):
    folders = [pathlib.Path(path).name for path in seen[f"{name}.workdir*"]]
    seeds = [training.seed for training in seen[f"{name}.config*"]]
    seen[f"{name}.seeds"] = list(zip(folders, seeds, strict=True))


CASES = {
  "the CLIP of pretrain without steps": clip_case("pretrain", {"method": "zero_shot"}),
  "a training of several towers": Case(
    run=train,
    fields=TRAINING,
    rows={
      "method": ("cocoop", "memory_plan.n_times", 4),
    },
  ),
  "a training of two towers": Case(
    run=train,
    fields=TRAINING,
    rows={
      "method": ("vpt_shallow", "memory_plan.n_times", 2),
    },
  ),
  "a teacher": Case(
    run=prepare_with_teacher,
    fields=WORLD | {"method": "kdpl"},
    rows={
      "kdpl.teacher": ("REGIONS/clip", "open_encoder.settings.model"),
      "eval.template": ("my {}.", "features_under.classes.template"),
      "data.feature_store": (
        "ROOT/store",
        "open_encoder.feature_store*",
        2 * ["ROOT/store"],
      ),
    },
  ),
  "the prompt of a teacher": Case(
    run=prepare_with_teacher,
    fields=WORLD | {"method": "kdpl"},
    rows={
      "kdpl.prompt": ("the {}", "features_under.prompt"),
    },
  ),
  "tokens of an image tower": Case(
    run=score_prompted_images,
    fields=WORLD | {"method": "vpt_shallow"},
    rows={
      "clip.dtype": ("bfloat16", "prompted_image_tower.dtype"),
      "clip.image_chunk": (3, "prompted_image_tower.chunk"),
      "clip.memory_gib": (5.0, "prompted_image_tower.limit_bytes", 2.5 * 2**30),
      "eval.template": ("my {}.", "class_features.prompt*", ["my {}.", "my {}."]),
      "data.threads": (3, "image_batches.threads"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "a linear probe": Case(
    run=fit_classifier,
    fields=WORLD | {"method": "linear_probe"},
    rows={
      "probe.iterations": (7, "fit.iterations"),
      "data.threads": (3, "split_features.threads"),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
      "log.tracker": ("wandb", "open_tracker.log.tracker"),
      "eval.images": (
        12,
        {"open_splits.n_images": 12, "open_source.n_images*": [0, 12]},
      ),
      "seed": (9, "seed"),
    },
  ),
  "Tip-Adapter": Case(
    run=fit_classifier,
    fields=FITTED,
    rows={
      "tip.views": (3, "view_features.n_epochs", 5),
      "tip.epochs": (2, {"tune.n_epochs": 2, "epochs": 2}),
      "tip.alpha": (5.0, "tune.adapter.alpha"),
      "tip.beta": (6.0, "tune.adapter.beta"),
      "tip.alpha_max": (8.1, "searched.alphas", [0.1, 2.1, 4.1, 6.1]),
      "tip.alpha_steps": (4, "searched.alphas", [0.1, 2.1, 4.1, 6.1]),
      "tip.beta_max": (6.1, "searched.betas", [0.1, 3.1]),
      "tip.beta_steps": (2, "searched.betas", [0.1, 3.1]),
      "batch_size": (5, "tune.batch_size"),
      "optim.lr": (0.3, "tune.rate"),
      "seed": (9, "tune.seed"),
      "data.threads": (3, "read_ahead.data.threads"),
      "data.max_corrupt": (0.5, "SkippedImages.max_corrupt"),
    },
  ),
  "trainings of seeds": Case(
    run=train_each,
    fields=SEEDS,
    rows={
      "repeat.seeds": ((3, 4), SEEDS_3_4),
    },
  ),
  "trainings of methods": Case(
    run=train_each,
    fields={"job": "baselines", "baselines.methods": (("one", {"k": "7"}),)},
    rows={
      "repeat.seeds": ((3, 4), SEEDS_3_4),
      "baselines.methods": (METHODS, {"run.config.k": 8, "settings": METHODS}),
    },
  ),
}
