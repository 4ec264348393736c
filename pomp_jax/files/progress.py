"""How far a run is: a bar on a terminal, plain lines in a log, from the first process alone.

`Progress` counts units of work; `steps_of` counts what a loop walks through; `waiting` is for work
that can't be counted, such as a compilation. Of those that are open inside one another the
innermost speaks, also when its work does not report for long.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import io
import sys
import threading
import time
import types
from typing import SupportsFloat, TypeVar

from pomp_jax import hosts

_Item = TypeVar("_Item")

# In a log: the first line once this much time has passed, another once this much has passed again,
_LINE_SECONDS = 10.0
# and this part of the run is done, so that a short run has about twenty lines;
_LINE_PART = 0.05
# but one at least this often, so that a long run shows that it lives.
_SILENT_SECONDS = 60.0
# A speed over less time says nothing: of a loop that reads its metrics late, the last two reports
# come at once.
_SPEED_SECONDS = 1.0
# How often it is looked whether work that does not report has been silent for too long.
_LOOK_SECONDS = 1.0

# Those that have begun and not ended, the innermost last.
_open: list["Progress"] = []
_lock = threading.RLock()


class Progress:
  """Shows steps, speed, the time that is left, and the newest metrics."""

  def __init__(
    self,
    total: int | None,
    initial: int = 0,
    description: str = "",
    stream: io.TextIOBase | None = None,
    quiet: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
    unit: str = "steps",
    brief: bool = False,
  ):
    """Starts the clock.

    Args:
      total: steps (or other units) of the whole run; None: nobody knows.
      initial: steps done before this start; they don't count for the speed.
      description: what is running, a word or two.
      stream: where to write; standard error when it is None.
      quiet: write nothing; None: so in all processes but the first.
      clock: seconds, from any zero.
      unit: what is counted, in the plural.
      brief: write nothing, not even the end, of what ends before its first line is due; its bar
        does not stay on the terminal.
    """
    self._total, self._description, self._clock = total, description, clock
    self._quiet = not hosts.is_first() if quiet is None else quiet
    self._unit, self._brief = unit, brief
    self._stream = sys.stderr if stream is None else stream
    self._step = self._line_step = initial
    # The first step compiles: the speed is measured from its end.
    self._start: tuple[int, float] | None = None
    self._opened = self._line_time = clock()
    self._n_lines = self._n_looks = 0
    self._bar = None
    if self._quiet:
      return
    if self._stream.isatty():
      # Not above: a benchmark runs where it is missing.
      from tqdm import tqdm

      self._bar = tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        file=self._stream,
        dynamic_ncols=True,
        leave=not brief,
        delay=_LINE_SECONDS / 5 if brief else 0,
      )
    with _lock:
      _open.append(self)
    # The tests' clocks stand still while real time goes on.
    if clock is time.monotonic:
      _look_after_the_silent()

  def update(
    self,
    step: int,
    more: Mapping[str, SupportsFloat] = types.MappingProxyType({}),
    **metrics: SupportsFloat,
  ) -> None:
    """Tells how far the run is.

    Args:
      step: steps done in the whole run.
      more: figures that a log has beside the metrics, and a bar has no place for.
      **metrics: figures to show beside it, by name.
    """
    with _lock:
      now = self._clock()
      advance, self._step, self._n_looks = step - self._step, step, 0
      if self._start is None:
        self._start = (step, now)
      if self._bar is not None:
        self._bar.set_postfix(_figures(metrics), refresh=False)
        self._bar.update(advance)
      elif not self._quiet and self._line_is_due(now):
        self._speak(now, _figures(metrics) | _figures(more))

  def look(self) -> None:
    """Shows that work lives which has not reported for long: after one minute, two, four, ..

    Does nothing where another is open inside this one.
    """
    with _lock:
      if not _open or _open[-1] is not self:
        return
      if self._bar is not None:
        self._bar.refresh()
        return
      now = self._clock()
      due = _SILENT_SECONDS * 2 ** (self._n_looks - 1) if self._n_looks else _LINE_SECONDS
      if now - self._line_time >= due and self._step != self._total:
        self._n_looks += 1
        self._speak(now, {})

  def close(self) -> None:
    """Ends the bar's line."""
    with _lock:
      if self._bar is not None:
        self._bar.close()
      if self in _open:
        _open.remove(self)
        # What has been said inside breaks the silence outside.
        if _open and self._n_lines:
          _open[-1]._line_time = max(_open[-1]._line_time, self._line_time)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _line_is_due(self, now: float) -> bool:
    silent = now - self._line_time
    if self._total is not None and self._step >= self._total:
      untold = self._line_step < self._total
      return untold and (not self._brief or self._n_lines > 0 or silent >= _LINE_SECONDS)
    enough = not self._n_lines or self._step - self._line_step >= _LINE_PART * (self._total or 0)
    return silent >= _SILENT_SECONDS or (silent >= _LINE_SECONDS and enough)

  def _speak(self, now: float, figures: dict[str, str]) -> None:
    self._line_time, self._line_step = now, self._step
    self._n_lines += 1
    print(self._line(now, figures), file=self._stream, flush=True)

  def _line(self, now: float, figures: dict[str, str]) -> str:
    if self._total is None:
      parts = [self._description]
    else:
      width = len(str(self._total))
      percent = 100 * self._step // self._total if self._total else 100
      parts = [f"{self._description} {self._step:{width}d}/{self._total} ({percent}%)".strip()]
    start_step, start_time = self._start or (self._step, now)
    if self._step > start_step and now - start_time >= _SPEED_SECONDS:
      rate = (self._step - start_step) / (now - start_time)
      parts.append(f"{rate:.3g} {self._unit}/s")
      if self._total is not None and self._step < self._total:
        parts.append(f"{_duration((self._total - self._step) / rate)} left")
    elif self._step != self._total:
      parts.append(f"for {_duration(now - self._opened)}")
    parts += [f"{name}={value}" for name, value in figures.items()]
    return ", ".join(parts)


def steps_of(
  items: Iterable[_Item], description: str, unit: str, total: int | None = None
) -> Iterator[_Item]:
  """The same items; tells how many are done, if that takes longer than a few seconds.

  Args:
    items: of a loop.
    description: what is running, a word or two.
    unit: what the items are, in the plural.
    total: how many; their length if None.
  """
  if total is None and isinstance(items, Sequence):
    total = len(items)
  with Progress(total, description=description, unit=unit, brief=True) as progress:
    for done, item in enumerate(items, 1):
      yield item
      progress.update(done)


def waiting(description: str) -> contextlib.AbstractContextManager:
  """For work that can't be counted: tells that it runs, if it takes longer than a few seconds."""
  return Progress(None, description=description, brief=True)


def _look_after_the_silent() -> None:
  """Starts the one thread that does, at the first call."""
  with _lock:
    if not any(thread.name == _LOOKER for thread in threading.enumerate()):
      threading.Thread(target=_look_for_ever, name=_LOOKER, daemon=True).start()


_LOOKER = "progress"


def _look_for_ever() -> None:
  while True:
    time.sleep(_LOOK_SECONDS)
    with _lock:
      innermost = _open[-1] if _open else None
    if innermost is not None:
      # A stream that is closed, as a test's: there is nobody to tell.
      with contextlib.suppress(ValueError, OSError):
        innermost.look()


def _figures(values: Mapping[str, SupportsFloat]) -> dict[str, str]:
  return {name: f"{float(value):.4g}" for name, value in values.items()}


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
