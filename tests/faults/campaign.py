"""Fault campaign: what a training loses by each kind of fault, as a table.

  python -m tests.faults.campaign                      all kinds, about 15 minutes on two cores
  python -m tests.faults.campaign --only=SIGTERM,clock the kinds with these words in their names

Every run is seeded. Exit status 1 when a run did not survive, or got another context.
"""

import os

from tests.support.processes import share_compilation_cache

if __name__ == "__main__":
  # Before JAX starts.
  share_compilation_cache()
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import argparse
import dataclasses
import functools
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np

from tests.faults import cases, pair
from tests.faults.training import Training, config_of

_BITWISE, _CLOSE = "yes", "within 1e-6"


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of fault.

  Attributes:
    name: name in the table.
    runs: number of runs.
    case: function of one run.
    equality: meaning of "equal", for the table.
  """

  name: str
  runs: int
  case: cases.Case
  equality: str = _BITWISE


def kinds() -> list[Kind]:
  """Returns all faults, in the order of the table."""
  part = functools.partial
  found = [
    Kind("SIGTERM at any step", 6, part(cases.stopped_by_signal, signal.SIGTERM)),
    Kind("SIGINT at any step", 2, part(cases.stopped_by_signal, signal.SIGINT)),
    Kind("SIGKILL at any step", 6, cases.killed),
    Kind("SIGKILL during a save", 8, cases.killed_while_saving),
  ]
  for how in ("truncated", "bit-flipped", "deleted"):
    found.append(Kind(f"newest checkpoint {how}", 3, part(cases.damaged, how, (10,))))
    found.append(Kind(f"newest two {how}", 1, part(cases.damaged, how, (8, 10))))
  found.append(Kind("all checkpoints damaged", 1, cases.all_damaged))
  for policy in ("stop", "retry"):
    found.append(Kind(f"disk full, {policy}", 3, part(cases.full_disk, policy)))
    found.append(Kind(f"disk read-only, {policy}", 2, part(cases.read_only, policy)))
  found.append(Kind("clock jumps", 4, cases.clock_jumps))
  for how in ("truncated", "bit-flipped", "replaced"):
    found.append(Kind(f"images {how}", 1, part(cases.corrupt_records, how)))
  found += [
    Kind("more images corrupt than allowed", 1, cases.too_many_corrupt_records),
    Kind("NaN, stop", 2, cases.not_finite),
    Kind("NaN, roll back", 3, cases.rolled_back),
    Kind("half the devices", 2, cases.half_the_devices, _CLOSE),
  ]
  names = {signal.SIGTERM: "SIGTERM", signal.SIGKILL: "SIGKILL", signal.SIGSTOP: "SIGSTOP"}
  for number, name in names.items():
    for index in (0, 1):
      found.append(Kind(f"{name} to process {index} of 2", 1, part(_of_two, number, index)))
  for index in (0, 1):
    name = f"SIGTERM to process {index} of 2, in the last evaluation"
    found.append(Kind(name, 1, part(_evaluating, index)))
  return found


def _of_two(
  number: int, index: int, training: Training, rng, folder: pathlib.Path
) -> cases.Outcome:
  return pair.signalled(
    number, index, _context_of_two(training.folder.with_name("two")), rng, folder
  )


def _evaluating(index: int, training: Training, rng, folder: pathlib.Path) -> cases.Outcome:
  del rng  # the time of the signal is fixed
  expected = _context_of_two(training.folder.with_name("two_short"), pair.EVERY)
  return pair.evaluating(index, expected, folder)


@functools.cache
def _context_of_two(folder: pathlib.Path, steps: int = pair.STEPS) -> np.ndarray:
  return pair.uninterrupted(folder, steps)


def run_kind(
  training: Training, kind: Kind, number: int, seed: int, folder: pathlib.Path
) -> list[cases.Outcome]:
  """Runs a kind; a run that raises is printed, and counts as not survived.

  Args:
    training: training to interrupt.
    kind: kind of fault.
    number: number of the kind, for the seed.
    seed: seed of the campaign.
    folder: parent of the runs' folders.

  Raises:
    Skip: this machine does not allow it.
  """
  outcomes = []
  for run in range(kind.runs):
    place = folder / f"{number}_{run}"
    place.mkdir(parents=True)
    start = time.monotonic()
    try:
      outcome = kind.case(training, np.random.default_rng([seed, number, run]), place)
    except cases.Skip:
      raise
    except Exception as error:  # the campaign looks for these
      print(f"FAILED: {type(error).__name__}: {error}", flush=True)
      outcome = cases.Outcome(False, 0, False)
    seconds = time.monotonic() - start
    print(f"{kind.name}, run {run + 1}: {outcome}, {seconds:.1f} s", flush=True)
    outcomes.append(outcome)
  return outcomes


def row(kind: Kind, outcomes: list[cases.Outcome]) -> str:
  """Formats a row of the table."""
  n, survived = len(outcomes), sum(outcome.survived for outcome in outcomes)
  equal, lost = sum(outcome.equal for outcome in outcomes), [outcome.lost for outcome in outcomes]
  text = kind.equality if equal == n else f"{equal} of {n}"
  span = str(max(lost)) if min(lost) == max(lost) else f"{min(lost)} to {max(lost)}"
  return f"| {kind.name} | {n} | {survived} | {span} | {text} |"


def main() -> int:
  """Runs the campaign, and prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", default="", help="words, separated by commas")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  words = [word.lower() for word in arguments.only.split(",")]
  rows, good, start = [], True, time.monotonic()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    training = Training(config_of(), folder / "reference")
    for number, kind in enumerate(kinds()):
      if not any(word in kind.name.lower() for word in words):
        continue
      try:
        outcomes = run_kind(training, kind, number, arguments.seed, folder / "runs")
      except cases.Skip as skip:
        rows.append((0, f"| {kind.name} | 0 | {skip} | | |"))
        continue
      rows.append((len(outcomes), row(kind, outcomes)))
      good &= all(outcome.survived and outcome.equal for outcome in outcomes)
  print("\n| fault | runs | survived | steps lost | final context equal |")
  print("| --- | --- | --- | --- | --- |")
  print("\n".join(text for _, text in rows))
  total = sum(n for n, _ in rows)
  print(f"\n{total} runs in {(time.monotonic() - start) / 60:.0f} minutes, seed {arguments.seed}")
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
