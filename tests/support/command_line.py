"""Parses and runs command lines in this process as a fresh process would."""

from collections.abc import Iterator
import contextlib
import logging
import signal
import sys
from unittest import mock

from absl import flags
import pytest

from pomp_jax import main as main_module


def forget_flags() -> None:
  """Resets all flags to their unparsed state."""
  flags.FLAGS.unparse_flags()
  for name in [name for name in flags.FLAGS if name.startswith("config.")]:
    delattr(flags.FLAGS, name)
  flags.FLAGS["config"].value = flags.FLAGS["workdir"].value = None


def parse(*arguments: object) -> None:
  """Parses a command line."""
  forget_flags()
  argv = ["pomp_jax.main", *map(str, arguments)]
  with mock.patch.object(sys, "argv", argv):  # config_flags looks overrides up there
    main_module.parse_flags(argv)


def run_main(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, list[str]]:
  """Runs a command line: exit status, and lines on standard error."""
  try:
    parse(*arguments)
    status = main_module.main([])
  except SystemExit as exit:
    status = exit.code
  return status, capsys.readouterr().err.strip().splitlines()


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
  """Restores what the program takes over: the log, SIGTERM, SIGHUP, exceptions that are lost."""
  ours = logging.getLogger("pomp_jax")
  signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
  handlers, level, propagate = ours.handlers, ours.level, ours.propagate
  hook = sys.unraisablehook
  yield
  ours.handlers, ours.propagate = handlers, propagate
  ours.setLevel(level)
  for number, handler in signals.items():
    signal.signal(number, handler)
  sys.unraisablehook = hook
