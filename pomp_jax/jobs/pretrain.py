"""The main job: learn a prompt on many classes, then see what it gained on classes it never saw.

A run's folder holds everything; a run that is started again goes on where it stopped, exactly.
"""

import contextlib
import dataclasses
import logging
import time

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
import optax

from pomp_jax.analysis import plots
from pomp_jax.clip import tokenize
from pomp_jax.clip.shared import MemoryPlan, plan_memory
from pomp_jax.clip.text import token_embeddings
from pomp_jax.config import ConfigError, fields
from pomp_jax.data.loader import train_batches
from pomp_jax.data.source import Source, StoredImages, spread_evenly
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, read_json, write_json
from pomp_jax.jobs import inputs
from pomp_jax.jobs.watch import Watch
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import ContextLearner, Frozen, Learner
from pomp_jax.prompt.optimizer import learning_rate, sgd
from pomp_jax.prompt.train_step import (
  CLASS,
  DATA,
  ContrastSettings,
  TrainState,
  create_state,
  make_train_step,
  replicate,
  step_token_budget,
)
from pomp_jax.transfer import Classifier, Encoder, topk_accuracy
from pomp_jax.transfer.evaluation import evaluate, split_features

log = logging.getLogger(__name__)

# Fields that a run may change between two starts: they leave its result as it is.
_FREE_FIELDS = (
  "log.every",
  "checkpoint.every",
  "checkpoint.keep",
  "data.threads",
  "data.root",
  "data.cache",
  "eval.cache",
)
# Fields of jobs that only read what it leaves, or run it.
_OTHER_JOBS = ("predict.", "evaluate.", "repeat.", "export.", "prepare.", "analyse.")
_SHEET_IMAGES = 12


@dataclasses.dataclass(frozen=True)
class Run:
  """A run made ready: everything that does not change during it."""

  config: ConfigDict
  folder: RunFolder
  encoder: Encoder
  source: Source
  module: PromptContext
  frozen: Frozen
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  total_steps: int


