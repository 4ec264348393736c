"""What a run prints: text that is safe for a terminal, and progress as a bar or as plain lines.

`Progress` counts units of work, `steps_of` the items of a loop, and `waiting` shows work that can't
be counted, such as a compilation. The first process alone prints, and of nested ones only the
innermost. A thread shows those that do not report for long.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import datetime
import logging
import os
import sys
import threading
import time
import types
from typing import Any, SupportsFloat, TextIO, TypeVar
import unicodedata

from absl import logging as absl_logging
from tqdm import tqdm

from pomp_jax import hosts

_Item = TypeVar("_Item")

# Unicode categories of control characters and of line and paragraph separators.
_CONTROL = ("Cc", "Zl", "Zp")

# Time between two lines of a log. It grows to six times as much in the first ten minutes.
_LINE_SECONDS = 10.0
# A speed over less time is noise: a loop that reads its metrics late reports several at once.
_MIN_SPEED_SECONDS = 1.0

_now = time.monotonic
_open: list["Progress"] = []  # the innermost last
_lock = threading.RLock()


def printable(text: str, limit: int | None = 300) -> str:
  """Cuts text to `limit` characters and replaces those that can't be printed on one line by "?"."""
  return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def quoted(text: str, limit: int = 80) -> str:
  """Quotes text with its escapes; of a longer one the first `limit` characters and the length."""
  return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text)} characters)"


def control_character(text: str) -> str | None:
  """Finds the first character that ends a line or controls a terminal, such as U+001B."""
  found = next((letter for letter in text if unicodedata.category(letter) in _CONTROL), None)
  return None if found is None else f"U+{ord(found):04X}"


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can encode the text. JSON and file names can hold lone surrogates."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def set_up_logging() -> None:
  """Prints our log lines as they are; of the libraries only warnings, and of Orbax nothing."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  # It has a traceback for each of its threads; `Checkpoints` says in one line what has failed.
  absl_logging.get_absl_logger().addFilter(_is_not_orbax)
  ours = logging.getLogger("pomp_jax")
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(_PrintableFormatter())
  ours.handlers, ours.propagate = [handler], False
  ours.setLevel(logging.INFO)


def set_up_streams() -> None:
  """Lets the process survive a full disk under its log."""
  sys.unraisablehook = _unraisable
  sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def _unraisable(found: Any) -> None:
  # TensorStore has such an error for each array whose write fails, which `Checkpoints` says.
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


class _PrintableFormatter(logging.Formatter):
  """Formats log lines in which no name of a file or a class can control the terminal."""

  def format(self, record: logging.LogRecord) -> str:
    """Lines of a record, each `printable`."""
    return "\n".join(printable(line, None) for line in super().format(record).split("\n"))


class Output:
  """`sys.stdout` or `sys.stderr`, but drops what it can't write, after one warning.

  A full disk under a log file must not end a run.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes or drops the text."""
    with self._drop_on_error():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Flushes or drops what is buffered."""
    with self._drop_on_error():
      self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  @contextlib.contextmanager
  def _drop_on_error(self):
    try:
      yield
    except OSError as error:
      name = self._stream.name
      # Python flushes the standard streams at exit, and would fail again.
      self._stream = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
      print(f"warning: {name} can't be written ({error.strerror}); output ends", file=sys.stderr)


