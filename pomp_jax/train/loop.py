"""The training loop: steps from the last checkpoint, or from the start, to the end.

The checkpoint holds everything that a step depends on, so a resumed run takes the same
steps.
"""

from collections.abc import Callable
import contextlib
import logging
import time
from typing import NamedTuple, NoReturn

import jax

from pomp_jax import hosts
from pomp_jax.data.skipped_images import SkippedImages
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.metrics_log import Tracker
from pomp_jax.prompt.step import TrainState
from pomp_jax.train import batches
from pomp_jax.train.resume import Checkpoint, gather_bank, resume
from pomp_jax.train.training import Run
from pomp_jax.train.watch import BadLossError, LossMonitor, TrainingError, Watch

log = logging.getLogger(__name__)

# A loss above this factor times the running mean is bad, if `roll_backs` allows a
# roll-back.
SPIKE = 5.0


class Parts(NamedTuple):
  """Objects that a training builds once and uses again after each roll-back."""

  take_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # compiled
  validate: Callable[[TrainState], Accuracy | None]
  stop: hosts.StopRequest
  checkpoints: Checkpoints
  tracker: Tracker | None


def train(run: Run, tracker: Tracker | None = None) -> Checkpoint:
  """Trains to the last step and returns what the last checkpoint holds.

  Raises:
    TrainingError: a loss is bad, and no roll-back of `roll_backs` is left.
    CheckpointError: a save failed, and `checkpoint.on_failure` is not "retry".
    Preempted: the run is asked to stop; everything is saved.
  """
  settings = run.checkpoint
  retry = settings.on_failure == "retry"
  with Checkpoints(run.folder.checkpoints, settings.keep, retry=retry) as checkpoints:
    last = resume(run, checkpoints)
    if last.step >= run.total_steps:
      return last

    parts = Parts(
      take_step=run.build_step(),
      validate=run.validation(),
      stop=hosts.StopRequest(),
      checkpoints=checkpoints,
      tracker=tracker,
    )
    while last.step < run.total_steps:
      try:
        with parts.stop:
          last = _train_from(last, run, parts)
      except BadLossError as error:
        last = _roll_back(run, checkpoints, last, error)
    return last


def _train_from(last: Checkpoint, run: Run, parts: Parts) -> Checkpoint:
  """Takes steps from a checkpoint to the end; returns the last checkpoint.

  Raises:
    BadLossError: a loss is bad.
    CheckpointError: a save failed, and `checkpoint.on_failure` is not "retry".
    Preempted: the run is asked to stop; everything is saved.
  """
  state = last.state
  first_batch = last.step + last.skipped_batches
  monitor = LossMonitor(SPIKE if run.loop.roll_backs else 0.0, last.statistics)
  loader = run.open_batches(first_batch, frozenset(last.unreadable))
  with (
    contextlib.closing(loader),
    Watch(run, monitor, first=last.step, tracker=parts.tracker) as watch,
  ):
    on_devices = batches.on_devices(watch.timed(loader), run.encoder.mesh)
    # Count the seconds of earlier starts too.
    start = time.monotonic() - last.seconds
    for step in range(last.step + 1, run.total_steps + 1):
      state, metrics = parts.take_step(state, run.frozen, next(on_devices))
      watch.step(step, metrics)

      must_stop = parts.stop.after_step()
      is_last = step == run.total_steps
      if must_stop or is_last or step % run.checkpoint.every == 0:
        # Raises for a bad loss, so only good states are saved.
        watch.flush()
        # After a stop request only seconds may be left, too few to validate.
        accuracy = None if must_stop else parts.validate(state)
        watch.validated(step, accuracy)
        # Raises for too many unreadable images, so share them before the save.
        _share_unreadable(loader.skipped)
        last = last._replace(
          step=step,
          state=state,
          seconds=time.monotonic() - start,
          unreadable=sorted(loader.skipped.reasons),
          statistics=monitor.statistics,
        )
        metric = None if accuracy is None else accuracy["macro_top1"]
        parts.checkpoints.save(
          step, gather_bank(run, state), last.meta(run), metric=metric
        )
        watch.restart()
      if must_stop:
        _raise_preempted(run, parts.checkpoints, step)
  return last


def _share_unreadable(skipped: SkippedImages) -> None:
  """Adds the unreadable images that the other processes have met.

  Raises:
    CorruptDataError: all processes together have met more than allowed.
  """
  own_images = sorted(skipped.reasons)
  for _, images in hosts.gather(own_images, "unreadable images"):
    skipped.note(images)


def _raise_preempted(run: Run, checkpoints: Checkpoints, step: int) -> NoReturn:
  """Ends the run after a stop request, on all processes together."""
  # Only process 0 knows whether the save failed.
  problem = hosts.from_first(str(checkpoints.failure or ""), "the last save")
  outcome = problem or f"everything is saved at step {step} of {run.total_steps}"
  remedy = f"the same command resumes from {run.folder.path}"
  raise hosts.Preempted(f"asked to stop: {outcome}; {remedy}", together=True)


def _roll_back(
  run: Run, checkpoints: Checkpoints, before: Checkpoint, error: BadLossError
) -> Checkpoint:
  """Returns the last good checkpoint, to resume with other draws and other images.

  Args:
    run: training that met the bad loss.
    checkpoints: checkpoints of the training.
    before: checkpoint from which the training ran into the bad loss.
    error: error that holds the step of the bad loss.

  Raises:
    TrainingError: no roll-back is left.
  """
  n_allowed = run.loop.roll_backs
  if before.roll_backs >= n_allowed:
    count = f" after {before.roll_backs} roll-backs" if before.roll_backs else ""
    raise TrainingError(
      f"{error}: training stops{count}. The last good checkpoint is in {run.folder.checkpoints};"
      " lower the learning rate, or let config.roll_backs=3 resume from it"
    ) from error

  restored = resume(run, checkpoints)
  rolled_back = restored.rolled_back(before, error.step, run.seed, run.encoder.mesh)
  log.warning(
    "%s: ROLLED BACK to step %d, with other draws and other images from there on (%d of at most %d"
    " times)",
    error,
    rolled_back.step,
    rolled_back.roll_backs,
    n_allowed,
  )
  return rolled_back
