"""Measures a training on synthetic data, and estimates the cost of the real one.

The training's code runs on the training's devices with the training's shapes. Each part
is timed, a long part on some of its rows (`costs.py`), and the run's total is the sum.
Files go to a temporary folder. For a machine that is not here the step is only compiled
(`absent.py`).
"""

from collections.abc import Callable, Iterable, Mapping
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
from pomp_jax.clip import huggingface, openai_layout
from pomp_jax.clip.open_clip import named_clip
from pomp_jax.config import HERE, METHODS, SYNTHETIC_CLIP, WORLD
from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.fields import BEST, Data, Prompt
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data.class_lists import CLASS_LISTS
from pomp_jax.evaluate import opening
from pomp_jax.files.paths import exists, is_file
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hooks import CONSISTENCY
from pomp_jax.rooms.benchmark import absent, costs, forecast
from pomp_jax.rooms.benchmark.chips import machine_of
from pomp_jax.rooms.benchmark.fields import Price
from pomp_jax.rooms.benchmark.synthetic_clip import is_synthetic
from pomp_jax.train import pretrain, setup
from pomp_jax.train.training import PromptRun

log = logging.getLogger(__name__)


def check(config: Any, workdir: str) -> None:
  """Checks the dry run, and as much of the run as can be checked without its data.

  Args:
    config: config of the job `pretrain`, whose data need not be there.
    workdir: folder of the run.

  Raises:
    ConfigError: the job or the method has no dry run, or the run's config is wrong.
    InputError: the compiler of the machine is not installed.
  """
  if config.job != "pretrain":
    accepted = f"false where config.job={config.job!r}; it is for 'pretrain'"
    raise ConfigError("dry_run", config.dry_run, accepted)
  synthetic_data = changes_of(
    config.data, config.eval.images, config.clip.model, config.prompt
  )
  trial = config.replace(synthetic_data)
  if config.dry_run != HERE:
    if not METHODS[config.method].steps:
      raise ConfigError("method", config.method, "a method that trains by steps")
    absent.check(trial.dry_run, trial.mesh.class_size, trial.loop, trial.data.views)
    # `absent.check` has checked the mesh: check the rest for one device here.
    trial = trial.replace({"mesh.class_size": 1})
  pretrain.check(trial, workdir)


def run(config: TrainingConfig, workdir: str) -> dict[str, Any]:
  """Measures, logs the report, and returns the figures; writes nothing to `workdir`."""
  changes = changes_of(
    config.data, config.eval.images, config.clip.model, config.prompt
  )
  trial = config.replace(changes)
  with tempfile.TemporaryDirectory() as temporary:
    if config.dry_run != HERE:
      rate = trial.of(Price).dry_run_rate
      return _forecast(trial.dry_run, rate, trial.replace, temporary)
    folder = RunFolder(pathlib.Path(temporary) / "run")
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


def _forecast(
  machine_name: str,
  rate: float,
  replace: Callable[[Mapping[str, Any]], Any],
  temporary: str,
) -> dict[str, Any]:
  """Compiles the step for a machine that is not here, and logs the forecast.

  Args:
    machine_name: value of `dry_run`.
    rate: price of an hour.
    replace: copies the training's config with other values.
    temporary: temporary folder, which the caller removes.
  """
  folder = RunFolder(pathlib.Path(temporary) / "run")

  def job_of(changes: Mapping[str, Any]) -> absent.Job:
    changed = replace(changes)
    return absent.Job(
      clip=changed.clip,
      class_size=changed.mesh.class_size,
      loop=changed.loop,
      data=changed.data,
      prepare=lambda encoder: setup.prepare(changed, folder, encoder=encoder),
    )

  # A signal can't interrupt the compiler, so it ends the process and removes the files.
  remove = functools.partial(shutil.rmtree, temporary, ignore_errors=True)
  with hosts.ending_at_once(remove):
    outcome = absent.run(machine_name, job_of)
  machine = machine_of(machine_name)
  figures = forecast.figures_of(outcome, machine, rate)
  _log(forecast.lines(outcome.there, machine, figures))
  return figures


