"""Runs tests against mutants in copies of the tree; the tree itself is never
changed."""

from collections.abc import Callable, Sequence
import contextlib
import multiprocessing
from multiprocessing.connection import wait
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
from typing import NamedTuple

from cosmic_ray.mutating import apply_mutation
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutants.listing import ROOMS, ROOT, shown_to
from tests.mutants.operators import operator_of

_NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "*.egg-info")
_STOPPED = ", stopped"
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.mutants.preloaded", "tests.mutants.session"])


def _run_pytest(
  copy: str, arguments: Sequence[str], output: str, write_bytecode: bool
) -> None:
  """Runs pytest in a copy of the tree; a process and session of its own."""
  os.setsid()
  # Not a worker of the tests that show the sample of the day: these share runs between
  # processes.
  for name in [name for name in os.environ if name.startswith("PYTEST_")]:
    del os.environ[name]
  with open(output, "w") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  os.chdir(copy)
  sys.dont_write_bytecode = not write_bytecode
  # Everything of the project is imported from the copy.
  sys.path[:] = [copy, *(path for path in sys.path if path not in ("", str(ROOT)))]
  for name in list(sys.modules):
    if name.split(".")[0] == "tests":
      del sys.modules[name]
  import pytest

  options = [
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "--tb=line",
    "--basetemp=../temporary",
  ]
  status = pytest.main([*options, *arguments])
  sys.stdout.flush()
  os._exit(status)


def _start(
  copy: pathlib.Path, arguments: Sequence[str], *, write_bytecode: bool = False
) -> multiprocessing.process.BaseProcess:
  output = str(copy.parent / "output.txt")
  process = _FORKED.Process(
    target=_run_pytest, args=(str(copy), arguments, output, write_bytecode)
  )
  process.start()
  return process


def _copy_tree(copy: pathlib.Path) -> None:
  """Copies the tree; compiles what the tests import, so that a mutant compiles its file
  alone.

  Raises:
    RuntimeError: the tests can't be collected, so each mutant would count as seen.
  """
  shutil.copytree(ROOT, copy, symlinks=True, ignore=_NOT_COPIED)
  tests = [test for room in ROOMS.values() for test in room.tests]
  process = _start(copy, ["--collect-only", *tests], write_bytecode=True)
  process.join()
  if process.exitcode:
    output = (copy.parent / "output.txt").read_text()
    raise RuntimeError(
      f"the tests can't be collected without a mutant:\n{output[-2000:]}"
    )


class _Trial(NamedTuple):
  """The tests of one mutant, while they run in a copy of the tree."""

  item: WorkItem
  copy: pathlib.Path
  original: str
  modified_ns: int
  process: multiprocessing.process.BaseProcess
  start: float

  @classmethod
  def begin(cls, item: WorkItem, copy: pathlib.Path, tests: Sequence[str]) -> "_Trial":
    (mutant,) = item.mutations
    path = copy / mutant.module_path
    modified_ns = path.stat().st_mtime_ns
    operator = operator_of(mutant.operator_name)()
    original, _ = apply_mutation(path, operator, mutant.occurrence)
    process = _start(copy, ["-x", *tests])
    return cls(item, copy, original, modified_ns, process, time.monotonic())

  def end(self) -> WorkResult:
    """Stops the tests if they still run, and restores the file."""
    stopped = self.process.is_alive()
    if stopped:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGKILL)
    self.process.join()
    path = self.copy / self.item.mutations[0].module_path
    path.write_text(self.original)
    # Its bytecode was compiled from a file of this time.
    os.utime(path, ns=(self.modified_ns, self.modified_ns))
    output = (self.copy.parent / "output.txt").read_text(errors="replace")[-1000:]
    return WorkResult(
      worker_outcome=WorkerOutcome.NORMAL,
      test_outcome=TestOutcome.KILLED
      if self.process.exitcode
      else TestOutcome.SURVIVED,
      output=f"{time.monotonic() - self.start:.1f} s{_STOPPED * stopped}\n{output}",
    )


def _failed_tests(output: str) -> list[str]:
  """The tests that pytest's summary names; not files, whose import fails."""
  return re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", output, re.MULTILINE)


def _check_without_mutants(copy: pathlib.Path, tests: Sequence[str]) -> None:
  """Raises RuntimeError if some of the tests fail for another reason than a mutant."""
  process = _start(copy, tests)
  process.join()
  if process.exitcode:
    output = (copy.parent / "output.txt").read_text(errors="replace")
    failed = _failed_tests(output) or tests
    raise RuntimeError(
      f"fail without a mutant, so what they saw is not seen: {failed}\n{output[-3000:]}"
    )


def seconds_of(result: WorkResult) -> float:
  """How long the tests of a mutant took."""
  return float(result.output.split(maxsplit=1)[0])


def was_stopped(result: WorkResult) -> bool:
  """Whether the tests of a mutant did not end in time."""
  return result.output.split("\n", 1)[0].endswith(_STOPPED)


def run(
  items: Sequence[WorkItem],
  done: Callable[[WorkItem, WorkResult], None],
  *,
  whole_room: bool,
  limit: float,
  processes: int = 2,
  seconds: float = float("inf"),
) -> None:
  """Tests mutants and passes each result to `done`.

  Args:
    items: mutants, in the order in which they begin.
    done: receives a mutant and its result.
    whole_room: whether a mutant that the nearest tests miss is shown to the rest of its
    room.
    limit: seconds after which the tests of a mutant are stopped; it counts as seen,
    since most such
      mutants wait or repeat for ever.
    processes: mutants that are tested at the same time, in a copy of the tree each.
    seconds: time for all; mutants under test are then stopped without a result. The
    check of the
      tests that saw mutants comes after it.

  Raises:
    RuntimeError: the tests can't be collected, or those that saw mutants fail without
    them.
  """
  pending = list(reversed(items))
  saw: set[str] = set()
  end = time.monotonic() + seconds
  trials: dict[int, _Trial] = {}
  with tempfile.TemporaryDirectory(
    prefix="mutants-", ignore_cleanup_errors=True
  ) as folder:
    free = [pathlib.Path(folder, str(index), "tree") for index in range(processes)]
    _copy_tree(free[0])
    for copy in free[1:]:
      shutil.copytree(free[0], copy, symlinks=True)
    try:
      while (pending or trials) and time.monotonic() < end:
        while pending and free:
          item = pending.pop()
          tests = shown_to(item.mutations[0], whole_room=whole_room)
          trial = _Trial.begin(item, free.pop(), tests)
          trials[trial.process.sentinel] = trial
        wait(trials, timeout=1)
        for sentinel, trial in list(trials.items()):
          if not trial.process.is_alive() or time.monotonic() > trial.start + limit:
            del trials[sentinel]
            result = trial.end()
            saw.update(_failed_tests(result.output))
            done(trial.item, result)
            free.append(trial.copy)
    finally:
      for trial in trials.values():
        trial.end()
        free.append(trial.copy)
    if saw:
      _check_without_mutants(free[0], sorted(saw))
