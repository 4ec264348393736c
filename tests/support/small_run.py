"""Config of a small pretraining run on the embedded world, and its training alone."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np
import tensorstore

from pomp_jax.config import (
  Config,
  defaults,
  fields_of,
  load_job,
  validate,
  value_of_text,
)
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
  """Returns a copy with other values by full field name; a text stands for any type.

  Fields that only other jobs read are dropped, so that tests can share `changes`.
  """
  others = fields_of().keys() - fields_of(changes.get("job", config.job)).keys()
  return config.replace(
    {
      field: value_of_text(field, value) if isinstance(value, str) else value
      for field, value in changes.items()
      if field not in others
    }
  )


def settings(**changes) -> Config:
  """Returns the defaults with `changes`; see `changed`."""
  return changed(defaults(), changes)


def small_config(**changes) -> Config:
  """Returns settings of 300 classes and 12 steps, B=16, K=20; `changes` by full
  field name."""
  small = {
    "data.n_classes": 300,
    "data.images_per_class": 2,
    "k": 20,
    "batch_size": 16,
    "steps": 12,
    "optim.lr": 0.05,
    "optim.schedule": "step",
    "optim.warmup": 0.0,
    "eval.images": 64,
    "checkpoint.every": 4,
    "log.every": 2,
  }
  return changed(settings(**small), changes)


def run_job(config: Config, workdir: pathlib.Path | str) -> Any:
  """Validates, checks and runs a job as the command line does; returns its results."""
  validate(config)
  RunFolder(workdir).check(config.job)
  job = load_job(config.job)
  job.check(config, str(workdir))
  return job.run(config, str(workdir))


def trained(config: Config, workdir: pathlib.Path) -> np.ndarray:
  """Trains without the evaluation that follows, and returns the context."""
  folder = RunFolder(workdir)
  run = setup.prepare(config, folder)
  folder.create()
  return np.asarray(loop.train(run).state.params["context"])


def training_features(store: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
  """Returns the stored features [n,R,E] of these n and R, without the places beside
  them."""
  for folder in (store / "training").iterdir():
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    array = tensorstore.open(spec, open=True).result()
    if array.shape[:2] == shape:
      return array.read().result()[..., :-1]
  raise AssertionError(f"{store}: no features of {shape}")