def _log(lines: Iterable[str]) -> None:
  """Logs lines on the first process."""
  if hosts.is_first():
    for line in lines:
      log.info("%s", line)


def _is_here(model: str) -> bool:
  """Whether a CLIP's weights are on this machine; the hub is not asked."""
  source, file, _ = named_clip(model)
  if source == WORLD or exists(source):
    return True
  names = [file] if file else [*huggingface.WEIGHTS, *openai_layout.WEIGHTS]
  return any(isinstance(try_to_load_from_cache(source, name), str) for name in names)


def changes_of(data: Data, n_images: int, model: str, prompt: Prompt) -> dict[str, Any]:
  """Returns the fields that a dry run changes, so that nothing is downloaded.

  Images are synthetic JPEGs, unless the data has a folder that exists.

  Args:
    data: settings of the data.
    n_images: number of images of an evaluation, 0 for all.
    model: name of the CLIP.
    prompt: settings of the prompt.

  Raises:
    ConfigError: the class names are known only from the data, which is not here.
  """
  changes: dict[str, Any] = {}
  if CONSISTENCY:
    # Use one anchor text: scoring candidate texts would need the weights, and an anchor
    # costs a step the same for any text.
    changes["anchors"] = "{}."
  if prompt.init == BEST:
    changes |= {"prompt.init": "", "prompt.m": prompt.m or 4}
  if data.has_folder:
    if not n_images:
      splits = opening.evaluation_splits(data)
      n_images = sum(len(opening.open_source(data, split)) for split in splits)
      changes["eval.images"] = max(1, n_images // len(splits))
  elif data.source != WORLD:
    names = data.base or data.names or data.dataset
    accepted = f"a file of names, or one of {', '.join(CLASS_LISTS)}, for a dry run"
    is_known = names in CLASS_LISTS or is_file(names)
    require(is_known, "data.names", data.names, accepted)
    changes |= {"data.source": "synthetic", "data.names": names, "data.shots": 0}
    for field in ("root", "dataset", "base", "novel", "feature_store"):
      changes[f"data.{field}"] = ""
    if data.shots:
      changes["data.images_per_class"] = data.shots
  # Keep a checkpoint on the disk, which has its own tokenizer. A checkpoint of the hub
  # would be downloaded: replace it.
  if is_synthetic(model) and not os.path.exists(model):
    changes["clip.model"] = SYNTHETIC_CLIP + model
  return changes


def _random_features(
  shape: tuple[int, int], indices: np.ndarray, epochs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draws features [B,V,E] in place of stored ones, which a dry run has not computed.

  Returns the features, and a mask [B] of the readable images: all are.
  """
  rng = np.random.default_rng(indices)
  features_BxVxE = rng.standard_normal((len(indices), *shape), np.float32)
  return features_BxVxE, np.ones(len(indices), bool)


def _whole_run(run: PromptRun, figures: dict[str, Any]) -> dict[str, Any]:
  """Adds up the seconds and bytes of the run."""
  test = figures["test_images"]
  all_classes = figures["class_features"].seconds
  test_images = run.eval.images * test.seconds / test.total
  n_views = 0
  if run.data.features == "stored":
    n_views = costs.stored_views(run)
  views = n_views * test.seconds / test.total
  # Reading and computing overlap: the slower one sets the pace.
  step = max(figures["step_seconds"], figures["read"].seconds)
  training = run.total_steps * step
  if run.needs_bank:
    training += all_classes  # fills the first bank
  # Round up: the last step is validated, too.
  n_validations = -(-run.total_steps // run.checkpoint.every)
  validation = test_images + n_validations * all_classes
  checkpoints = n_validations * figures["checkpoint_seconds"]
  # An evaluation covers the learned prompt, the hand-written one and the name alone.
  n_splits = len(opening.evaluation_splits(run.data))
  evaluation = n_splits * (test_images + 3 * all_classes)
  # Besides `keep` checkpoints a run has the best one and the one being written.
  n_checkpoints = run.checkpoint.keep + 2
  disk = n_checkpoints * figures["checkpoint_bytes"] + figures["prompt_bytes"]
  # A stored view is a feature and a number, four bytes each.
  view_bytes = 4 * (run.encoder.clip.config.projection_dim + 1)
  return {
    "training_features_seconds": views,
    "training_seconds": training,
    "validation_seconds": validation,
    "evaluation_seconds": evaluation,
    "total_seconds": views + training + validation + evaluation + checkpoints,
    "disk_bytes": disk,
    # None if no features are stored.
    "stored_features_bytes": n_views * view_bytes or None,
  }


def _lines(run: PromptRun, figures: dict[str, Any]) -> list[str]:
  """Writes the report of a run that was measured here."""
  batch_size = run.loop.batch_size
  step = figures["step_seconds"]
  read = figures["read"]
  bound = "reading the images" if read.seconds > step else "the step"
  memory = "the backend does not say"
  if "device_temporaries_mib" in figures:
    memory = (
      f"{figures['device_arguments_mib']:,.0f} MiB of weights and data,"
      f" {figures['device_temporaries_mib']:,.0f} MiB of temporaries"
    )
  measured = ", measured in whole"
  not_run = ""
  if "step_images" in figures:  # the step was too long to run: its parts were timed
    images = _with_origin(figures["step_images"])
    classes = _with_origin(figures["step_classes"])
    measured = f", of parts (images: {images}; classes: {classes})"
    not_run = ", the whole step not run"
  origin = "" if run.data.has_folder else ", synthetic"
  device_kind = hosts.devices()[0].device_kind
  rate = batch_size / read.seconds / jax.process_count()
  test = figures["test_images"]
  disk = f"{figures['disk_bytes'] / 1e6:.1f} MB of checkpoints and prompt"
  cache = figures["stored_features_bytes"]
  if cache is not None:
    disk += f"; stored features take {cache / 1e9:.2f} GB"
  return [
    f"dry run of {run.clip.model} on {figures['devices']} {device_kind}:"
    f" {len(run.source.names):,} classes, {len(run.source):,} training images{origin};"
    f" {figures['steps']:,} steps of {batch_size:,} views",
    f"  step: {step:.3g} s ({batch_size / step:,.3g} views/s){measured};"
    f" compiled in {figures['compile_seconds']:.0f} s",
    f"  reading: {_with_origin(read)} a batch ({rate:,.3g} views/s of this host);"
    f" {bound} is slower",
    f"  memory of a device: {memory}",
    f"  memory of this host's process: {figures['process_peak_mib']:,.0f} MiB at most"
    f"{not_run}",
    f"  features of all classes: {_with_origin(figures['class_features'])};"
    f" test images: {_with_origin(test)}, {test.total / test.seconds:,.3g}/s",
    f"  disk: {disk}",
    f"  the whole run, added up: {_hours(figures['total_seconds'])} (features of training images"
    f" {_hours(figures['training_features_seconds'])}, training"
    f" {_hours(figures['training_seconds'])}, validation {_hours(figures['validation_seconds'])},"
    f" evaluation {_hours(figures['evaluation_seconds'])})",
  ]


def _with_origin(cost: costs.Cost) -> str:
  """A time, and whether it was measured on all rows."""
  if cost.measured < cost.total:
    return f"{cost.seconds:.3g} s, scaled from {cost.measured:,} of {cost.total:,}"
  return f"{cost.seconds:.3g} s"


def _hours(seconds: float) -> str:
  if seconds < 3600:
    return f"{seconds / 60:.1f} min"
  return f"{seconds / 3600:.1f} h"
