"""`config.dry_run`: a training on made-up data, and what the real one will take.

The same code on the same devices with the same shapes; the images are made-up JPEGs, and the
weights are random where the checkpoint is not at hand. Each part is timed a few times, and the
whole run added up from that. What is written goes to a temporary folder.
"""

import copy
import logging
import pathlib
import tempfile
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip import ClipError
from pomp_jax.clip.made_up import MADE_UP
from pomp_jax.config import MADE_UP_CLIP, MADE_UP_DATA, WORLD, ConfigError
from pomp_jax.data.vocabularies import CLASS_LISTS
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.prompt_file import save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import batches, inputs, pretrain, training
from pomp_jax.jobs.benchmark.measurement import peak_mib
from pomp_jax.transfer.evaluation import split_features

log = logging.getLogger(__name__)

_STEPS = 4  # timed, after one that is not; fewer where they are slow and one process runs
_SLOW_SECONDS = 60
_BATCHES = 4  # read alone, after as many as may lie ready
_TEST_IMAGES = 512


def check(config: ConfigDict, workdir: str) -> None:
  """Refuses what the run itself would refuse, as far as that is known without its data.

  Raises:
    ConfigError, ClipError, RunFolderError: one line each.
  """
  if config.job != "pretrain":
    takes = f"false where config.job={config.job!r}; it is for 'pretrain'"
    raise ConfigError("dry_run", True, takes)
  pretrain.check(_trial(config), workdir)


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Measures and prints; leaves nothing in `workdir`. Returns the figures."""
  trial = _trial(config)
  with tempfile.TemporaryDirectory() as temporary:
    folder = RunFolder(pathlib.Path(temporary) / "run")
    job = training.prepare(trial, folder)
    folder.create()
    figures = _measure(job)
  if hosts.is_first():
    for line in _lines(trial, job, figures):
      log.info("%s", line)
  return figures


def _trial(config: ConfigDict) -> ConfigDict:
  """The config on data, and if need be weights, that are made up."""
  trial = copy.deepcopy(config)
  if config.data.source != WORLD:
    names = config.data.base or config.data.names or config.data.dataset
    if names not in CLASS_LISTS and not pathlib.Path(names).is_file():
      takes = f"a file of names, or one of {', '.join(CLASS_LISTS)}, for a dry run"
      raise ConfigError("data.names", config.data.names, takes)
    trial.data.update(source=MADE_UP_DATA, root="", dataset="", names=names, shots=0)
    trial.data.update(base="", novel="")
    trial.data.feature_cache = ""
    if config.data.shots:
      trial.data.images_per_class = config.data.shots
  try:
    inputs.clip_config(config.clip.model)
  except ClipError:
    if config.clip.model not in MADE_UP:
      raise
    log.info("%s is not at hand: its architecture, with random weights", config.clip.model)
    trial.clip.model = MADE_UP_CLIP + config.clip.model
  return trial


def _measure(job: training.Run) -> dict[str, Any]:
  """Seconds, bytes and rates of every part."""
  config, encoder = job.config, job.encoder
  figures: dict[str, Any] = {"devices": jax.device_count(), "steps": job.total_steps}
  loader = batches.open_batches(config, job.source, job.fetch, encoder.mesh)
  read = _seconds(lambda: next(loader), _BATCHES, warm_up=2 * _BATCHES)
  figures["read_seconds"] = float(np.mean(read))
  batch = next(batches.on_devices(loader, encoder.mesh))
  loader.close()

  state, frozen = training.open_bank(job).refresh(0, training.first_state(job), job.frozen)
  start = time.monotonic()
  program = training.train_step(job).lower(state, frozen, batch).compile()
  figures["compile_seconds"] = time.monotonic() - start
  figures |= _memory(program)

  def step():
    nonlocal state
    state, metrics = program(state, frozen, batch)
    jax.block_until_ready(metrics)

  figures["step_seconds"] = float(np.median(_seconds(step, _STEPS, warm_up=1)))

  def classes():
    return encoder.features_of_tokens(state.params, job.frozen.tokens, job.module.position)

  figures["class_features_seconds"] = _seconds(classes, 1, warm_up=1)[0]
  split = inputs.evaluation_splits(config.data)[0]
  source = inputs.open_source(config.data, split, n_images=_TEST_IMAGES)
  read = {"threads": config.data.threads, "max_corrupt": config.data.max_corrupt}
  seconds = _seconds(lambda: split_features(encoder, source, **read), 1, 1)
  figures["test_images_per_second"] = len(source) / seconds[0]
  with Checkpoints(job.folder.checkpoints, 1) as checkpoints:
    figures["checkpoint_seconds"] = _seconds(
      lambda: checkpoints.save(1, state, {"config": config.to_dict()}, metric=0.5), 1, 0
    )[0]
  save_prompt(job.folder.prompt, training.prompt_of(job, state))
  figures["checkpoint_bytes"] = _bytes_under(job.folder.checkpoints)
  figures["prompt_bytes"] = job.folder.prompt.stat().st_size
  figures["process_peak_mib"] = peak_mib()
  return figures | _whole_run(job, figures)


def _seconds(call, times: int, warm_up: int) -> list[float]:
  """Of each of some calls, after some that are not counted."""
  for _ in range(warm_up):
    call()
  found: list[float] = []
  # Several processes have to agree how often: their clocks may not.
  while len(found) < times and (jax.process_count() > 1 or sum(found) < _SLOW_SECONDS):
    start = time.monotonic()
    call()
    found.append(time.monotonic() - start)
  return found


def _memory(program: jax.stages.Compiled) -> dict[str, float | None]:
  """What the step holds on a device, by the compiler's account; None where it gives none."""
  memory = program.memory_analysis()
  if memory is None:
    return {"device_arguments_mib": None, "device_temporaries_mib": None}
  return {
    "device_arguments_mib": memory.argument_size_in_bytes / 2**20,
    "device_temporaries_mib": memory.temp_size_in_bytes / 2**20,
  }


