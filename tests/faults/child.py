"""Runs the campaign's training in its own process, to be killed, or on other devices.

  python -m tests.faults.child FOLDER '{"step": 7}'

Prints the number of each step.
"""

import json
import os
import signal
import sys
import threading
import time
from unittest import mock

from pomp_jax.files.checkpoints import Checkpoints
from pomp_jax.files.paths import to_path
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.train import loop, setup
from tests.faults.training import config_of, watched


def die() -> None:
  """Ends the process as the kernel's out-of-memory killer does."""
  os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
  """Runs until the end, or until the fault.

  The second argument is JSON:
    step: step of the SIGKILL;
    save, seconds: step of a save, and seconds from its end to the SIGKILL;
    save, event: step of a save, and number of the access to the checkpoints' folder to kill at;
    changes: changes of the config.
  """
  folder, fault = to_path(sys.argv[1]), json.loads(sys.argv[2])
  job = setup.prepare(config_of(**fault.get("changes", {})), RunFolder(folder))
  job.folder.create()

  def hook(step):
    print(step, flush=True)
    if step == fault.get("step"):
      die()

  real = Checkpoints.save

  def save(self, step, *arguments, **more):
    if step == fault["save"] and "event" in fault:
      die_at_access(str(folder / "checkpoints"), fault["event"])
    saves = real(self, step, *arguments, **more)
    if step == fault["save"] and "seconds" in fault:
      time.sleep(fault["seconds"])
      die()
    return saves

  with watched(hook), mock.patch.object(Checkpoints, "save", save if "save" in fault else real):
    try:
      loop.train(job)
    except Preempted:
      sys.exit(75)


def die_at_access(folder: str, number: int) -> None:
  """Kills this process at the given number of file operations in a folder, in any thread."""
  lock, left = threading.Lock(), [number]

  def audit(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(
      arguments[0]
    ).startswith(folder):
      with lock:
        left[0] -= 1
        if left[0] == 0:
          die()

  sys.addaudithook(audit)


if __name__ == "__main__":
  main()
