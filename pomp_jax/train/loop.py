"""The steps of a training, from its last checkpoint or from none to the end.

Whatever ends it in between, the same call goes on exactly: everything that a step depends on is in
the checkpoint. Asked to stop it saves and stops; at a bad loss, or when it can't save, it does what
the config says.
"""

import contextlib
import logging
import math
import time
from typing import Any, NamedTuple

import jax

from pomp_jax import hosts, inputs
from pomp_jax.config import Settings
from pomp_jax.files.checkpoints import Checkpoints, Restored
from pomp_jax.inference.evaluate import split_features
from pomp_jax.inference.metrics import topk_accuracy
from pomp_jax.prompt.loss import guess_loss
from pomp_jax.prompt.mesh import DATA, replicate
from pomp_jax.prompt.step import TrainState
from pomp_jax.train import batches, methods
from pomp_jax.train.loss_monitor import BadLossError, Expected, LossMonitor, RollBacks
from pomp_jax.train.setup import Run, class_features, first_state, k_of, open_bank, train_step
from pomp_jax.train.watch import TrainingError, Watch

log = logging.getLogger(__name__)


class Trained(NamedTuple):
  """Where a training stands.

  Attributes:
    step: steps done.
    state: after these.
    seconds: that they took, over all starts.
    unreadable: indices of the images that could not be read.
    roll_backs: roll-backs so far.
    statistics: statistics of the `LossMonitor`.
  """

  step: int
  state: TrainState
  seconds: float
  unreadable: list[int]
  roll_backs: RollBacks
  statistics: dict[str, Any] | None


class _Parts(NamedTuple):
  """What all goes of a run share; compiled once."""

  step: Any
  validate: Any
  stop: hosts.StopRequest


def train(job: Run) -> Trained:
  """Steps from the last checkpoint, or from none, to the end.

  Raises:
    Preempted: asked to stop; everything is saved.
    TrainingError: a bad loss, and the config says to stop, or it went back too often.
    CheckpointError: it can't save, and the config says to stop, or this was the last.
  """
  config = job.config
  keep, retry = config.checkpoint.keep, config.checkpoint.on_failure == "retry"
  with Checkpoints(job.folder.checkpoints, keep, retry=retry) as checkpoints:
    at, parts = _last(job, checkpoints), None
    while at.step < job.total_steps:
      parts = parts or _Parts(train_step(job), _validation(job), hosts.StopRequest())
      try:
        with parts.stop:
          at = _go(job, parts, checkpoints, at)
      except BadLossError as error:
        at = _back(job, checkpoints, at.roll_backs, error)
    return at


def _last(job: Run, checkpoints: Checkpoints) -> Trained:
  """The last checkpoint, or the start."""
  state = first_state(job)
  restored = checkpoints.restore_latest(state)
  if restored is None:
    return Trained(0, state, 0.0, [], RollBacks(), None)
  log.info("going on from the checkpoint of step %d", restored.step)
  meta = restored.meta
  skipped = meta.get("detour", {})
  _say_what_differs(job, restored)
  return Trained(
    step=restored.step,
    state=restored.state,
    seconds=meta["seconds"],
    unreadable=meta.get("unreadable", []),
    roll_backs=RollBacks(skipped.get("roll_backs", 0), skipped.get("batches", 0)),
    statistics=meta.get("judge"),
  )


def _go(job: Run, parts: _Parts, checkpoints: Checkpoints, at: Trained) -> Trained:
  """Steps until the end, if nothing comes between."""
  config, mesh = job.config, job.encoder.mesh
  state, frozen, bank = at.state, job.frozen, open_bank(job)
  monitor = LossMonitor(config.loss_spike, at.statistics, _expected(job))
  with contextlib.ExitStack() as stack:
    loader = batches.open_batches(
      config,
      job.source,
      job.fetch,
      mesh,
      start=at.step + at.roll_backs.skipped_batches,
      unreadable=frozenset(at.unreadable),
    )
    stack.enter_context(contextlib.closing(loader))
    profiled = config.profile_steps
    watch = Watch(
      job.folder,
      job.total_steps,
      at.step,
      config.log.every,
      config.batch_size,
      job.rate,
      monitor,
      profiled=tuple(map(int, profiled.split("+"))) if profiled else None,
      port=config.prometheus.port,
      host=config.prometheus.host,
      remedy=batches.input_remedy(config),
    )
    stack.enter_context(watch)
    on_devices = batches.on_devices(watch.timed(loader), mesh)
    start = time.monotonic()
    for step in range(at.step + 1, job.total_steps + 1):
      state, frozen = bank.refresh(step - 1, state, frozen)
      state, metrics = parts.step(state, frozen, next(on_devices))
      watch.step(step, metrics)
      asked = parts.stop.after_step()
      due = step % config.checkpoint.every == 0 or step == job.total_steps
      if due or asked:
        # What is saved is known to be good.
        watch.flush()
        # A validation may take longer than there is.
        top1 = None if asked else parts.validate(state)
        if top1 is not None:
          watch.scalar("validation_top1", top1, step)
        # Each process has met its own; too many of them in all are not saved.
        loader.note(batches.unreadable_anywhere(loader.unreadable))
        done = Trained(
          step=step,
          state=state,
          seconds=at.seconds + time.monotonic() - start,
          unreadable=sorted(loader.unreadable),
          roll_backs=at.roll_backs,
          statistics=monitor.statistics,
        )
        checkpoints.save(step, state, _meta(job, done), metric=top1)
        watch.restart_clock()
      if asked:
        _leave(job, checkpoints, step)
  return done


