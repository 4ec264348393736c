r"""Seconds from start to first step, of a first start and of a restart.

python -m docs.studies.start_time --config=configs/demo.py --workdir=runs/start \
  --config.eval.images=100000

Takes the arguments of a training with validation images. Each start gets SIGTERM once
its first step is done, saves, and ends. Prints wall and user seconds of the process;
compare user seconds on a machine that is shared.
"""

import os
import resource
import signal
import subprocess
import sys
import time

_CHILD = "--child"


def _run_until_first_step() -> None:
  """Runs the program, which reports when validation and the first step are ready."""
  start = time.monotonic()

  def report(what: str) -> None:
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    load = os.getloadavg()[0]
    wall = time.monotonic() - start
    print(f"{what}: {wall:.1f} s, {user:.1f} s user, load {load:.0f}", flush=True)

  import jax

  from pomp_jax import main
  from pomp_jax.train.training import PromptRun
  from pomp_jax.train.watch import Watch

  validation, step = PromptRun.validation, Watch.step

  def timed_validation(run):
    report("before validation")
    found = validation(run)
    report("validation ready")
    return found

  def timed_step(self, number, metrics):
    step(self, number, metrics)
    jax.block_until_ready(metrics)
    Watch.step = step
    report(f"step {number}")
    os.kill(os.getpid(), signal.SIGTERM)

  PromptRun.validation, Watch.step = timed_validation, timed_step
  sys.exit(main.main(sys.argv[1:]))


def main() -> None:
  """Entry point."""
  if sys.argv[1:2] == [_CHILD]:
    del sys.argv[1]
    _run_until_first_step()
  for start in ("first start", "restart"):
    print(start, flush=True)
    child = subprocess.run(
      [sys.executable, "-m", "docs.studies.start_time", _CHILD, *sys.argv[1:]]
    )
    if child.returncode != 75:
      sys.exit(f"{start}: status {child.returncode}, expected 75")


if __name__ == "__main__":
  main()
