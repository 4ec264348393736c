"""The command `pomp`, which `python -m pomp_jax.main` runs too.

Handles signals and `--version` before JAX is imported, because importing it takes
seconds.
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
  # The kernel drops SIGTERM to process 1 of a container unless there is a handler.
  signal.signal(signal.SIGTERM, _end)
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
    signal.signal(signal.SIGHUP, _end)

  asks_for_version = {"-version", "--version"}.intersection(sys.argv[1:])
  if asks_for_version:
    jax_version = importlib.metadata.version("jax")
    python_version = platform.python_version()
    print(f"pomp_jax {__version__} (jax {jax_version}, Python {python_version})")
    sys.exit()

  # transformers reads this variable at import. Without it, transformers would import
  # PyTorch, which takes two seconds and is not needed.
  os.environ.setdefault("USE_TORCH", "0")
  main = importlib.import_module("pomp_jax.main")
  main.start()


def _end(number: int, frame: object) -> NoReturn:
  """Ends the process at a signal, with one line: no file or run is open yet."""
  is_dry = any(argument.startswith("--config.dry_run") for argument in sys.argv)
  remains = "nothing was written" if is_dry else "the same command resumes"
  line = f"error: stopped by {signal.Signals(number).name}; {remains}\n"
  with contextlib.suppress(OSError):
    os.write(2, line.encode())
  os._exit(75)
