"""The command `pomp`; `python -m pomp_jax.main` is the same.

What must not wait for JAX, whose import takes seconds: the handlers of signals, and
`--version`.
"""

import contextlib
import faulthandler
import importlib
import importlib.metadata
import os
import platform
import signal
import sys
from typing import NoReturn

from pomp_jax import __version__


def run() -> None:
  """Runs the command line `sys.argv`; ends the process with its exit status."""
  faulthandler.enable()
  # Process 1 of a container has no other handler.
  signal.signal(signal.SIGTERM, _end)
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
    signal.signal(signal.SIGHUP, _end)

  asks_for_version = {"-version", "--version"}.intersection(sys.argv[1:])
  if asks_for_version:
    jax_version = importlib.metadata.version("jax")
    python_version = platform.python_version()
    print(f"pomp_jax {__version__} (jax {jax_version}, Python {python_version})")
    sys.exit()

  # transformers reads it when it is imported. Otherwise it would import PyTorch: two
  # seconds for nothing.
  os.environ.setdefault("USE_TORCH", "0")
  main = importlib.import_module("pomp_jax.main")
  main.start()


def _end(number: int, frame: object) -> NoReturn:
  """Ends the process with one line at a signal: nothing is open yet."""
  is_dry = any(argument.startswith("--config.dry_run") for argument in sys.argv)
  remains = "nothing was written" if is_dry else "the same command resumes"
  line = f"error: stopped by {signal.Signals(number).name}; {remains}\n"
  with contextlib.suppress(OSError):
    os.write(2, line.encode())
  os._exit(75)
