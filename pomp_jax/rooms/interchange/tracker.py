"""Weights & Biases gets the config, the scalars and the results of a training.

`wandb`, an extra of the package, is set up by its own environment variables. A resumed
run continues there: `tracker.json` in the run's folder holds its id.
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

# For the tracker's server at the start, and for what is left at the end.
_SECONDS, _TIMEOUTS = 30.0, ("init_timeout", "finish_timeout", "login_timeout")
_PROJECT = "pomp-jax"
# Its service, another process, ends with ours. What it has not written by then is lost
# offline.
_FLUSH = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1"}  # seconds; 15 by default


def open_tracker(fields: Log, folder: RunFolder, config: Mapping[str, Any]) -> Tracker:
  """Starts or resumes the run's record in the tracker of `log.tracker`."""
  return Tracker() if fields.of(Tracking).tracker == "none" else Wandb(folder, config)


class Wandb(Tracker):
  """Sends a training from process 0.

  An error of wandb's is one warning, after which nothing is sent: it must not end a
  training. A training that is asked to stop is marked as preempted, and continues at
  the next start.
  """

  def __init__(self, folder: RunFolder, config: Mapping[str, Any]):
    """Starts the run whose id is in the folder again, or a new one."""
    self._run: Any = None
    if hosts.is_first():
      with self._stop_on_error():
        self._run = _start_wandb(folder, json.loads(to_json(config)))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    if self._run is not None:
      with self._stop_on_error():
        # Not as wandb's own step, which may only grow: a roll-back or a restart repeats
        # some.
        self._run.log({"step": step, **scalars})

  def finish(self, results: Mapping[str, Any]) -> None:
    if self._run is not None:
      with self._stop_on_error():
        self._run.summary.update({"results": json.loads(to_json(results))})

  def __exit__(self, *exception: Any) -> None:
    run, self._run = self._run, None
    error = exception[1]
    if run is None:
      return
    with self._stop_on_error():
      if isinstance(error, hosts.Preempted):
        run.mark_preempting()
      run.finish(exit_code=0 if error is None else 1)

  @contextlib.contextmanager
  def _stop_on_error(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # whatever a library of this size may raise
      self._run = None
      reason = one_line(f"{type(error).__name__}: {error}")
      log.warning(
        "wandb: nothing more is sent (%s); the training continues without", reason
      )
      with contextlib.suppress(Exception):
        sys.modules["wandb"].teardown()  # else it reports the same error at exit


def _start_wandb(folder: RunFolder, config: dict[str, Any]) -> Any:
  """Starts the run whose id is in the folder, or a new one."""
  import wandb

  path = folder.path / "tracker.json"
  stored = read_json(path) if exists(path) else {}
  if not isinstance(stored, dict) or not isinstance(stored.get("wandb"), str):
    stored = {"wandb": secrets.token_hex(4)}
    write_json(path, stored)
  os.environ.update(_FLUSH | os.environ)
  inside = not is_bucket(folder.path) and "WANDB_DIR" not in os.environ
  run = wandb.init(
    id=stored["wandb"],
    resume="allow",
    project=os.environ.get("WANDB_PROJECT") or _PROJECT,
    name=os.environ.get("WANDB_NAME")
    or "/".join(os.path.abspath(folder.path).split("/")[-2:]),
    job_type=config["job"],
    config=config,
    dir=os.fspath(folder.path) if inside else None,
    # Our streams stay ours.
    settings=wandb.Settings(
      **dict.fromkeys(_TIMEOUTS, _SECONDS), console="off", silent=True
    ),
  )
  run.define_metric("*", step_metric="step")
  offline = f"offline; `wandb sync` sends {os.path.dirname(run.dir)}"
  log.info("wandb: %s", offline if run.offline else run.url)
  return run