def _expected(job: Run) -> Expected:
  """A tenth of the steps after the warm-up, and no fewer than twenty, may pass first."""
  warmup = int(job.config.optim.warmup * job.steps_per_epoch)
  after = warmup + max(20, (job.total_steps - warmup) // 10)
  guess = guess_loss(k_of(job) - 1, len(job.source.names), job.config.correction)
  if job.config.sampling.ancestors_weight:
    guess = math.inf  # the loss over kinds of classes has another
  return Expected(guess, after, job.config.optim.lr)


def _meta(job: Run, done: Trained) -> dict[str, Any]:
  """What a checkpoint holds beside the state."""
  return {
    "seconds": done.seconds,
    "position": (done.step + done.roll_backs.skipped_batches) * job.config.batch_size,
    "unreadable": done.unreadable,
    # Names of the first versions, whose checkpoints are still read.
    "detour": {
      "roll_backs": done.roll_backs.count,
      "batches": done.roll_backs.skipped_batches,
    },
    "judge": done.statistics,
    "devices": jax.device_count(),
    "groups": _n_groups(job),
    "config": job.config.to_dict(),
  }


def _leave(job: Run, checkpoints: Checkpoints, step: int) -> None:
  """Raises Preempted after the last save; all processes call it together."""
  # Only the first process knows whether it failed.
  problem = hosts.from_first(str(checkpoints.failure or ""), "the last save")
  what = problem or f"everything is saved at step {step} of {job.total_steps}"
  raise hosts.Preempted(
    f"asked to stop: {what}; the same command goes on from {job.folder.path}", together=True
  )


def _back(
  job: Run, checkpoints: Checkpoints, roll_backs: RollBacks, error: BadLossError
) -> Trained:
  """The last good checkpoint, or the start, from which other draws lead on.

  Raises:
    TrainingError: not again.
  """
  config = job.config
  if config.on_bad_loss == "stop" or roll_backs.count >= config.max_roll_backs:
    again = f" after {roll_backs.count} roll-backs" if roll_backs.count else ""
    raise TrainingError(
      f"{error}: training stops{again}. The last good checkpoint stays in"
      f" {job.folder.checkpoints}; a lower config.optim.lr is the usual remedy, and"
      " config.on_bad_loss='roll_back' goes back to it by itself"
    ) from error
  at = _last(job, checkpoints)
  roll_backs = roll_backs.add(error.step, at.step)
  log.warning(
    "%s: ROLLED BACK to step %d, on with other draws and other images (%d of at most %d times)",
    *(error, at.step, roll_backs.count, config.max_roll_backs),
  )
  seed_key = replicate(roll_backs.seed_key(config.seed), job.encoder.mesh)
  return at._replace(state=at.state.replace(seed_key=seed_key), roll_backs=roll_backs)


def _n_groups(job: Run) -> int:
  """How many parts of a batch draw negatives, each its own."""
  return job.encoder.mesh.shape[DATA] * job.config.accumulate


def _say_what_differs(job: Run, restored: Restored) -> None:
  """Of a run that goes on with other devices."""
  before, now = restored.meta.get("devices"), jax.device_count()
  groups, n_data = restored.meta.get("groups"), job.encoder.mesh.shape[DATA]
  if groups is not None and groups != _n_groups(job):
    remedy = f"; config.accumulate={groups // n_data} keeps them" if groups % n_data == 0 else ""
    log.warning(
      "from step %d on the DRAWS DIFFER from those that this run would have had: %d parts of a"
      " batch (data axis x accumulate) draw their own negatives, before it were %d%s",
      *(restored.step + 1, _n_groups(job), groups, remedy),
    )
  elif before is not None and before != now:
    log.info("%d devices, before it were %d: the same draws, summed in another order", now, before)


def _validation(job: Run):
  """A function state -> top-1 on validation images, over all classes of the training.

  None where there are no images but those that are trained on.
  """
  config: Settings = job.config
  if not inputs.has_validation(config.data):
    return lambda state: None
  source = inputs.open_source(config.data, "validation", n_images=config.eval.images)
  split = split_features(
    job.encoder, source, threads=config.data.threads, max_corrupt=config.data.max_corrupt
  )
  if config.method != "pomp":
    accuracy = methods.accuracy_of_learner(config, job.encoder, job.module)
    return lambda state: accuracy(state.params, split, source)["top1"]

  def top1(state: TrainState) -> float:
    features_NxE = class_features(job, state.params)
    return topk_accuracy(split.features, features_NxE, split.labels)["top1"]

  return top1
