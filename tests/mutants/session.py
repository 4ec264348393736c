"""A session: a sample of mutants with the results so far, in a database of
cosmic-ray."""

from collections.abc import Iterable, Sequence
import hashlib
from typing import NamedTuple

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkItem
from scipy.stats import binom

from tests.mutants.listing import (
  OPERATORS,
  ROOMS,
  ROOT,
  all_mutants,
  change_of,
  draw,
  equivalents,
  is_equivalent,
  room_of,
)
from tests.mutants.running import seconds_of, was_stopped


def _item_of(mutant: MutationSpec) -> WorkItem:
  """A mutant as an item whose name changes with its file."""
  digest = hashlib.sha256((ROOT / mutant.module_path).read_bytes()).hexdigest()[:8]
  operator = mutant.operator_name.removeprefix("core/")
  line, column = mutant.start_pos
  place = f"{mutant.module_path}:{line}:{column}"
  return WorkItem.single(f"{place} {operator} {mutant.occurrence} of {digest}", mutant)


def fill(
  session: WorkDB,
  rooms: Iterable[str],
  count: int | None,
  seed: str,
  operators: Sequence[str] = OPERATORS,
) -> None:
  """Draws the mutants of a new session; checks that those of an old one are of these
  files.

  Args:
    session: the database.
    rooms: names of packages.
    count: mutants of each; None: all.
    seed: seed of the draw.

  Raises:
    ValueError: a file has changed since the mutants were drawn.
  """
  if not session.num_work_items:
    for room in rooms:
      mutants = draw(room, count, seed, operators=operators)
      session.add_work_items(map(_item_of, mutants))
    return
  for item in session.work_items:
    (mutant,) = item.mutations
    if _item_of(mutant).job_id != item.job_id:
      raise ValueError(
        f"{mutant.module_path} has changed since these mutants were drawn: delete their file"
      )


def pending(session: WorkDB) -> list[WorkItem]:
  """The mutants that have no result yet, but for equivalent ones; the rooms mixed."""
  known = equivalents()
  items = [
    item
    for item in session.pending_work_items
    if not is_equivalent(item.mutations[0], known)
  ]
  return sorted(items, key=lambda item: hashlib.sha256(item.job_id.encode()).digest())


class Outcome(NamedTuple):
  """What a session found in one room.

  Attributes:
    listed: mutants of the room.
    equivalent: mutants of the session that no test can see.
    seen: mutants that failed a test, or that were stopped.
    stopped: those among them whose tests did not end in time.
    survivors: the others that were tested.
    minutes: of one process.
  """

  listed: int
  equivalent: int
  seen: int
  stopped: list[MutationSpec]
  survivors: list[MutationSpec]
  minutes: float

  @property
  def tested(self) -> int:
    """Mutants with a result that is not equivalent."""
    return self.seen + len(self.survivors)

  @property
  def rate(self) -> float:
    """Share of the tested mutants that was seen."""
    return self.seen / self.tested if self.tested else 1.0


def is_below(seen: int, tested: int, bar: float) -> bool:
  """Whether so few were seen that the share of all mutants is hardly at the bar.

  A small sample scatters. It is below if so few, or fewer, would be seen in less than
  one sample of a hundred where each mutant is seen with the probability `bar`. Of 20
  mutants at a bar of 0.85, at least 13 have to be seen.
  """
  return binom.cdf(seen, tested, bar) < 0.01


def outcomes(
  session: WorkDB, operators: Sequence[str] = OPERATORS
) -> dict[str, Outcome]:
  """What the session found so far, by room."""
  known = equivalents()
  results = dict(session.results)
  found: dict[str, Outcome] = {}
  for room in ROOMS:
    items = [item for item in session.work_items if room_of(item.mutations[0]) == room]
    if not items:
      continue
    equivalent, seen, seconds = 0, 0, 0.0
    stopped: list[MutationSpec] = []
    survivors: list[MutationSpec] = []
    for item in items:
      (mutant,) = item.mutations
      result = results.get(item.job_id)
      if is_equivalent(mutant, known):
        equivalent += 1
      elif result is not None:
        seconds += seconds_of(result)
        if result.test_outcome == TestOutcome.SURVIVED:
          survivors.append(mutant)
        else:
          seen += 1
          if was_stopped(result):
            stopped.append(mutant)
    n_listed = len(all_mutants(room, operators=operators))
    found[room] = Outcome(n_listed, equivalent, seen, stopped, survivors, seconds / 60)
  return found


def _print_mutants(title: str, mutants: list[MutationSpec]) -> None:
  for mutant in sorted(
    mutants, key=lambda mutant: (mutant.module_path, mutant.start_pos)
  ):
    change = change_of(mutant)
    operator = mutant.operator_name.removeprefix("core/")
    print(
      f"\n{title}: {change.file}:{mutant.start_pos[0]} {change.function} ({operator})"
    )
    print(f"  - {change.line}\n  + {change.becomes}")


def print_outcomes(found: dict[str, Outcome]) -> None:
  """Prints what survived or was stopped, and a row for each room."""
  for outcome in found.values():
    _print_mutants("stopped", outcome.stopped)
    _print_mutants("survived", outcome.survivors)
  print(
    "\nroom      mutants  equivalent  tested  seen  stopped  survived    rate     bar  minutes"
  )
  for room, outcome in found.items():
    print(
      f"{room:8}  {outcome.listed:7}  {outcome.equivalent:10}  {outcome.tested:6}  "
      f"{outcome.seen:4}  {len(outcome.stopped):7}  {len(outcome.survivors):8}  "
      f"{outcome.rate:6.1%}  {ROOMS[room].bar:6.0%}  {outcome.minutes:7.1f}"
    )
