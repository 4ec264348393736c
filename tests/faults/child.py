"""Runs the campaign's training in its own process, which kills itself, and prints each step.

python -m tests.faults.child FOLDER '{"step": 7}'
"""

from collections.abc import Callable
import functools
import itertools
import json
import os
import signal
import sys
from unittest import mock

from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.paths import to_path
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import loop, setup
from tests.faults.training import config_of, watched

# Ends the process as the kernel's out-of-memory killer does.
die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)


def main() -> None:
  """Runs until the end, or until the fault.

  The second argument is JSON:
    step: step of the SIGKILL;
    save, access: step of a save, and number of the access to the checkpoints' folder to kill at.
  """
  folder, fault = to_path(sys.argv[1]), json.loads(sys.argv[2])
  job = setup.prepare(config_of(), RunFolder(folder))
  job.folder.create()

  def hook(step):
    print(step, flush=True)
    if step == fault.get("step"):
      die()

  real = Checkpoints.save

  def save(self, step, *arguments, **more):
    if step == fault.get("save"):
      call_at_access(str(folder / "checkpoints"), fault["access"], die)
    return real(self, step, *arguments, **more)

  with watched(hook), mock.patch.object(Checkpoints, "save", save):
    loop.train(job)


def call_at_access(folder: str, number: int, action: Callable[[], None]) -> None:
  """Calls `action` at the given number of file operations in a folder, in any thread."""
  events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
  count = itertools.count(1)

  def audit(event, arguments):
    inside = event in events and str(arguments[0]).startswith(folder)
    if inside and next(count) == number:
      action()

  sys.addaudithook(audit)


if __name__ == "__main__":
  main()
