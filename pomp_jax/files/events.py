"""TensorBoard scalars: written so that a killed run loses none, and read back for the plots."""

from collections.abc import Iterator
import contextlib
import logging
import os
from pathlib import Path
import struct
import time
from typing import SupportsFloat

from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

log = logging.getLogger(__name__)


class EventWriter:
  """Writes scalars to a folder that TensorBoard reads.

  tensorboardX's `SummaryWriter` hands events to a thread, and its `flush` does not wait for it: a
  killed process loses the newest. This one writes in the calling thread and flushes at each step.

  Where scalars can't be written, on a full disk say, they are left out, with a warning: a training
  is worth more than its curves. The next ones go to a new file.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int = 0):
    """Starts a new event file.

    Args:
      folder: where the file goes; created when it is missing.
      first_step: the first step that this run will write. Scalars from there on that an earlier
        start of the run has written are void, for TensorBoard and for `read_scalars`.

    Raises:
      OSError: the first file can't be written.
    """
    self._folder, self._warned = Path(folder), False
    self._folder.mkdir(parents=True, exist_ok=True)
    self._writer: EventsWriter | None = self._open(first_step)

  def _open(self, first_step: int) -> EventsWriter:
    # The name's time is in whole seconds, and a clock may be set back: the number tells the order.
    number = 1 + max(map(_number, self._folder.glob("events.out.tfevents.*")), default=-1)
    writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{number}")
    restart = SessionLog(status=SessionLog.START)
    writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=restart))
    writer.flush()
    return writer

  def write(self, step: int, **scalars: SupportsFloat) -> None:
    """Writes the scalars of one step; use a dict (`**{"train/loss": 1.0}`) for names with a slash.

    Args:
      step: the number of steps done.
      **scalars: by name; anything that `float` takes.
    """
    values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
    try:
      if self._writer is None:
        self._writer = self._open(step)
      summary = Summary(value=values)
      self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
      self._writer.flush()
    except OSError as error:
      if not self._warned:
        log.warning(
          "%s: scalars can't be written and are left out from step %d on (%s)",
          *(self._folder, step, error.strerror),
        )
      self._warned = True
      self.close()

  def close(self) -> None:
    """Closes the file."""
    writer, self._writer = self._writer, None
    if writer is not None:
      # What could not be written it tries once more.
      with contextlib.suppress(OSError):
        writer.close()

  def __enter__(self) -> "EventWriter":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def read_scalars(folder: str | os.PathLike) -> dict[str, tuple[list[int], list[float]]]:
  """Reads all scalars of a run back, over all its starts, without what a later start made void.

  Args:
    folder: where the event files are; a file whose end is missing is read as far as it goes.

  Returns:
    For each name the steps, ascending, and the float32 values.
  """
  points: dict[str, dict[int, float]] = {}
  for event in _events_in_order(Path(folder)):
    if event.session_log.status == SessionLog.START:
      points = {
        name: {step: value for step, value in found.items() if step < event.step}
        for name, found in points.items()
      }
    for value in event.summary.value:
      points.setdefault(value.tag, {})[event.step] = value.simple_value
  return {
    name: (sorted(found), [found[step] for step in sorted(found)])
    for name, found in points.items()
    if found
  }


def _events_in_order(folder: Path) -> Iterator[Event]:
  paths = folder.glob("events.out.tfevents.*")
  files = [(_number(path), events) for path in paths if (events := list(_events(path)))]
  # Those of other programs have no number: they come last, by their time.
  last = 1 + max((number for number, _ in files), default=0)
  for _, events in sorted(
    files, key=lambda file: (last if file[0] < 0 else file[0], file[1][0].wall_time)
  ):
    yield from events


def _number(path: Path) -> int:
  """Which start of the run wrote an event file; -1 when it was another program."""
  number = path.suffix.removeprefix(".")
  return int(number) if number.isdecimal() else -1


def _events(path: Path) -> Iterator[Event]:
  """The records of a TFRecord file: length (8 bytes), checksum (4), data, checksum (4)."""
  data = path.read_bytes()
  start = 0
  while start + 12 <= len(data):
    (length,) = struct.unpack_from("<Q", data, start)
    end = start + 12 + length + 4
    if end > len(data):
      return  # the writer was killed in the middle of this record
    try:
      yield Event.FromString(data[start + 12 : start + 12 + length])
    except DecodeError:
      return  # damaged: nothing after it can be trusted
    start = end
