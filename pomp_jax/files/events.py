"""TensorBoard scalars: written so that a killed run loses none, and read back for the plots."""

from collections.abc import Iterator
import os
from pathlib import Path
import struct
import time
from typing import SupportsFloat

from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventWriter:
  """Writes scalars to a folder that TensorBoard reads.

  tensorboardX's `SummaryWriter` hands events to a thread, and its `flush` does not wait for it: a
  killed process loses the newest. This one writes in the calling thread and flushes at each step.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int = 0):
    """Starts a new event file.

    Args:
      folder: where the file goes; created when it is missing.
      first_step: the first step that this run will write. Scalars from there on that an earlier
        start of the run has written are void, for TensorBoard and for `read_scalars`.

    Raises:
      OSError: the file can't be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The name's time is in whole seconds: without a number a quick restart would empty the file.
    number = len(list(folder.glob("events.out.tfevents.*")))
    self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{number}")
    restart = SessionLog(status=SessionLog.START)
    self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=restart))
    self._writer.flush()

  def write(self, step: int, **scalars: SupportsFloat) -> None:
    """Writes the scalars of one step; use a dict (`**{"train/loss": 1.0}`) for names with a slash.

    Args:
      step: the number of steps done.
      **scalars: by name; anything that `float` takes.
    """
    values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
    self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

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
  files = [list(_events(path)) for path in folder.glob("events.out.tfevents.*")]
  # An event file's name has whole seconds; its first event has the exact time.
  for events in sorted((events for events in files if events), key=lambda e: e[0].wall_time):
    yield from events


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
