"""Parses and runs command lines in this process as a fresh process would."""

from collections.abc import Iterator
import contextlib
import logging
import signal
import sys

import pytest

from pomp_jax import main as main_module


def run_main(
  capsys: pytest.CaptureFixture, *arguments: object
) -> tuple[int, list[str]]:
  """Runs a command line: exit status, and lines on standard error."""
  status = main_module.main([str(argument) for argument in arguments])
  return status, capsys.readouterr().err.strip().splitlines()


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
  """Restores what the program takes over: the log, SIGTERM, SIGHUP, exceptions that
  are lost."""
  ours = logging.getLogger("pomp_jax")
  signals = {
    number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)
  }
  handlers, level, propagate = ours.handlers, ours.level, ours.propagate
  hook = sys.unraisablehook
  try:
    yield
  finally:
    ours.handlers, ours.propagate = handlers, propagate
    ours.setLevel(level)
    for number, handler in signals.items():
      signal.signal(number, handler)
    sys.unraisablehook = hook
