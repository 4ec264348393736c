"""Training metrics over the steps: `metrics.jsonl` for programs, TensorBoard for people."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
import math
import os
import pathlib
import tempfile
import time
from typing import Any, SupportsFloat

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from pomp_jax.files.atomic import write_file
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.run_folder import RunFolder

log = logging.getLogger(__name__)

_UPLOAD_SECONDS = 10.0  # between two uploads to a bucket
_PAUSE_SECONDS = 60.0  # after an upload that failed


class Tracker(contextlib.AbstractContextManager):
  """The experiment tracker "none", which stores nothing; other trackers extend it."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of one step."""

  def finish(self, results: Mapping[str, Any]) -> None:
    """Takes the results of the whole run."""

  def __exit__(self, *exception: object) -> None:
    """Ends the tracked run, and marks it if the training failed or was stopped."""


class MetricsWriter(contextlib.AbstractContextManager):
  """Writes scalars as JSON lines, as TensorBoard events, and to the tracker.

  Both files are flushed at each step, so that a killed process loses nothing.
  (tensorboardX's `SummaryWriter` writes in a thread, and its `flush` does not wait for
  the thread.) Scalars that can't be written are dropped with one warning: metrics must
  not end a training. If the run's folder is in a bucket, both files are written to a
  temporary folder. They are sent to the bucket every ten seconds, before checkpoints
  (by `upload`), and at the end.
  """

  def __init__(
    self, folder: str | os.PathLike, first_step: int = 0, tracker: Tracker | None = None
  ):
    """Creates the folder, and drops scalars of earlier starts from `first_step` on.

    Args:
      folder: folder of the run, on a disk or in a bucket.
      first_step: first step that this start writes. Scalars that earlier starts wrote
        for this step and later steps are dropped.
      tracker: experiment tracker that gets the scalars too.
    """
    self._target = RunFolder(folder)
    self._folder = self._target
    self._temporary = None
    if is_bucket(folder):
      self._temporary = tempfile.TemporaryDirectory()
      self._folder = RunFolder(self._temporary.name)
    self._tracker = tracker or Tracker()
    self._events: EventsWriter | None = None
    self._warned = False
    self._next_upload = 0.0
    with self._warn_once_on_error(first_step):
      self._folder.path.mkdir(parents=True, exist_ok=True)
      earlier_lines = []
      for record in self._target.records():
        if record["step"] < first_step:
          earlier_lines.append(_line(record))
      write_file(self._folder.metrics, b"".join(earlier_lines))
      # This event makes TensorBoard drop scalars of earlier files from this step on.
      self._write_event(first_step, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, **scalars: SupportsFloat) -> None:
    """Writes the scalars of a step; NaN and infinities become null in `metrics.jsonl`."""
    values = {name: float(value) for name, value in scalars.items()}
    stamp = {"step": step, "time": round(time.time(), 3)}
    with self._warn_once_on_error(step):
      with open(self._folder.metrics, "ab") as file:
        if self._warned:
          file.write(b"\n")  # after a failed write the last line may be incomplete
        file.write(_line(stamp | values))
      summary = Summary(
        value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
      )
      self._write_event(step, summary=summary)
    self._tracker.write(step, values)
    if time.monotonic() >= self._next_upload:
      self.upload()

  def upload(self) -> None:
    """Sends both files to the bucket, if the folder is in one.

    An upload that fails is logged as a warning, and retried after a longer pause.
    """
    if self._temporary is None:
      return
    # After a failed write the local file lacks lines that the bucket may have.
    if self._warned:
      return

    self._next_upload = time.monotonic() + _UPLOAD_SECONDS
    local_folder = pathlib.Path(self._temporary.name)
    try:
      for file in local_folder.iterdir():
        write_file(self._target.path / file.name, file.read_bytes())
    except OSError as error:
      # Pause longer: the client retries for half a minute, while the training waits.
      self._next_upload = time.monotonic() + _PAUSE_SECONDS
      log.warning(
        "%s: metrics can't be sent for now (%s)", self._target.path, error.strerror
      )

  def __exit__(self, *exception: object) -> None:
    """Closes the event file; for a bucket, sends both files a last time."""
    self._close_events()
    if self._temporary is not None:
      self.upload()
      self._temporary.cleanup()
      self._temporary = None

  def _close_events(self) -> None:
    if self._events is None:
      return
    events = self._events
    self._events = None
    with contextlib.suppress(OSError):  # closing retries a write that failed
      events.close()

  def _write_event(self, step: int, **content: Any) -> None:
    if self._events is None:
      # The file name has the time in whole seconds; the number makes the name unique.
      number = len(list(self._target.path.glob("events.out.tfevents.*")))
      self._events = EventsWriter(
        str(self._folder.path / "events"), filename_suffix=f".{number}"
      )
    self._events.write_event(Event(wall_time=time.time(), step=step, **content))
    self._events.flush()

  @contextlib.contextmanager
  def _warn_once_on_error(self, step: int) -> Iterator[None]:
    """Turns the first failed write into a warning, and ignores later failures.

    Args:
      step: step whose scalars are written, for the warning.
    """
    try:
      yield
    except OSError as error:
      is_first_failure = not self._warned
      self._warned = True
      if is_first_failure:
        log.warning(
          "%s: metrics can't be written and are dropped from step %d on (%s)",
          self._target.path,
          step,
          error.strerror,
        )
      # The next write opens a new event file: this one may end in half an event.
      self._close_events()


def _line(record: Mapping[str, Any]) -> bytes:
  """A line of `metrics.jsonl`."""
  finite: dict[str, Any] = {}
  for name, value in record.items():
    # JSON has no NaN and no infinities.
    finite[name] = value if math.isfinite(value) else None
  return json.dumps(finite).encode() + b"\n"
