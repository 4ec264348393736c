"""Faults of one of two processes that train together."""

import os
import pathlib
import re
import signal
import time

import numpy as np

from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from tests.faults.cases import Outcome
from tests.support.processes import Processes

# Long enough for a fault in the middle.
STEPS, EVERY = 160, 20
# Images per split: the evaluation must outlast the notice of the signal.
EVALUATED = 4096
HEARTBEAT_SECONDS = 10
# Time in which a process ends after the other: JAX's heartbeat, and what ending takes.
BOUND_SECONDS = 2 * HEARTBEAT_SECONDS + 15
TRY_AGAIN = 75


def start(folder: str | os.PathLike, *, devices: int = 2, **changes) -> Processes:
  """Starts the program twice, with some devices each, and changes of the config."""
  fields = {
    "data.n_classes": 300,
    "data.images_per_class": 2,
    "k": 20,
    "batch_size": 16,
    "steps": STEPS,
    "eval.images": 64,
    "checkpoint.every": EVERY,
    "log.every": 1,
  } | changes
  command = ["-m", "pomp_jax.main", "--config=configs/demo.py", f"--workdir={folder}"]
  command += [f"--config.{field}={value}" for field, value in fields.items()]
  return Processes(2, [*command, f"--heartbeat_timeout={HEARTBEAT_SECONDS}"], devices=devices)


def uninterrupted(folder: pathlib.Path, steps: int = STEPS) -> np.ndarray:
  """Returns the context that two processes learn."""
  with start(folder, steps=steps) as run:
    for status, output in run.finish().values():
      assert status == 0, output[-3000:]
  return load_prompt(folder / "prompt.npz").context


def signalled(number: int, index: int, expected: np.ndarray, rng, folder: pathlib.Path) -> Outcome:
  """Sends one of the two a signal at a random time, then starts both again."""
  with start(folder) as run:
    victim, other = run.processes[index], run.processes[1 - index]
    _wait_for(folder / "checkpoints" / str(int(rng.choice([20, 40, 60, 80]))), victim)
    time.sleep(float(rng.uniform(0, 0.5)))
    assert victim.poll() is None, "the run ended before the fault"
    victim.send_signal(number)
    start_seconds = time.monotonic()
    other.wait(BOUND_SECONDS)
    seconds = time.monotonic() - start_seconds
    if number == signal.SIGSTOP:
      victim.kill()
    outputs = {i: output for i, (_, output) in run.finish(60).items()}
    statuses = {i: process.returncode for i, process in run.processes.items()}
  said = [line for line in outputs[1 - index].splitlines() if "error" in line.lower()][-1:]
  print(f"  the other ended after {seconds:.1f} s with {statuses[1 - index]}: {said}", flush=True)
  if number == signal.SIGTERM:
    assert set(statuses.values()) == {TRY_AGAIN}, (statuses, outputs)
    done = int(re.search(r"step (\d+) of", outputs[0])[1])
  else:
    assert statuses[1 - index] != 0
    done = int(RunFolder(folder).scalars()["loss"][0][-1])
  with start(folder) as run:
    found = run.finish()
  assert all(status == 0 for status, _ in found.values()), found
  first = re.search(r"the checkpoint of step (\d+)", found[0][1])
  context = load_prompt(folder / "prompt.npz").context
  return Outcome(True, done - (int(first[1]) if first else 0), np.array_equal(context, expected))


def evaluating(index: int, expected: np.ndarray, folder: pathlib.Path) -> Outcome:
  """Sends one of the two SIGTERM in the last evaluation, then starts both again."""
  changes = {"steps": EVERY, "eval.images": EVALUATED}
  with start(folder, **changes) as run:
    victim = run.processes[index]
    _wait_for(folder / "checkpoints" / str(EVERY), victim)
    victim.send_signal(signal.SIGTERM)
    found = run.finish(60)
  for status, output in found.values():
    assert status == TRY_AGAIN, output[-3000:]
    assert "error: asked to stop" in output
  assert not (folder / "results.json").exists()
  with start(folder, **changes) as run:
    for status, output in run.finish().values():
      assert status == 0, output[-3000:]
  context = load_prompt(folder / "prompt.npz").context
  return Outcome(True, 0, np.array_equal(context, expected))


def _wait_for(checkpoint: pathlib.Path, process) -> None:
  end = time.monotonic() + 120
  while not checkpoint.exists():
    assert process.poll() is None, "the run ended too early"
    assert time.monotonic() < end, f"{checkpoint} does not appear"
    time.sleep(0.02)
