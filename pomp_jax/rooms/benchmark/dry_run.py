"""Measures a training on synthetic data, and estimates the cost of the real one.

The same code runs on the same devices with the same shapes. Each part is timed, a long
one on some of its rows (`costs.py`), and the run's total is the sum. Files go to a
temporary folder. For a machine that is not here the step is compiled only
(`absent.py`).
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import logging
import os
import pathlib
import shutil
import tempfile
from typing import Any

from huggingface_hub import try_to_load_from_cache
import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip import huggingface, openai
from pomp_jax.clip.open_clip import named_clip
from pomp_jax.config import HERE, METHODS, SYNTHETIC_CLIP, WORLD
from pomp_jax.config.declare import require
from pomp_jax.config.fields import BEST, Data, Prompt
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data.class_lists import CLASS_LISTS
from pomp_jax.evaluate import inputs
from pomp_jax.files.paths import exists, is_file
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import CONSISTENCY
from pomp_jax.rooms.benchmark import absent, costs, forecast
from pomp_jax.rooms.benchmark.chips import machine_of
from pomp_jax.rooms.benchmark.fields import Price
from pomp_jax.rooms.benchmark.synthetic_clip import is_synthetic
from pomp_jax.train import pretrain, setup

log = logging.getLogger(__name__)


def check(config: Any, workdir: str) -> None:
  """Refuses what the run itself would refuse, as far as that is known without its
  data."""
  takes = f"false where config.job={config.job!r}; it is for 'pretrain'"
  require(config.job == "pretrain", "dry_run", config.dry_run, takes)
  changes = changes_of(
    config.data, config.eval.images, config.clip.model, config.prompt
  )
  trial = config.replace(changes)
  if config.dry_run != HERE:
    require(
      METHODS[config.method].steps,
      "method",
      config.method,
      "a method that trains by steps",
    )
    absent.check(trial.dry_run, trial.mesh.class_size, trial.loop, trial.data.views)
    trial = trial.replace({"mesh.class_size": 1})  # of the devices here
  pretrain.check(trial, workdir)


def run(config: TrainingConfig, workdir: str) -> dict[str, Any]:
  """Measures and logs the report; leaves nothing in `workdir`. Returns the figures."""
  changes = changes_of(
    config.data, config.eval.images, config.clip.model, config.prompt
  )
  trial = config.replace(changes)
  with tempfile.TemporaryDirectory() as temporary:
    folder = RunFolder(pathlib.Path(temporary) / "run")
    if config.dry_run != HERE:

      def job_of(changes: Mapping[str, Any]) -> absent.Job:
        tried = trial.replace(changes)
        prepare = lambda encoder: setup.prepare(tried, folder, encoder=encoder)
        return absent.Job(
          tried.clip, tried.mesh.class_size, tried.loop, tried.data, prepare
        )

      machine = machine_of(config.dry_run)
      remove = functools.partial(shutil.rmtree, temporary, ignore_errors=True)
      with hosts.ending_at_once(remove):
        outcome = absent.run(config.dry_run, job_of)
      figures = forecast.figures_of(outcome, machine, config.of(Price).dry_run_rate)
      _log(forecast.lines(outcome.there, machine, figures))
      return figures
    run = setup.prepare(trial, folder)
    if trial.data.features == "stored":
      shape = trial.data.views, run.encoder.clip.config.projection_dim
      run = dataclasses.replace(run, fetch=functools.partial(_random_features, shape))
    folder.create()
    figures = costs.measure(run)
  figures |= _whole_run(run, figures)
  _log(_lines(run, figures))
  is_random = trial.clip.model != config.clip.model and not _is_here(config.clip.model)
  if hosts.is_first() and is_random:
    log.warning(
      "the weights of %s are not on this machine: a file is needed, or the run downloads them",
      config.clip.model,
    )
  return figures


def _log(lines: Iterable[str]) -> None:
  if hosts.is_first():
    for line in lines:
      log.info("%s", line)


def _is_here(model: str) -> bool:
  """Whether a CLIP's weights are on this machine; the hub is not asked."""
  source, file, _ = named_clip(model)
  names = [file] if file else [*huggingface.WEIGHTS, *openai.WEIGHTS]
  cached = lambda name: isinstance(try_to_load_from_cache(source, name), str)
  return source == WORLD or exists(source) or any(map(cached, names))


