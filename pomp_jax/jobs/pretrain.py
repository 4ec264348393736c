"""The main job: learn a prompt on many classes, then see what it gained on classes it never saw.

`config.method` puts a baseline in the prompt's place; everything else stays as it is. A run's
folder holds everything; a run that is started again goes on where it stopped, exactly.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import logging
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import optax

from pomp_jax.analysis import plots
from pomp_jax.clip import tokenize
from pomp_jax.clip.shared import MemoryPlan, activation_bytes, plan_memory
from pomp_jax.clip.text import token_embeddings
from pomp_jax.config import FEATURE_METHODS, STEP_METHODS, ConfigError, fields
from pomp_jax.data.loader import Fetch
from pomp_jax.data.source import Source, spread_evenly
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, read_json, write_json
from pomp_jax.jobs import batches, feature_methods, inputs, methods
from pomp_jax.jobs.bank import Bank
from pomp_jax.jobs.class_relations import sampling_arrays, sampling_of
from pomp_jax.jobs.watch import Watch
from pomp_jax.prompt.context import PromptContext
from pomp_jax.prompt.learner import Frozen, Learner
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
  "data.workers",
  "data.cache",
  "data.features",
  "data.feature_cache",
  "eval.cache",
)
# Fields of jobs that only read what it leaves, or run it.
_OTHER_JOBS = (
  "predict.",
  "evaluate.",
  "repeat.",
  "export.",
  "prepare.",
  "analyse.",
  "baselines.",
  "ablate.",
)
_SHEET_IMAGES = 12


@dataclasses.dataclass(frozen=True)
class Run:
  """A run made ready: everything that does not change during it."""

  config: ConfigDict
  folder: RunFolder
  encoder: Encoder
  source: Source
  fetch: Fetch
  module: PromptContext
  frozen: Frozen
  optimizer: optax.GradientTransformation
  rate: optax.Schedule
  steps_per_epoch: int
  total_steps: int


def check(config: ConfigDict, workdir: str) -> None:
  """Refuses what can't work before weights are read; writes nothing.

  Raises:
    ConfigError, ClipError, RunFolderError: one line each.
  """
  folder = RunFolder(workdir)
  folder.check()
  n_classes = inputs.n_training_classes(config.data)
  clip = inputs.clip_config(config.clip.model)
  if config.method in STEP_METHODS:
    _check_step(config, n_classes, clip.text_config.max_position_embeddings)
    methods.check(config, clip)
  if folder.config.exists():
    _check_same_run(config, read_json(folder.config), workdir)


def _check_step(config: ConfigDict, n_classes: int, positions: int) -> None:
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
  if config.prompt.m > positions - 4:
    # SOS, a name of one token, "." and EOT need a place.
    raise ConfigError("prompt.m", config.prompt.m, f"at most {positions - 4} for this CLIP")


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
  if config.method in FEATURE_METHODS:
    return feature_methods.run(config, folder)
  job = prepare(config, folder)
  folder.create()
  if jax.process_index() == 0:
    write_json(folder.config, config.to_dict())
  state, seconds, unreadable = _train(job)
  prompt = prompt_of(job, state) if config.method == "pomp" else None
  results = _results(job, prompt or state.params, seconds) | {"unreadable_images": len(unreadable)}
  # On the devices of all processes, so by all of them.
  sheet = _prediction_sheet(job, prompt, results) if prompt else None
  if jax.process_index() == 0:
    plots.training_curves(folder.plots / "training.png", folder.scalars())
    plots.accuracy_bars(folder.plots / "accuracy.png", results["eval"])
    if prompt:
      save_prompt(folder.prompt, prompt)
      plots.prediction_sheet(folder.plots / "predictions.png", *sheet)
    # Last: a folder with results is a finished run.
    write_json(folder.results, results)
    _log_results(results, folder)
  return results


def prepare(
  config: ConfigDict,
  folder: RunFolder,
  *,
  encoder: Encoder | None = None,
  source: Source | None = None,
  frozen: Frozen | None = None,
) -> Run:
  """Opens everything, and writes nothing.

  Args:
    config: of the run.
    folder: of the run.
    encoder: of another run with the same CLIP on the same devices; opened if None.
    source: of another run with the same images.
    frozen: of another run with the same CLIP, names and M.

  Raises:
    ConfigError, VocabularyError, TokenizeError, FeatureCacheError: one line each.
  """
  encoder = encoder or inputs.open_encoder(config)
  source = source or inputs.open_training_source(config.data, encoder.clip.image_size)
  fetch = batches.open_fetch(config.data, source, encoder)
  steps_per_epoch = max(1, len(source) * config.data.views // config.batch_size)
  total_steps = config.steps or config.epochs * steps_per_epoch
  optimizer, rate = optimizer_of(config.optim, steps_per_epoch, total_steps)
  module = PromptContext(
    config.prompt.m,
    encoder.clip.text_width,
    config.prompt.position,
    n_classes=len(source.names) if config.prompt.class_specific else None,
    init_value=_initial_context(config, encoder),
  )
  return Run(
    config=config,
    folder=folder,
    encoder=encoder,
    source=source,
    fetch=fetch,
    module=module,
    frozen=(frozen or methods.frozen_of(config, encoder, source.names))._replace(
      sampling=replicate(sampling_arrays(config, source.names, source.labels), encoder.mesh)
    ),
    optimizer=optimizer,
    rate=rate,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )


def optimizer_of(
  optim: Any, steps_per_epoch: int, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer and its learning rate.

  Args:
    optim: `config.optim`, or what has its fields; rates, momentum and decay may be traced.
    steps_per_epoch: batches that show all images once.
    total_steps: of the whole run.
  """
  rate = learning_rate(
    schedule=optim.schedule,
    base=optim.lr,
    epochs=total_steps / steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    warmup=optim.warmup,
    warmup_rate=optim.warmup_lr,
  )
  return sgd(rate, optim.momentum, optim.weight_decay), rate


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


