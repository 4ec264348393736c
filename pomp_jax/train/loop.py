"""The training loop: steps from the last checkpoint, or from none, to the end.

The checkpoint holds everything that a step depends on, so a resumed run takes the same
steps.
"""

from collections.abc import Callable
import contextlib
import logging
import time

import jax

from pomp_jax import hosts
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.metrics_log import Tracker
from pomp_jax.prompt.step import TrainState
from pomp_jax.train import batches
from pomp_jax.train.resume import Checkpoint, gather_bank, resume
from pomp_jax.train.training import Run
from pomp_jax.train.watch import BadLossError, LossMonitor, TrainingError, Watch

log = logging.getLogger(__name__)

# Factor over the running mean of the loss above which a loss is bad, where it can be
# rolled back.
SPIKE = 5.0


def train(run: Run, tracker: Tracker | None = None) -> Checkpoint:
  """Trains to the last step and returns what the last checkpoint holds.

  Preempted when asked to stop: everything is saved. TrainingError for a bad loss,
  CheckpointError for a failed save, as `roll_backs` and `checkpoint.on_failure` say.
  """
  settings = run.checkpoint
  retry = settings.on_failure == "retry"
  with Checkpoints(run.folder.checkpoints, settings.keep, retry=retry) as checkpoints:
    last = resume(run, checkpoints)
    if last.step >= run.total_steps:
      return last
    # Compiled once and reused after each roll-back.
    take_step, validate, stop = run.build_step(), run.validation(), hosts.StopRequest()
    while last.step < run.total_steps:
      try:
        with stop:
          last = _train_from(last, run, take_step, validate, stop, checkpoints, tracker)
      except BadLossError as error:
        last = _roll_back(run, checkpoints, last, error)
    return last


def _train_from(
  last: Checkpoint,
  run: Run,
  take_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
  validate: Callable[[TrainState], Accuracy | None],
  stop: hosts.StopRequest,
  checkpoints: Checkpoints,
  tracker: Tracker | None,
) -> Checkpoint:
  """Takes steps from a checkpoint to the end."""
  state = last.state
  monitor = LossMonitor(SPIKE if run.loop.roll_backs else 0.0, last.statistics)
  loader = run.open_batches(
    last.step + last.skipped_batches, frozenset(last.unreadable)
  )
  with (
    contextlib.closing(loader),
    Watch(run, monitor, first=last.step, tracker=tracker) as watch,
  ):
    on_devices = batches.on_devices(watch.timed(loader), run.encoder.mesh)
    start = time.monotonic() - last.seconds
    for step in range(last.step + 1, run.total_steps + 1):
      state, metrics = take_step(state, run.frozen, next(on_devices))
      watch.step(step, metrics)
      asked = stop.after_step()
      if asked or step % run.checkpoint.every == 0 or step == run.total_steps:
        # Checks all metrics, so only good states are saved.
        watch.flush()
        # No validation after a stop request, which may leave seconds only.
        accuracy = None if asked else validate(state)
        # a resumed run has the metrics of the steps before
        watch.validated(step, accuracy)
        # Each process has met other unreadable images. Too many in all raise before the
        # save.
        for _, theirs in hosts.gather(
          sorted(loader.skipped.reasons), "unreadable images"
        ):
          loader.skipped.note(theirs)
        last = last._replace(
          step=step,
          state=state,
          seconds=time.monotonic() - start,
          unreadable=sorted(loader.skipped.reasons),
          statistics=monitor.statistics,
        )
        metric = None if accuracy is None else accuracy["macro_top1"]
        checkpoints.save(step, gather_bank(run, state), last.meta(run), metric=metric)
        watch.restart()
      if asked:
        # Only process 0 knows whether the save failed.
        problem = hosts.from_first(str(checkpoints.failure or ""), "the last save")
        outcome = problem or f"everything is saved at step {step} of {run.total_steps}"
        again = f"the same command resumes from {run.folder.path}"
        raise hosts.Preempted(f"asked to stop: {outcome}; {again}", together=True)
  return last


def _roll_back(
  run: Run, checkpoints: Checkpoints, before: Checkpoint, error: BadLossError
) -> Checkpoint:
  """Returns the last good checkpoint with other draws; TrainingError if no roll-back
  is left."""
  most = run.loop.roll_backs
  if before.roll_backs >= most:
    again = f" after {before.roll_backs} roll-backs" if before.roll_backs else ""
    raise TrainingError(
      f"{error}: training stops{again}. The last good checkpoint is in {run.folder.checkpoints};"
      " lower the learning rate, or let config.roll_backs=3 resume from it"
    ) from error
  good, mesh = resume(run, checkpoints), run.encoder.mesh
  last = good.rolled_back(before, error.step, run.seed, mesh)
  log.warning(
    "%s: ROLLED BACK to step %d, with other draws and other images from there on (%d of at most %d"
    " times)",
    error,
    last.step,
    last.roll_backs,
    most,
  )
  return last
