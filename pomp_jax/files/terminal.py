"""Output of a run: text that is safe for a terminal, and progress by tqdm.

Only process 0 shows progress. A terminal gets tqdm's bars. A log gets a line every ten
seconds, and later every minute.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import logging
import math
import os
import re
import sys
import threading
import time
from typing import Any, SupportsFloat, TextIO, TypeVar
import unicodedata

from absl import logging as absl_logging
from tqdm import tqdm

from pomp_jax import hosts

_Item = TypeVar("_Item")

# Seconds between the first lines of a log. The pause grows to six times this time in
# the first ten minutes. A bar of brief work appears after a fifth of this time.
_LINE_SECONDS = 10.0

_open: list["Progress"] = []  # progress that is shown, the innermost last
_lock = threading.RLock()
# tqdm's default lock is for several processes, and needs a file of the system.
tqdm.set_lock(_lock)


def printable(text: str, limit: int | None = 300) -> str:
  """Cuts text to `limit` characters, and replaces unprintable characters by "?"."""
  return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def one_line(message: object, limit: int | None = 300) -> str:
  """Text of an error or another object on one line, without control characters."""
  return printable(" ".join(str(message).split()), limit)


def quoted(text: str) -> str:
  """Quotes text with escapes; cuts a long text, and adds its length."""
  if len(text) <= 80:
    return repr(text)
  return f"{text[:80]!r}... ({len(text)} characters)"


def control_character(text: str) -> str | None:
  """Names the first character that ends a line or controls a terminal, as "U+001B".

  Returns None if there is no such character.
  """
  for letter in text:
    # Categories of control characters, and of separators of lines and of paragraphs.
    if unicodedata.category(letter) in ("Cc", "Zl", "Zp"):
      return f"U+{ord(letter):04X}"
  return None


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can encode the text. JSON and file names can hold lone surrogates."""
  return not re.search("[\ud800-\udfff]", text)


def log_line(message: str) -> str:
  """Formats a message for a log: the local time, and further lines indented.

  Each line is `printable`.
  """
  first, *more = [printable(line, None) for line in message.split("\n")]
  lines = [f"{time.strftime('%H:%M:%S')}  {first}"]
  lines += [" " * 10 + line for line in more]
  return "\n".join(lines)


def set_up_logging() -> None:
  """Prints our messages as `log_line`s, and only warnings of the libraries."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  ours = logging.getLogger("pomp_jax")
  ours.handlers = [_Handler(sys.stdout)]
  ours.propagate = False
  ours.setLevel(logging.INFO)


class _Handler(logging.StreamHandler):
  """Prints `log_line`s above the bars of a terminal."""

  def format(self, record: logging.LogRecord) -> str:
    return log_line(super().format(record))

  def emit(self, record: logging.LogRecord) -> None:
    with tqdm.external_write_mode(self.stream):
      super().emit(record)


class Output:
  """A stream that drops what it can't write.

  A full disk under a log must not end a run.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    self._try("write", text)
    return len(text)

  def flush(self) -> None:
    self._try("flush")

  def move(self) -> None:
    """Moves Python's output to a copy of the file descriptor; the original drops all.

    Libraries in other languages print to the number of the original descriptor, so
    their output is dropped.
    """
    self.flush()
    original = self._stream.fileno()
    copy = open(  # noqa: SIM115 (open until the process ends)
      os.dup(original), "w", encoding=self._stream.encoding, errors=self._stream.errors
    )
    # Show lines on a terminal at once, as Python does for its own streams.
    copy.reconfigure(line_buffering=self._stream.isatty())

    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, original)
    os.close(null_device)
    self._stream = copy

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def _try(self, method: str, *arguments: str) -> None:
    try:
      getattr(self._stream, method)(*arguments)
    except OSError as error:
      name = self._stream.name
      # Replace the stream: Python flushes it at exit, which would fail again.
      self._stream = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
      print(
        f"warning: {name} can't be written ({error.strerror}); output ends",
        file=sys.stderr,
      )


def drop_native_output() -> None:
  """Drops what libraries in other languages print; what Python prints stays."""
  if isinstance(sys.stdout, Output):
    sys.stdout.move()


class _Lines:
  """A file for tqdm that prints tqdm's drawing as a log line if a line is due."""

  def __init__(self, after: float):
    self.last = ""
    self._opened = time.time()
    self.due = self._opened + min(_LINE_SECONDS, after)

  def write(self, text: str) -> None:
    """Prints a drawing of tqdm if a line is due, and drops it otherwise."""
    # tqdm surrounds a drawing with control characters.
    text = text.replace("\x1b[A", "").strip()
    now = time.time()
    if now < self.due or text in ("", self.last):
      return
    print(log_line(text), file=sys.stderr, flush=True)
    self.last = text
    # The pause is _LINE_SECONDS for the first 100 s. From 600 s on it is six times as
    # long.
    factor = min(6, max(1, (now - self._opened) / 100))
    self.due = now + _LINE_SECONDS * factor


