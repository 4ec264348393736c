"""What a run prints: text that is safe for a terminal, and progress as a bar or as plain lines.

`Progress` counts units of work, `steps_of` the items of a loop, and `waiting` shows work that can't
be counted, such as a compilation. The first process alone prints, and of nested ones only the
innermost. A thread shows those that do not report for long. `log_line` formats what goes to a log.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import datetime
import logging
import math
import os
import re
import sys
import textwrap
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

# Columns of a log line, the local time at its start, and the indentation of the lines that continue
# a message.
_WIDTH, _TIME, _INDENT = 100, "%H:%M:%S", " " * 10
# A word of more letters, such as a path, is cut where it is not the last of a message.
_LONG_WORD = 60

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


def log_line(message: str, whole: bool = True) -> str:
  """Formats a message as lines of a log: the local time, and at most 100 columns.

  Lines break at spaces, so only a path or another word of more than 90 letters exceeds that. Each
  line is `printable`.

  Args:
    message: text, perhaps of several lines.
    whole: whether long words keep all their letters. Otherwise those of more than 60, except the
      last word of a line, are cut in the middle.
  """
  lines = []
  for line in message.split("\n"):
    line = printable(line, None)
    if not whole:
      line = re.sub(rf"\S{{{_LONG_WORD + 1},}}(?=\s)", _cut, line)
    width = _WIDTH - len(_INDENT)
    words = {"break_long_words": False, "break_on_hyphens": False}
    lines += textwrap.wrap(line, width, **words) or [""]
  return "\n".join([f"{time.strftime(_TIME)}  {lines[0]}", *(_INDENT + line for line in lines[1:])])


def _cut(word: re.Match) -> str:
  """Replaces the middle of a word by three dots; most of a path's meaning is in its end."""
  end = _LONG_WORD * 2 // 3
  return f"{word[0][: _LONG_WORD - end - 3]}...{word[0][-end:]}"


def set_up_logging() -> None:
  """Prints our messages as `log_line`s, and of the libraries only warnings."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  ours = logging.getLogger("pomp_jax")
  handler = _Handler(sys.stdout)
  handler.setFormatter(_PrintableFormatter())
  ours.handlers, ours.propagate = [handler], False
  ours.setLevel(logging.INFO)


def set_up_streams() -> None:
  """Lets the process survive a full disk under its log."""
  sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


class _Handler(logging.StreamHandler):
  """Prints above the bars of a terminal."""

  def emit(self, record: logging.LogRecord) -> None:
    """Prints a record."""
    with tqdm.external_write_mode(self.stream):
      super().emit(record)


class _PrintableFormatter(logging.Formatter):
  """Formats log lines in which no name of a file or a class can control the terminal."""

  def format(self, record: logging.LogRecord) -> str:
    """Lines of a record; a warning keeps its paths whole."""
    return log_line(super().format(record), whole=record.levelno > logging.INFO)


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
    elapsed: float = 0.0,
    after: float = math.inf,
  ):
    """Starts the clock.

    Args:
      total: number of steps of the whole run; None: unknown.
      initial: steps done before this start, which don't count for the speed.
      description: what is running, a word or two.
      unit: what is counted, in the plural; empty: nothing can be.
      brief: whether to show nothing of work that ends before its first line is due.
      elapsed: seconds that the work has taken before.
      after: seconds until the first line, if fewer than those between two lines.
    """
    self._total, self._step = total, initial
    self._description, self._unit, self._brief = description, unit, brief
    # Step and time of the first report: the steps before it compile.
    self._start: tuple[int, float] | None = None
    self._opened = self._line_time = _now() - elapsed
    self._n_lines, self._after = 0, after
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
        bar_format=None if unit else "{desc}  running for {elapsed}",
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
    more: Mapping[str, SupportsFloat | str] = types.MappingProxyType({}),
    **metrics: SupportsFloat | str,
  ) -> None:
    """Reports the steps done in the whole run, and metrics by name; `more` are for a log only.

    A text, such as "87.5%", is shown as it is.
    """
    with _lock:
      advance, self._step = step - self._step, step
      self._start = self._start or (step, _now())
      self._metrics = {name: _text(value) for name, value in metrics.items()}
      if self._bar is not None:
        self._bar.set_postfix(self._metrics, refresh=False)
        self._bar.update(advance)
        return
      self._metrics |= {name: _text(value) for name, value in more.items()}
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
        if not self._n_lines:
          seconds = min(seconds, self._after)
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
    print(log_line("  ".join(parts), whole=False), file=sys.stderr, flush=True)


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


def waiting(description: str, elapsed: float = 0.0, after: float = math.inf) -> Progress:
  """Shows work that can't be counted, while its context lasts longer than a few seconds.

  Arguments as `Progress`'s.
  """
  return Progress(None, 0, description, unit="", brief=True, elapsed=elapsed, after=after)


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


def _text(value: SupportsFloat | str) -> str:
  return value if isinstance(value, str) else f"{float(value):.4g}"


def _duration(seconds: float) -> str:
  text = str(datetime.timedelta(seconds=round(seconds)))  # 0:08:10
  return text[2:].removeprefix("0") if text.startswith("0:") else text
