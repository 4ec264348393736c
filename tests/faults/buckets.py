"""Fault campaign of runs in buckets: what a training loses by each kind of fault, as a table.

  python -m tests.faults.buckets                       both stores
  python -m tests.faults.buckets --only=gs,SIGKILL     rows with these words in their names

The stores are emulators behind a proxy that answers in their place. Every run is seeded. Exit
status 1 when a run did not survive, or got another context.
"""

import os

from tests.support.processes import share_compilation_cache

if __name__ == "__main__":
  # Before JAX starts.
  share_compilation_cache()
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import argparse
import functools
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from pomp_jax.files.atomic import replacing
from pomp_jax.files.checkpoints import CheckpointError
from pomp_jax.files.paths import exists, read_bytes
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json
from tests.faults import pair
from tests.faults.campaign import Kind, row
from tests.faults.cases import Outcome, expect, resume
from tests.faults.training import DEVICES, STEPS, Training, config_of
from tests.support import stores
from tests.support.processes import ROOT, Processes, environment

# Of two processes: steps, steps between checkpoints.
_STEPS, _EVERY = 60, 20


def killed(store: stores.Store, training: Training, rng, folder: str) -> Outcome:
  """SIGKILL at any step."""
  with _child(folder, {"step": int(rng.integers(1, STEPS + 1))}) as child:
    lines = _killed(child)
  return resume(training, folder, int(lines.split()[-1]))


def killed_while_saving(store: stores.Store, training: Training, rng, folder: str) -> Outcome:
  """SIGKILL at one of the requests of the second save, before the store gets it."""
  left, slash = [int(rng.integers(1, 14))], "(/|%2F)"
  second = re.compile(slash.join([folder.rpartition("/")[2], "checkpoints", "8", ""]))

  def before(method: str, path: str) -> None:
    if method in ("PUT", "POST") and second.search(path):
      left[0] -= 1
      if left[0] == 0:
        child.kill()
        child.wait()

  with _child(folder, {}) as child:
    store.before = before
    try:
      lines = _killed(child)
    finally:
      store.before = lambda method, path: None
  return resume(training, folder, int(lines.split()[-1]))


def busy(
  status: int, seconds: float, store: stores.Store, training: Training, rng, folder: str
) -> Outcome:
  """The store answers with a status for some time, from just before a save on."""
  step, faults = int(rng.choice([4, 8, 12])), store.faults

  def hook(now: int) -> None:
    if now == step:
      store.fail(status, seconds)

  attempt = training.run(folder, hook)
  assert store.faults > faults
  equal = attempt.context is not None and np.array_equal(attempt.context, training.context)
  return Outcome(attempt.context is not None, 0, equal)


def refusing(
  status: int, policy: str, store: stores.Store, training: Training, rng, folder: str
) -> Outcome:
  """The store refuses everything during a save, and recovers at the next step or the next start."""
  step = int(rng.choice([4, 8]))

  def hook(now: int) -> None:
    if now == step:
      store.fail(status)
    if now == step + 1:
      store.recover()

  attempt = training.run(folder, hook, **{"checkpoint.on_failure": policy})
  store.recover()
  if policy == "retry":
    assert "could not save" in attempt.warnings
    equal = attempt.context is not None and np.array_equal(attempt.context, training.context)
    return Outcome(attempt.context is not None, 0, equal)
  expect(attempt, CheckpointError, "could not save")
  assert "\n" not in str(attempt.error)
  return resume(training, folder, step)


def disappeared(store: stores.Store, training: Training, rng, folder: str) -> Outcome:
  """The bucket is gone for the rest of the run; the next start is refused, the third resumes."""
  step = int(rng.integers(5, STEPS))
  attempt = training.run(folder, lambda now: store.fail(404) if now == step else None)
  assert attempt.error is not None and "\n" not in str(attempt.error)
  try:
    training.run(folder)
    raise AssertionError("started without a bucket")
  except RunFolderError as error:
    assert "no bucket" in str(error)
  store.recover()
  done = 8 if step <= 8 else STEPS
  return resume(training, folder, done)


def two_processes(store: stores.Store, training: Training, rng, folder: str) -> Outcome:
  """Two processes train; one gets SIGKILL; they resume, evaluate, export and ablate in the bucket.

  All is compared with the same in a local folder.
  """
  expected = _reference(training.folder.with_name("two"))
  victim = int(rng.integers(0, 2))
  with _start(folder) as run:
    _wait_for(f"{folder}/checkpoints/20/commit_success.txt", run.processes[victim])
    run.processes[victim].kill()
    statuses = {index: status for index, (status, _) in run.finish(120).items()}
  assert statuses[1 - victim] != 0, statuses
  done = int(RunFolder(folder).scalars()["loss"][0][-1])
  found = _everything(folder)
  first = int(re.search(r"the checkpoint of step (\d+)", found["output"])[1])
  equal = all(found[name] == expected[name] for name in expected if name != "output")
  return Outcome(True, max(0, done - first), equal)


@functools.cache
def _reference(folder: pathlib.Path) -> dict:
  return _everything(str(folder))