class Progress(contextlib.AbstractContextManager):
  """Shows steps, speed, remaining time, and the newest metrics."""

  def __init__(
    self,
    total: int | None,
    initial: int = 0,
    description: str = "",
    unit: str = "steps",
    brief: bool = False,
    after: float = math.inf,
    warmup: bool = True,
  ):
    """Starts the clock.

    Args:
      total: steps of the whole run; None if their number is unknown.
      initial: steps done before this start, which don't count for the speed.
      description: words in front of the count.
      unit: plural of what is counted; empty if nothing can be counted.
      brief: whether to show nothing if the work ends before its first line is due.
      after: seconds until the first line of a log, at most _LINE_SECONDS.
      warmup: whether the time before the first report is spent on compilation, and does
        not count for the speed.
    """
    self._description = description
    self._brief = brief
    self._unit = unit
    self._warmup = warmup
    self._reported = False
    self._lines = None if sys.stderr.isatty() else _Lines(after)
    in_log = self._lines is not None
    if in_log and total:
      description = f"{description} {initial}/{total}"
    bar_format = None  # tqdm's default
    if in_log or not unit:
      # In a log `_set_line` replaces this format, once there is a speed.
      bar_format = "{desc}  running for {elapsed}"
    self._bar = tqdm(
      total=total,
      initial=initial,
      desc=description,
      unit=f" {unit}",
      file=self._lines or sys.stderr,
      disable=not hosts.is_first(),
      bar_format=bar_format,
      dynamic_ncols=not in_log,
      leave=not brief and not in_log,
      delay=_LINE_SECONDS / 5 if brief and not in_log else 0,
    )
    if not self._bar.disable:
      with _lock:
        _open.append(self)
        _start_thread()

  def update(self, step: int, **metrics: SupportsFloat | str) -> None:
    """Reports the steps done in the whole run, and metrics by name."""
    bar = self._bar
    if bar.disable:
      return
    texts = {}
    for name, value in metrics.items():
      texts[name] = value if isinstance(value, str) else f"{float(value):.4g}"
    with _lock:
      if self._lines is None:
        bar.set_postfix(texts, refresh=False)
      else:
        self._set_line(step, texts)
      if not self._reported:
        if self._warmup:
          bar.unpause()  # measure the speed from here on, without the warmup
        self._reported = True
      bar.update(step - bar.n)

  def _set_line(self, step: int, texts: Mapping[str, str]) -> None:
    """Sets the next line of a log: description, count, metrics, speed."""
    bar = self._bar
    count = "" if bar.total is None else f"{step}/{bar.total}"
    words = [f"{self._description} {count}"]
    words += [f"{name} {text}" for name, text in texts.items()]
    bar.set_description_str("  ".join(words), refresh=False)
    # There is no speed before the second report, or before any time has passed.
    is_measured = self._reported or not self._warmup
    elapsed = bar.format_dict["elapsed"]
    if is_measured and elapsed:
      bar.bar_format = self._line(is_slow=step - bar.initial < elapsed)

  def _line(self, is_slow: bool) -> str:
    """Format of a line of a log.

    The speed of slow work is in seconds per step, since the number of steps per second
    would be a small fraction.
    """
    if is_slow:
      word, *more = self._unit.split()
      # "batches" has the singular "batch", and "steps" has "step".
      singular = word.removesuffix("es" if word.endswith("ches") else "s")
      speed = f"{{rate_inv:.3g}} s/{' '.join([singular, *more])}"
    else:
      speed = f"{{rate_noinv:.3g}} {self._unit}/s"
    if self._bar.total:
      return f"{{desc}}  {speed}  eta {{remaining}}"
    return f"{{desc}}  {speed}"

  def tick(self) -> None:
    """Redraws the bar, or prints a line if one is due."""
    bar = self._bar
    if bar.disable or time.time() >= bar.start_t + (bar.delay or 0):
      bar.refresh()

  def close(self) -> None:
    """Ends the bar; a log has a last line, unless the work was brief."""
    with _lock:
      lines = self._lines
      bar = self._bar
      if self not in _open:
        return
      _open.remove(self)
      is_complete = self._reported and bar.n == bar.total
      if lines and is_complete and (lines.last or not self._brief):
        lines.due = 0.0
        bar.refresh()
      # With a delay tqdm would clear only drawings of its `update`, but not those of a
      # tick or those after a log line.
      bar.delay = 0
      bar.close()

  def __exit__(self, *exception: object) -> None:
    self.close()


def steps_of(
  items: Iterable[_Item], description: str, unit: str, total: int | None = None
) -> Iterator[_Item]:
  """Yields the items, and shows how many are done if the work takes a while.

  Args:
    items: items to work on.
    description: words in front of the count.
    unit: plural of what is counted.
    total: number of the items. None is the length of a sequence; for other items the
      number is unknown.

  Yields:
    Each item, which counts as done when the next one is asked for.
  """
  if total is None and isinstance(items, Sequence):
    total = len(items)
  n_done = 0
  with Progress(total, description=description, unit=unit, brief=True) as progress:
    for item in items:
      yield item
      n_done += 1
      progress.update(n_done)


def waiting(description: str, after: float = math.inf) -> Progress:
  """Shows work that can't be counted, if it takes longer than a few seconds.

  The work is the `with` block of the returned progress.
  """
  return Progress(None, description=description, unit="", brief=True, after=after)


def _start_thread() -> None:
  if all(thread.name != "progress" for thread in threading.enumerate()):
    threading.Thread(target=_tick_forever, name="progress", daemon=True).start()


def _tick_forever() -> None:
  """Redraws the innermost progress every second, since it may not report for long."""
  while True:
    time.sleep(1.0)
    # ValueError: the stream is closed, for example by a test.
    with _lock, contextlib.suppress(ValueError, OSError):
      if _open:
        _open[-1].tick()