def check(config: ConfigDict, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing.

  Raises:
    ConfigError, ClipError, RunFolderError: one line each.
  """
  folder = RunFolder(workdir)
  folder.check()
  n_classes = inputs.n_training_classes(config.data)
  if config.negatives == "sampled" and config.k > n_classes:
    raise ConfigError("k", config.k, f"at most the number of classes, {n_classes}")
  class_size, n_devices = config.mesh.class_size, jax.device_count()
  if n_devices % class_size:
    raise ConfigError("mesh.class_size", class_size, f"a divisor of the {n_devices} devices")
  groups = n_devices // class_size * config.accumulate
  if config.batch_size % groups:
    raise ConfigError(
      "batch_size",
      config.batch_size,
      f"a multiple of {groups} (data axis {groups // config.accumulate} x accumulate"
      f" {config.accumulate})",
    )
  positions = inputs.clip_config(config.clip.model).text_config.max_position_embeddings
  if config.prompt.m > positions - 4:
    # SOS, a name of one token, "." and EOT need a place.
    raise ConfigError("prompt.m", config.prompt.m, f"at most {positions - 4} for this CLIP")
  if folder.config.exists():
    _check_same_run(config, read_json(folder.config), workdir)


def run(config: ConfigDict, workdir: str) -> dict:
  """Trains, evaluates, and leaves the run's folder; returns what `results.json` holds.

  Raises:
    TrainingError: the loss is not finite.
    ConfigError, VocabularyError, TokenizeError: found before anything is written.
  """
  folder = RunFolder(workdir)
  if folder.results.exists():
    log.info("%s: this run has finished; nothing to do", workdir)
    return read_json(folder.results)
  job = _prepare(config, folder)
  folder.create()
  if jax.process_index() == 0:
    write_json(folder.config, config.to_dict())
  state, seconds = _train(job)
  prompt = _prompt(job, state)
  results = _results(job, prompt, seconds)
  if jax.process_index() == 0:
    save_prompt(folder.prompt, prompt)
    _plot(job, prompt, results)
    # Last: a folder with results is a finished run.
    write_json(folder.results, results)
    _log_results(results, folder)
  return results


def _prepare(config: ConfigDict, folder: RunFolder) -> Run:
  encoder = inputs.open_encoder(config)
  source = inputs.open_source(config.data, "train", images_per_class=config.data.images_per_class)
  if isinstance(source, StoredImages):
    source = source.sized(encoder.clip.image_size)
  vocabulary = encoder.vocabulary(source.names, config.prompt.m)
  steps_per_epoch = max(1, len(source) // config.batch_size)
  total_steps = config.steps or config.epochs * steps_per_epoch
  optim = config.optim
  rate = learning_rate(
    schedule=optim.schedule,
    base=optim.lr,
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=optim.warmup_lr,
  )
  module = PromptContext(
    config.prompt.m,
    encoder.clip.text_width,
    config.prompt.position,
    n_classes=len(vocabulary) if config.prompt.class_specific else None,
    init_value=_initial_context(config, encoder),
  )
  return Run(
    config=config,
    folder=folder,
    encoder=encoder,
    source=source,
    module=module,
    frozen=encoder.frozen(vocabulary),
    optimizer=sgd(rate, optim.momentum, optim.weight_decay),
    rate=rate,
    total_steps=total_steps,
  )


def _initial_context(config: ConfigDict, encoder: Encoder) -> np.ndarray | None:
  """The embeddings of `prompt.init`'s words; None for a random start."""
  words = config.prompt.init
  if not words:
    return None
  clip = encoder.clip
  ids_1xL, _ = tokenize([words], clip.tokenizer, clip.config.text_config)
  ids_M = ids_1xL[0, :-1]
  if len(ids_M) != config.prompt.m:
    raise ConfigError(
      "prompt.init", words, f"words of prompt.m = {config.prompt.m} tokens; these are {len(ids_M)}"
    )
  return np.asarray(token_embeddings(clip.params, ids_M))


def _train(job: Run) -> tuple[TrainState, float]:
  """Steps from the last checkpoint, or from none, to the end; returns seconds over all starts."""
  config, encoder = job.config, job.encoder
  settings = _settings(job)
  learner = _learner(job, settings)
  state = replicate(create_state(learner, job.optimizer, config.seed), encoder.mesh)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(Checkpoints(job.folder.checkpoints, config.checkpoint.keep))
    restored = checkpoints.restore_latest(state)
    first, seconds = 0, 0.0
    if restored is not None:
      first, state = restored.step, restored.state
      seconds = restored.meta["seconds"]
      log.info("going on from the checkpoint of step %d", first)
    if first >= job.total_steps:
      return state, seconds
    train_step = make_train_step(
      mesh=encoder.mesh,
      learner=learner,
      image_tower=encoder.image_tower,
      optimizer=job.optimizer,
      settings=settings,
      accumulate=config.accumulate,
    )
    validate = _validation(job)
    batches = train_batches(
      job.source,
      batch_size=config.batch_size,
      seed=config.seed,
      start=first,
      shard=(jax.process_index(), jax.process_count()),
      threads=config.data.threads,
    )
    watch = stack.enter_context(
      Watch(job.folder, job.total_steps, first, config.log.every, config.batch_size, job.rate)
    )
    rows = NamedSharding(encoder.mesh, P(DATA))
    start = time.monotonic()
    for step in range(first + 1, job.total_steps + 1):
      batch = {
        name: jax.make_array_from_process_local_data(rows, array)
        for name, array in next(batches).items()
      }
      state, metrics = train_step(state, job.frozen, batch)
      watch.step(step, metrics)
      if step % config.checkpoint.every == 0 or step == job.total_steps:
        # What is saved is known to be good.
        watch.flush()
        top1 = validate(state)
        watch.scalar("validation_top1", top1, step)
        spent = seconds + time.monotonic() - start
        meta = {"seconds": spent, "position": step * config.batch_size, "config": config.to_dict()}
        checkpoints.save(step, state, meta, metric=top1)
    return state, spent


def _settings(job: Run) -> ContrastSettings:
  n_classes, clip = len(job.source.names), job.encoder.clip
  return ContrastSettings(_k(job), n_classes, job.config.correction, clip.logit_scale)


def _learner(job: Run, settings: ContrastSettings) -> Learner:
  """What is learned, within the step's token budget."""
  config, encoder = job.config, job.encoder
  token_budget = step_token_budget(
    job.module,
    np.asarray(job.frozen.tokens.lengths),
    settings=settings,
    group_size=config.batch_size // (encoder.mesh.shape[DATA] * config.accumulate),
    class_size=encoder.mesh.shape[CLASS],
  )
  text_tower = encoder.text_tower(token_budget, _memory_plan(job, token_budget))
  return ContextLearner(job.module, text_tower, token_budget)


def _k(job: Run) -> int:
  """K: with all negatives, N."""
  return len(job.source.names) if job.config.negatives == "all" else job.config.k


def _memory_plan(job: Run, token_budget: int) -> MemoryPlan:
  """`clip.keep` and `clip.n_chunks`, or the automatic choice where they leave it open."""
  clip = job.config.clip
  n_prefix = 1 + job.module.n_vectors - job.module.n_own
  plan = plan_memory(
    job.encoder.clip.config.text_config, n_prefix, token_budget, clip.memory_gib * 2**30
  )
  return MemoryPlan(clip.n_chunks or plan.n_chunks, plan.keep if clip.keep == "auto" else clip.keep)


def _validation(job: Run):
  """A function state -> top-1 on validation images, over all classes of the training."""
  source = inputs.open_source(job.config.data, "validation", n_images=job.config.eval.images)
  split = split_features(job.encoder, source)

  def top1(state: TrainState) -> float:
    class_features = job.encoder.features_of_tokens(
      state.params, job.frozen.tokens, job.module.position
    )
    return topk_accuracy(split.features, class_features, split.labels)["top1"]

  return top1


def _prompt(job: Run, state: TrainState) -> Prompt:
  return Prompt(
    context=np.asarray(state.params["context"]),
    clip_model=job.encoder.clip.name,
    position=job.module.position,
    config=job.config.to_dict(),
  )


def _results(job: Run, prompt: Prompt, seconds: float) -> dict:
  """Everything that `results.json` says."""
  config = job.config
  start = time.monotonic()
  splits = {}
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    # A class-specific context knows no class but those it was trained on.
    if not config.prompt.class_specific or tuple(source.names) == tuple(job.source.names):
      splits[name] = split_features(job.encoder, source)
  prompts = {"prompt": prompt, "hand_written": config.eval.template, "class_name": "{}."}
  scores = evaluate(job.encoder, splits, prompts)
  return {
    "job": config.job,
    "seed": config.seed,
    "steps": job.total_steps,
    "seconds": round(seconds, 2),
    "images_per_second": round(job.total_steps * config.batch_size / seconds, 1),
    "eval_seconds": round(time.monotonic() - start, 2),
    "clip_model": prompt.clip_model,
    "n_classes": len(job.source.names),
    "k": _k(job),
    "correction": config.correction,
    "eval_images": config.eval.images,
    "eval_classes": {name: len(split.names) for name, split in splits.items()},
    "eval": scores,
  }


def _plot(job: Run, prompt: Prompt, results: dict) -> None:
  series = job.folder.scalars()
  plots.training_curves(job.folder.plots / "training.png", series)
  plots.accuracy_bars(job.folder.plots / "accuracy.png", results["eval"])
  # Classes that the training did not see, where there are such.
  split = next(name for name in ("novel", "new", "test", "base") if name in results["eval"])
  source = inputs.open_source(job.config.data, split, n_images=_SHEET_IMAGES)
  shown = spread_evenly(_SHEET_IMAGES, len(source))
  images = source.images(shown)
  top3 = Classifier(job.encoder, prompt, source.names).predict(list(images), top=3)
  plots.prediction_sheet(
    job.folder.plots / "predictions.png",
    images,
    [source.names[label] for label in source.labels[shown]],
    [[name for name, _ in row] for row in top3],
    [[probability for _, probability in row] for row in top3],
  )


def _log_results(results: dict, folder: RunFolder) -> None:
  for split, scores in results["eval"].items():
    line = ", ".join(f"{name} {100 * score['top1']:.1f}%" for name, score in scores.items())
    log.info("%s top-1 over %d classes: %s", split, results["eval_classes"][split], line)
  log.info("prompt, results and plots are in %s", folder.path)


def _check_same_run(config: ConfigDict, stored: dict, workdir: str) -> None:
  """A folder holds one run: a start with another config is refused, not mixed in."""
  before = dict(fields(ConfigDict(stored)))
  for field, value in fields(config):
    was = before.get(field)
    was = tuple(was) if isinstance(was, list) else was
    free = field in _FREE_FIELDS or field.startswith(_OTHER_JOBS)
    if not free and was != value:
      raise ConfigError(
        field, value, f"{was!r}, with which {workdir} was started (or another --workdir)"
      )
