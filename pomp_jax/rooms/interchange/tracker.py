"""Sends the config, the scalars and the results of a training to Weights & Biases.

`wandb`, an extra of the package, is set up by its own environment variables. A resumed
run continues its record at wandb. The record's id is in `tracker.json` in the run's
folder.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
import os
import secrets
import sys
from typing import Any

from pomp_jax import hosts
from pomp_jax.config.fields import Log
from pomp_jax.files.metrics_log import Tracker
from pomp_jax.files.paths import exists, is_bucket
from pomp_jax.files.run_folder import RunFolder, read_json, to_json, write_json
from pomp_jax.files.terminal import one_line
from pomp_jax.rooms.interchange.fields import Tracking

log = logging.getLogger(__name__)

# Seconds to wait for the server at the start, and to send the rest at the end.
_TIMEOUTS = {"init_timeout": 30.0, "finish_timeout": 30.0, "login_timeout": 30.0}
_PROJECT = "pomp-jax"
# The service of wandb is another process, which ends with ours. Offline it loses what
# it has not written by then, so it writes each second instead of every 15.
_FLUSH = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1"}


def open_tracker(fields: Log, folder: RunFolder, config: Mapping[str, Any]) -> Tracker:
  """Starts or resumes the run's record in the tracker of `log.tracker`.

  Args:
    fields: settings of the log.
    folder: folder of the run, which keeps the record's id.
    config: values of the config, by field.
  """
  if fields.of(Tracking).tracker == "none":
    return Tracker()
  return Wandb(folder, config)


class Wandb(Tracker):
  """Sends a training from process 0.

  An error of wandb must not end a training: it becomes one warning, and nothing more is
  sent. A training that is asked to stop is marked as preempted; its record continues at
  the next start.
  """

  def __init__(self, folder: RunFolder, config: Mapping[str, Any]):
    """Resumes the record whose id is in the folder, or starts a new record."""
    self._run: Any = None
    if hosts.is_first():
      with self._stop_on_error():
        self._run = _start_wandb(folder, json.loads(to_json(config)))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    if self._run is not None:
      with self._stop_on_error():
        # Send the step as a scalar. Wandb's own step may only grow, but a roll-back or
        # a restart repeats steps.
        self._run.log({"step": step, **scalars})

  def finish(self, results: Mapping[str, Any]) -> None:
    if self._run is not None:
      with self._stop_on_error():
        self._run.summary.update({"results": json.loads(to_json(results))})

  def __exit__(self, *exception: Any) -> None:
    run = self._run
    if run is None:
      return
    self._run = None
    error = exception[1]
    with self._stop_on_error():
      if isinstance(error, hosts.Preempted):
        run.mark_preempting()
      run.finish(exit_code=0 if error is None else 1)

  @contextlib.contextmanager
  def _stop_on_error(self) -> Iterator[None]:
    """Context that turns an error of wandb into a warning.

    After the warning nothing is sent. A training must not end because its tracker does.
    """
    try:
      yield
    except Exception as error:  # whatever a library of this size may raise
      self._run = None
      reason = one_line(f"{type(error).__name__}: {error}")
      log.warning(
        "wandb: nothing more is sent (%s); the training continues without", reason
      )
      # Without a teardown wandb reports the error again when the process exits.
      with contextlib.suppress(Exception):
        sys.modules["wandb"].teardown()


def _start_wandb(folder: RunFolder, config: dict[str, Any]) -> Any:
  """Resumes the record whose id is in the folder, or starts a new record."""
  import wandb

  for variable, value in _FLUSH.items():
    os.environ.setdefault(variable, value)
  wandb_folder = None  # wandb's own choice
  if not is_bucket(folder.path) and "WANDB_DIR" not in os.environ:
    wandb_folder = os.fspath(folder.path)
  last_two_folders = os.path.abspath(folder.path).split("/")[-2:]
  run = wandb.init(
    id=_run_id(folder),
    resume="allow",
    project=os.environ.get("WANDB_PROJECT") or _PROJECT,
    name=os.environ.get("WANDB_NAME") or "/".join(last_two_folders),
    job_type=config["job"],
    config=config,
    dir=wandb_folder,
    # Wandb must not capture the streams of this process.
    settings=wandb.Settings(**_TIMEOUTS, console="off", silent=True),
  )
  run.define_metric("*", step_metric="step")
  where = run.url
  if run.offline:
    where = f"offline; `wandb sync` sends {os.path.dirname(run.dir)}"
  log.info("wandb: %s", where)
  return run


def _run_id(folder: RunFolder) -> str:
  """Reads the record's id from `tracker.json`; writes a new id if there is none."""
  path = folder.path / "tracker.json"
  stored = read_json(path) if exists(path) else {}
  if not isinstance(stored, dict) or not isinstance(stored.get("wandb"), str):
    stored = {"wandb": secrets.token_hex(4)}
    write_json(path, stored)
  return stored["wandb"]