def _train(job: Run) -> tuple[TrainState, float, list[int]]:
  """Steps from the last checkpoint, or from none, to the end.

  Returns:
    The last state; over all starts the seconds, and the images that could not be read.
  """
  config, encoder = job.config, job.encoder
  state, bank, frozen = first_state(job), open_bank(job), job.frozen
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(Checkpoints(job.folder.checkpoints, config.checkpoint.keep))
    restored = checkpoints.restore_latest(state)
    first, seconds, unreadable = 0, 0.0, []
    if restored is not None:
      first, state = restored.step, restored.state
      seconds, unreadable = restored.meta["seconds"], restored.meta.get("unreadable", [])
      log.info("going on from the checkpoint of step %d", first)
    if first >= job.total_steps:
      return state, seconds, unreadable
    step_once = train_step(job)
    validate = _validation(job)
    loader = stack.enter_context(
      contextlib.closing(
        batches.open_batches(
          config,
          job.source,
          job.fetch,
          encoder.mesh,
          start=first,
          unreadable=frozenset(unreadable),
        )
      )
    )
    on_devices = batches.on_devices(loader, encoder.mesh)
    watch = stack.enter_context(
      Watch(job.folder, job.total_steps, first, config.log.every, config.batch_size, job.rate)
    )
    start = time.monotonic()
    for step in range(first + 1, job.total_steps + 1):
      state, frozen = bank.refresh(step - 1, state, frozen)
      state, metrics = step_once(state, frozen, next(on_devices))
      watch.step(step, metrics)
      if step % config.checkpoint.every == 0 or step == job.total_steps:
        # What is saved is known to be good.
        watch.flush()
        top1 = validate(state)
        watch.scalar("validation_top1", top1, step)
        spent = seconds + time.monotonic() - start
        unreadable = batches.unreadable_anywhere(loader.unreadable)
        meta = {
          "seconds": spent,
          "position": step * config.batch_size,
          "unreadable": unreadable,
          "config": config.to_dict(),
        }
        checkpoints.save(step, state, meta, metric=top1)
    return state, spent, unreadable


def first_state(job: Run) -> TrainState:
  """The state of step 0, on the devices."""
  state = create_state(_learner(job, _settings(job)), job.optimizer, job.config.seed)
  return replicate(open_bank(job).start(state), job.encoder.mesh)


