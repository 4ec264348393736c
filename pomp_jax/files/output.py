"""Standard output and standard error on a disk that may be full: a log is not worth a run."""

import contextlib
import os
import sys
from typing import Any, TextIO


class Output:
  """A text stream that drops what it can't write, after one line about it on standard error."""

  def __init__(self, stream: TextIO):
    """Takes a stream's place; what it does not do itself the stream does.

    Args:
      stream: `sys.stdout` or `sys.stderr`.
    """
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes, or drops; the number of characters of the text."""
    with self._or_end():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Flushes, or drops what was held back."""
    with self._or_end():
      self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  @contextlib.contextmanager
  def _or_end(self):
    try:
      yield
    except OSError as error:
      name = self._stream.name
      # Python flushes standard streams at its end, and would fail again.
      self._stream = open(os.devnull, "w")  # noqa: SIM115 (until the end)
      print(f"warning: {name} can't be written ({error.strerror}); it ends", file=sys.stderr)