def _bytes_under(folder: pathlib.Path) -> int:
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _whole_run(job: training.Run, figures: dict[str, Any]) -> dict[str, Any]:
  """The run's seconds and bytes, added up."""
  config = job.config
  rate, classes = figures["test_images_per_second"], figures["class_features_seconds"]
  n_splits = len(inputs.evaluation_splits(config.data))
  n_validations = -(-job.total_steps // config.checkpoint.every)
  train = job.total_steps * max(figures["step_seconds"], figures["read_seconds"])
  validation = config.eval.images / rate + n_validations * classes
  # The learned prompt, the hand-written one and the name alone.
  evaluation = n_splits * (config.eval.images / rate + 3 * classes)
  total = train + validation + evaluation + n_validations * figures["checkpoint_seconds"]
  # Beside those that are kept, the best one and the one that is being written.
  disk = (config.checkpoint.keep + 2) * figures["checkpoint_bytes"] + figures["prompt_bytes"]
  return {
    "training_seconds": train,
    "validation_seconds": validation,
    "evaluation_seconds": evaluation,
    "total_seconds": total,
    "disk_bytes": disk,
    "feature_cache_bytes": _cache_bytes(job),
  }


def _cache_bytes(job: training.Run) -> int | None:
  """What the features of all views take; None where the views never come again."""
  shown = batches.augmentation(job.config.data)
  if shown.kind != "none" and not shown.fresh_epochs:
    return None
  width = job.encoder.clip.config.projection_dim
  return 4 * len(job.source) * shown.n_epochs * shown.n_views * width


def _lines(trial: ConfigDict, job: training.Run, figures: dict[str, Any]) -> list[str]:
  """The report."""
  step, read = figures["step_seconds"], figures["read_seconds"]
  bound = "reading the images is slower than the step" if read > step else "the step is slower"
  arguments, temporaries = figures["device_arguments_mib"], figures["device_temporaries_mib"]
  memory = "the backend does not say"
  if temporaries is not None:
    memory = f"{arguments:,.0f} MiB of weights and data, {temporaries:,.0f} MiB of temporaries"
  cache = figures["feature_cache_bytes"]
  return [
    f"dry run of {trial.clip.model} on {figures['devices']} {jax.devices()[0].device_kind}:"
    f" {len(job.source.names):,} classes, {len(job.source):,} training images, made up;"
    f" {figures['steps']:,} steps of {trial.batch_size:,} views",
    f"  step: {step:.3g} s ({trial.batch_size / step:,.0f} views/s), after"
    f" {figures['compile_seconds']:.0f} s of compiling",
    f"  reading: {read:.3g} s a batch ({trial.batch_size / read / jax.process_count():,.0f} views/s"
    f" of this host); {bound}",
    f"  memory of a device: {memory}",
    f"  memory of this host's process: {figures['process_peak_mib']:,.0f} MiB at most",
    f"  features of all classes: {figures['class_features_seconds']:.3g} s; test images:"
    f" {figures['test_images_per_second']:,.0f}/s",
    f"  disk: {figures['disk_bytes'] / 1e6:.1f} MB of checkpoints and prompt"
    + ("" if cache is None else f"; a cache of the features takes {cache / 1e9:.2f} GB"),
    f"  the whole run, added up: {_hours(figures['total_seconds'])} (training"
    f" {_hours(figures['training_seconds'])}, validation {_hours(figures['validation_seconds'])},"
    f" evaluation {_hours(figures['evaluation_seconds'])})",
  ]


def _hours(seconds: float) -> str:
  return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