def open_bank(job: Run, params_of: Callable[[Any], Any] = lambda params: params) -> Bank:
  """The bank that the step's sampler reads, if it reads one.

  Args:
    job: the run.
    params_of: the run's parameters, out of those that are given to the bank.
  """
  return Bank(
    job.config.sampling.refresh_every,
    job.encoder.mesh,
    lambda params: _class_features(job, params_of(params)),
    needed=needs_bank(job),
  )


def needs_bank(job: Run) -> bool:
  """Whether the step's sampler compares features of all classes, under this run's prompt."""
  return _settings(job).sampling.needs_bank


def train_step(
  job: Run, correction: str | jax.Array | None = None
) -> Callable[..., tuple[TrainState, dict]]:
  """The step, which is compiled when it is first called.

  Args:
    job: the run.
    correction: in place of the config's.
  """
  config, encoder, settings = job.config, job.encoder, _settings(job)
  if correction is not None:
    settings = dataclasses.replace(settings, correction=correction)
  learner = _learner(job, settings)
  frozen_images = config.data.features == "online" and not learner.learns_images
  return make_train_step(
    mesh=encoder.mesh,
    learner=learner,
    image_tower=encoder.image_tower if frozen_images else None,
    optimizer=job.optimizer,
    settings=settings,
    accumulate=config.accumulate,
  )


def step_bytes(job: Run) -> float:
  """What the activations of a step would take in a device's memory, all kept, roughly."""
  config = job.encoder.clip.config.text_config
  return activation_bytes(config, _n_prefix(job), _token_budget(job, _settings(job)))


def _settings(job: Run) -> ContrastSettings:
  n_classes, clip = len(job.source.names), job.encoder.clip
  sampling = job.config.sampling
  return ContrastSettings(
    _k(job),
    n_classes,
    job.config.correction,
    clip.logit_scale,
    sampling_of(sampling),
    sampling.ancestors_weight,
  )


def _learner(job: Run, settings: ContrastSettings) -> Learner:
  """What is learned, within the step's token budget."""
  token_budget = _token_budget(job, settings)
  text_tower = job.encoder.text_tower(token_budget, _memory_plan(job, token_budget))
  return methods.make_learner(job.config, job.encoder, job.module, text_tower, token_budget)


def _token_budget(job: Run, settings: ContrastSettings) -> int:
  config, mesh = job.config, job.encoder.mesh
  return step_token_budget(
    job.module,
    np.asarray(job.frozen.tokens.lengths),
    settings=settings,
    group_size=_group_size(job),
    class_size=mesh.shape[CLASS],
  )


def _group_size(job: Run) -> int:
  """B, images of a draw."""
  return job.config.batch_size // (job.encoder.mesh.shape[DATA] * job.config.accumulate)


def _k(job: Run) -> int:
  """K: with all negatives, N."""
  return len(job.source.names) if job.config.negatives == "all" else job.config.k


def _memory_plan(job: Run, token_budget: int) -> MemoryPlan:
  """`clip.keep` and `clip.n_chunks`, or the automatic choice where they leave it open."""
  clip = job.config.clip
  # Where each image has class features of its own they share what there is.
  n_times = _group_size(job) if job.config.method == "cocoop" else 1
  limit_bytes = clip.memory_gib * 2**30 / n_times
  plan = plan_memory(job.encoder.clip.config.text_config, _n_prefix(job), token_budget, limit_bytes)
  return MemoryPlan(clip.n_chunks or plan.n_chunks, plan.keep if clip.keep == "auto" else clip.keep)


def _n_prefix(job: Run) -> int:
  return 1 + job.module.n_vectors - job.module.n_own


def _validation(job: Run):
  """A function state -> top-1 on validation images, over all classes of the training."""
  source = inputs.open_source(job.config.data, "validation", n_images=job.config.eval.images)
  split = split_features(job.encoder, source, threads=job.config.data.threads)
  if job.config.method != "pomp":
    accuracy = methods.accuracy_of_learner(job.config, job.encoder, job.module)
    return lambda state: accuracy(state.params, split, source)["top1"]

  def top1(state: TrainState) -> float:
    class_features = _class_features(job, state.params)
    return topk_accuracy(split.features, class_features, split.labels)["top1"]

  return top1