def changes_of(data: Data, n_images: int, model: str, prompt: Prompt) -> dict[str, Any]:
  """Fields for synthetic JPEGs, or for a folder that exists; nothing is downloaded."""
  changes: dict[str, Any] = {}
  if CONSISTENCY:
    # No candidates are scored, and an anchor of one text costs a step as much.
    changes["anchors"] = "{}."
  if prompt.init == BEST:
    changes |= {"prompt.init": "", "prompt.m": prompt.m or 4}
  if data.has_folder:
    if not n_images:
      splits = inputs.evaluation_splits(data)
      n_images = sum(len(inputs.open_source(data, split)) for split in splits)
      changes["eval.images"] = max(1, n_images // len(splits))
  elif data.source != WORLD:
    names = data.base or data.names or data.dataset
    takes = f"a file of names, or one of {', '.join(CLASS_LISTS)}, for a dry run"
    require(names in CLASS_LISTS or is_file(names), "data.names", data.names, takes)
    changes |= {"data.source": "synthetic", "data.names": names, "data.shots": 0}
    for field in ("root", "dataset", "base", "novel", "feature_store"):
      changes[f"data.{field}"] = ""
    if data.shots:
      changes["data.images_per_class"] = data.shots
  # A checkpoint on the disk has its own tokenizer; one of the hub's would be
  # downloaded.
  if is_synthetic(model) and not os.path.exists(model):
    changes["clip.model"] = SYNTHETIC_CLIP + model
  return changes


def _random_features(
  shape: tuple[int, int], indices: np.ndarray, epochs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Stands for reading stored features [B,V,E], as there are none."""
  rng = np.random.default_rng(indices)
  return rng.standard_normal((len(indices), *shape), np.float32), np.ones(
    len(indices), bool
  )


def _whole_run(run: setup.PromptRun, figures: dict[str, Any]) -> dict[str, Any]:
  """The run's seconds and bytes, added up."""
  n_views = costs.stored_views(run)
  test, classes = figures["test_images"], figures["class_features"].seconds
  images = run.eval.images * test.seconds / test.total
  n_splits = len(inputs.evaluation_splits(run.data))
  n_validations = -(-run.total_steps // run.checkpoint.every)
  step = max(figures["step_seconds"], figures["read"].seconds)
  train = run.total_steps * step + (classes if run.needs_bank else 0)
  views = n_views * test.seconds / test.total if run.data.features == "stored" else 0.0
  validation = images + n_validations * classes
  # An evaluation covers the learned prompt, the hand-written one and the name alone.
  evaluation = n_splits * (images + 3 * classes)
  total = (
    views
    + train
    + validation
    + evaluation
    + n_validations * figures["checkpoint_seconds"]
  )
  # Beside `keep` checkpoints there are the best one and the one that is being written.
  disk = (run.checkpoint.keep + 2) * figures["checkpoint_bytes"] + figures[
    "prompt_bytes"
  ]
  return {
    "training_features_seconds": views,
    "training_seconds": train,
    "validation_seconds": validation,
    "evaluation_seconds": evaluation,
    "total_seconds": total,
    "disk_bytes": disk,
    "stored_features_bytes": 4 * n_views * (run.encoder.clip.config.projection_dim + 1)
    or None,
  }


def _lines(run: setup.PromptRun, figures: dict[str, Any]) -> list[str]:
  batch_size, step, read = run.loop.batch_size, figures["step_seconds"], figures["read"]
  bound = "reading the images" if read.seconds > step else "the step"
  memory = "the backend does not say"
  if "device_temporaries_mib" in figures:
    memory = (
      f"{figures['device_arguments_mib']:,.0f} MiB of weights and data,"
      f" {figures['device_temporaries_mib']:,.0f} MiB of temporaries"
    )
  # Parts that the step's time was added up from; none if it was measured in whole.
  names = [name for name in ("images", "classes") if f"step_{name}" in figures]
  parts = [f"{name}: {_of(figures[f'step_{name}'])}" for name in names]
  cache = figures["stored_features_bytes"]
  origin = "" if run.data.has_folder else ", synthetic"
  test, classes = figures["test_images"], figures["class_features"]
  rate = batch_size / read.seconds / jax.process_count()
  return [
    f"dry run of {run.clip.model} on {figures['devices']} {hosts.devices()[0].device_kind}:"
    f" {len(run.source.names):,} classes, {len(run.source):,} training images{origin};"
    f" {figures['steps']:,} steps of {batch_size:,} views",
    f"  step: {step:.3g} s ({batch_size / step:,.3g} views/s)"
    + (f", of parts ({'; '.join(parts)})" if parts else ", measured in whole")
    + f"; compiled in {figures['compile_seconds']:.0f} s",
    f"  reading: {_of(read)} a batch ({rate:,.3g} views/s of this host); {bound} is slower",
    f"  memory of a device: {memory}",
    f"  memory of this host's process: {figures['process_peak_mib']:,.0f} MiB at most"
    + (", the whole step not run" if parts else ""),
    f"  features of all classes: {_of(classes)}; test images: {_of(test)},"
    f" {test.total / test.seconds:,.3g}/s",
    f"  disk: {figures['disk_bytes'] / 1e6:.1f} MB of checkpoints and prompt"
    + ("" if cache is None else f"; stored features take {cache / 1e9:.2f} GB"),
    f"  the whole run, added up: {_hours(figures['total_seconds'])} (features of training images"
    f" {_hours(figures['training_features_seconds'])}, training"
    f" {_hours(figures['training_seconds'])}, validation {_hours(figures['validation_seconds'])},"
    f" evaluation {_hours(figures['evaluation_seconds'])})",
  ]


def _of(cost: costs.Cost) -> str:
  """A time, and where it comes from."""
  part = f", scaled from {cost.measured:,} of {cost.total:,}"
  return f"{cost.seconds:.3g} s" + part * (cost.measured < cost.total)


def _hours(seconds: float) -> str:
  return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