class Progress(contextlib.AbstractContextManager):
  """Shows steps, speed, remaining time, and the newest metrics."""

  def __init__(
    self,
    total: int | None,
    initial: int = 0,
    description: str = "",
    unit: str = "steps",
    brief: bool = False,
  ):
    """Starts the clock.

    Args:
      total: number of steps of the whole run; None: unknown.
      initial: steps done before this start, which don't count for the speed.
      description: what is running, a word or two.
      unit: what is counted, in the plural.
      brief: whether to show nothing of work that ends before its first line is due.
    """
    self._total, self._step = total, initial
    self._description, self._unit, self._brief = description, unit, brief
    # Step and time of the first report: the steps before it compile.
    self._start: tuple[int, float] | None = None
    self._opened = self._line_time = _now()
    self._n_lines = 0
    self._metrics: dict[str, str] = {}
    self._bar = None
    self._shown = hosts.is_first()
    if not self._shown:
      return
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        dynamic_ncols=True,
        leave=not brief,
        delay=_LINE_SECONDS / 5 if brief else 0,
      )
    with _lock:
      _open.append(self)
      _start_thread()

  def update(
    self,
    step: int,
    more: Mapping[str, SupportsFloat] = types.MappingProxyType({}),
    **metrics: SupportsFloat,
  ) -> None:
    """Reports the steps done in the whole run, and metrics by name; `more` are for a log only."""
    with _lock:
      advance, self._step = step - self._step, step
      self._start = self._start or (step, _now())
      self._metrics = {k: f"{float(v):.4g}" for k, v in metrics.items()}
      if self._bar is not None:
        self._bar.set_postfix(self._metrics, refresh=False)
        self._bar.update(advance)
        return
      self._metrics |= {k: f"{float(v):.4g}" for k, v in more.items()}
      if step == self._total and advance and (self._n_lines or not self._brief):
        self._print()
      else:
        self.tick()

  def tick(self) -> None:
    """Redraws the bar, or prints a line if one is due."""
    with _lock:
      if self._bar is not None:
        self._bar.refresh()
      elif self._shown:
        now = _now()
        seconds = _LINE_SECONDS * min(6, max(1, (now - self._opened) / 100))
        if now - self._line_time >= seconds and (self._step != self._total or not self._n_lines):
          self._print()

  def close(self) -> None:
    """Ends the bar."""
    with _lock:
      if self._bar is not None:
        self._bar.close()
      if self in _open:
        _open.remove(self)
        # A line from inside postpones the next one outside.
        if _open and self._n_lines:
          _open[-1]._line_time = max(_open[-1]._line_time, self._line_time)

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _print(self) -> None:
    if not self._shown:
      return
    now = self._line_time = _now()
    self._n_lines += 1
    count = "" if self._total is None else f"{self._step}/{self._total}"
    parts = [f"{self._description} {count}".strip()]
    parts += [f"{name} {value}" for name, value in self._metrics.items()]
    start_step, start_time = self._start or (self._step, now)
    if self._step > start_step and now - start_time >= _MIN_SPEED_SECONDS:
      rate = (self._step - start_step) / (now - start_time)
      parts.append(f"{rate:.3g} {self._unit}/s")
      if self._total is not None and self._step < self._total:
        parts.append(f"eta {_duration((self._total - self._step) / rate)}")
    elif self._step != self._total:
      parts.append(f"running for {_duration(now - self._opened)}")
    print("  ".join(parts), file=sys.stderr, flush=True)


def steps_of(
  items: Iterable[_Item], description: str, unit: str, total: int | None = None
) -> Iterator[_Item]:
  """Yields the items and shows how many are done, if that takes longer than a few seconds.

  Arguments as `Progress`'s; `total` is only needed where the items have no length.
  """
  if total is None and isinstance(items, Sequence):
    total = len(items)
  with Progress(total, description=description, unit=unit, brief=True) as progress:
    for done, item in enumerate(items, 1):
      yield item
      progress.update(done)


def waiting(description: str) -> Progress:
  """Shows work that can't be counted, while its context lasts longer than a few seconds."""
  return Progress(None, description=description, brief=True)


def _start_thread() -> None:
  if all(thread.name != "progress" for thread in threading.enumerate()):
    threading.Thread(target=_tick_forever, name="progress", daemon=True).start()


def _tick_forever() -> None:
  while True:
    time.sleep(1.0)
    # ValueError: a stream that is closed, by a test for example.
    with _lock, contextlib.suppress(ValueError, OSError):
      if _open:
        _open[-1].tick()


def _duration(seconds: float) -> str:
  text = str(datetime.timedelta(seconds=round(seconds)))  # 0:08:10
  return text[2:].removeprefix("0") if text.startswith("0:") else text
