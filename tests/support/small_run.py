"""Config of a small pretraining run on the synthetic world, and its training alone."""

import pathlib

from ml_collections import ConfigDict
import numpy as np

from pomp_jax.config import base
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup


def small_config(**changes) -> ConfigDict:
  """Returns a config of 300 classes and 12 steps, B=16, K=20; `changes` by full field name."""
  config = base()
  settings = {
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
  config.update_from_flattened_dict(settings | changes)
  return config


def trained(config: ConfigDict, workdir: pathlib.Path) -> np.ndarray:
  """Trains without the evaluation that follows, and returns the context."""
  folder = RunFolder(workdir)
  job = setup.prepare(config, folder)
  folder.create()
  return np.asarray(loop.train(job).state.params["context"])