def _class_features(job: Run, params) -> np.ndarray:
  """Unit features of all classes of the training under a prompt [N,E]."""
  return job.encoder.features_of_tokens(params, job.frozen.tokens, job.module.position)


def prompt_of(job: Run, state: TrainState) -> Prompt:
  """What a state has learned, as it is saved."""
  return Prompt(
    context=np.asarray(state.params["context"]),
    clip_model=job.encoder.clip.name,
    position=job.module.position,
    config=job.config.to_dict(),
  )


def _results(job: Run, learned: Any, seconds: float) -> dict:
  """Everything that `results.json` says of a prompt, or of the parameters of another method."""
  config = job.config
  start = time.monotonic()
  splits, sources = {}, {}
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    # A class-specific context knows no class but those it was trained on.
    if not config.prompt.class_specific or tuple(source.names) == tuple(job.source.names):
      sources[name] = source
      splits[name] = split_features(job.encoder, source, threads=config.data.threads)
  prompts = {"hand_written": config.eval.template, "class_name": "{}."}
  if isinstance(learned, Prompt):
    scores = evaluate(job.encoder, splits, {"prompt": learned} | prompts)
  else:
    scores = evaluate(job.encoder, splits, prompts)
    accuracy = methods.accuracy_of_learner(config, job.encoder, job.module)
    for name, split in splits.items():
      scores[name]["prompt"] = accuracy(learned, split, sources[name])
  return {
    "job": config.job,
    "method": config.method,
    "seed": config.seed,
    "steps": job.total_steps,
    "seconds": round(seconds, 2),
    "images_per_second": round(job.total_steps * config.batch_size / seconds, 1),
    "eval_seconds": round(time.monotonic() - start, 2),
    "clip_model": job.encoder.clip.name,
    "n_classes": len(job.source.names),
    "k": _k(job),
    "correction": config.correction,
    "eval_images": config.eval.images,
    "eval_classes": {name: len(split.names) for name, split in splits.items()},
    "eval": scores,
    "top1": {split: of_split["prompt"]["top1"] for split, of_split in scores.items()},
  }


def _prediction_sheet(job: Run, prompt: Prompt, results: dict) -> tuple:
  """Images, their classes, and what the prompt takes them for: for `plots.prediction_sheet`."""
  # Classes that the training did not see, where there are such.
  split = next(name for name in ("novel", "new", "test", "base") if name in results["eval"])
  source = inputs.open_source(job.config.data, split, n_images=_SHEET_IMAGES)
  shown = spread_evenly(min(_SHEET_IMAGES, len(source)), len(source))
  images = source.images(shown)
  top3 = Classifier(job.encoder, prompt, source.names).predict(list(images), top=3)
  return (
    images,
    [source.names[label] for label in source.labels[shown]],
    [[name for name, _ in row] for row in top3],
    [[probability for _, probability in row] for row in top3],
  )


def _log_results(results: dict, folder: RunFolder) -> None:
  for split, scores in results["eval"].items():
    line = ", ".join(f"{name} {100 * score['top1']:.1f}%" for name, score in scores.items())
    log.info("%s top-1 over %d classes: %s", split, results["eval_classes"][split], line)
  log.info("what was learned, results and plots are in %s", folder.path)


def leaves_result_as_it_is(field: str) -> bool:
  """Whether a run's result is the same whatever the field says."""
  return field in _FREE_FIELDS or field.startswith(_OTHER_JOBS)


def _check_same_run(config: ConfigDict, stored: dict, workdir: str) -> None:
  """A folder holds one run: a start with another config is refused, not mixed in."""
  before = dict(fields(ConfigDict(stored)))
  for field, value in fields(config):
    was = before.get(field)
    was = tuple(was) if isinstance(was, list) else was
    if was != value and not leaves_result_as_it_is(field):
      raise ConfigError(
        field, value, f"{was!r}, with which {workdir} was started (or another --workdir)"
      )