def _everything(folder: str) -> dict:
  """Trains in a folder, or resumes, evaluates, exports and ablates; what it leaves."""
  prompt = f"{folder}/prompt.npz"
  with _start(folder) as run:
    output = _finished(run)
  names = f"{folder}/names.txt"
  _write(names, "\n".join(["red star", "teal leaf"]))
  prompts = f"{prompt};{folder};a photo of a {{}}."
  fields = {"job": "evaluate", "evaluate.prompts": prompts}
  with _start(f"{folder}/evaluated", **fields, **{"evaluate.images": 256}) as run:
    _finished(run)
  exported = {"job": "export", "export.format": "detic"}
  exported |= {"export.prompt": prompt, "export.names": names, "export.output": "features.npy"}
  with _start(f"{folder}/exported", **exported) as run:
    _finished(run)
  swept = {"job": "ablate", "ablate.grid": "k=10|all", "steps": 4, "checkpoint.every": 4}
  with _start(f"{folder}/ablated", **swept) as run:
    _finished(run)
  cells = read_json(f"{folder}/ablated/results.json")["cells"]
  sets = read_json(f"{folder}/evaluated/results.json")["sets"]
  return {
    "output": output,
    "context": load_prompt(prompt).context.tobytes(),
    "results": read_json(f"{folder}/results.json")["top1"],
    "evaluated": [[one["top1"] for one in of["prompts"].values()] for of in sets.values()],
    "exported": read_bytes(f"{folder}/exported/features.npy"),
    "ablated": [cell["top1"] for cell in cells],
  }


def _write(path: str, text: str) -> None:
  with replacing(path) as file:
    file.write(text.encode())


def _start(folder: str, **changes) -> Processes:
  fields = {"steps": _STEPS, "checkpoint.every": _EVERY} | changes
  return pair.start(folder, devices=1, **fields)


def _finished(run: Processes) -> str:
  found = run.finish()
  for status, output in found.values():
    assert status == 0, output[-3000:]
  return found[0][1]


def _wait_for(path: str, process) -> None:
  end = time.monotonic() + 240
  while not exists(path):
    assert process.poll() is None and time.monotonic() < end, f"{path} does not appear"
    time.sleep(0.1)


def _child(folder: str, fault: dict) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "tests.faults.child", folder, json.dumps(fault)],
    cwd=ROOT,
    env=environment(DEVICES),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def _killed(child: subprocess.Popen) -> str:
  """Output of a process that gets SIGKILL; ends it in any case."""
  try:
    lines, _ = child.communicate(timeout=900)
  finally:
    child.kill()
  assert child.returncode == -signal.SIGKILL, child.returncode
  return lines


def kinds(store: stores.Store) -> list[Kind]:
  """Faults of a store, in the order of the table."""
  part, name = functools.partial, f"{store.scheme}://"
  found = [
    Kind(f"{name}, SIGKILL at any step", 2, part(killed, store)),
    Kind(f"{name}, SIGKILL during a save", 3, part(killed_while_saving, store)),
    Kind(f"{name}, 429 for 5 s", 2, part(busy, 429, 5.0, store)),
    Kind(f"{name}, 503 for 5 s", 2, part(busy, 503, 5.0, store)),
  ]
  for policy in ("stop", "retry"):
    found.append(Kind(f"{name}, 403, {policy}", 2, part(refusing, 403, policy, store)))
  found.append(Kind(f"{name}, bucket disappears", 2, part(disappeared, store)))
  title = f"{name}, SIGKILL to one of 2, then evaluate, export, ablate"
  found.append(Kind(title, 1, part(two_processes, store)))
  return found


def main() -> int:
  """Runs the campaign, and prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", default="", help="words that a row has, separated by commas")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  words = arguments.only.lower().split(",")
  rows, n_runs, good, start = [], 0, True, time.monotonic()
  with tempfile.TemporaryDirectory() as temporary, stores.running(*stores.SCHEMES) as both:
    training = Training(config_of(), pathlib.Path(temporary) / "reference")
    for store in both.values():
      for number, kind in enumerate(kinds(store)):
        if not all(word in kind.name.lower() for word in words):
          continue
        outcomes = []
        for run in range(kind.runs):
          began, folder = time.monotonic(), store.url(f"runs/{number}_{run}")
          try:
            rng = np.random.default_rng([arguments.seed, number, run])
            outcome = kind.case(training, rng, folder)
          except Exception as error:  # the campaign looks for these
            print(f"FAILED: {type(error).__name__}: {error}", flush=True)
            outcome = Outcome(False, 0, False)
          store.recover()
          seconds = time.monotonic() - began
          print(f"{kind.name}, run {run + 1}: {outcome}, {seconds:.1f} s", flush=True)
          outcomes.append(outcome)
        rows.append(row(kind, outcomes))
        n_runs += len(outcomes)
        good &= all(outcome.survived and outcome.equal for outcome in outcomes)
  print("\n| fault | runs | survived | steps lost | final context equal |")
  print("| --- | --- | --- | --- | --- |")
  print("\n".join(rows))
  print(f"\n{n_runs} runs in {(time.monotonic() - start) / 60:.0f} minutes, seed {arguments.seed}")
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
