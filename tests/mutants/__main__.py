"""Shows mutants of the packages to their tests: small mistakes, one at a time.

  python -m tests.mutants                      a sample of each package, drawn by today's date
  python -m tests.mutants prompt files         of some packages
  python -m tests.mutants --sample=all         all mutants: hours; resumes where it was interrupted
  python -m tests.mutants --list prompt        lists mutants, runs nothing

A mutant is shown to the test files that import its module, and with --whole-room to all
tests of its package.
"""

import argparse
from collections.abc import Sequence
import datetime
import pathlib
import sys
import tempfile

from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

from tests.mutants.listing import OPERATORS, ROOMS, all_mutants, change_of
from tests.mutants.operators import OWN
from tests.mutants.running import run, seconds_of, was_stopped
from tests.mutants.session import fill, is_below, outcomes, pending, print_outcomes


def _print_list(rooms: list[str], operators: Sequence[str]) -> None:
  for room in rooms:
    mutants = all_mutants(room, operators=operators)
    for mutant in mutants:
      change = change_of(mutant)
      print(f"{change.file}:{mutant.start_pos[0]}: {change.line}  ->  {change.becomes}")
    print(f"{room}: {len(mutants)} mutants")


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.mutants",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  today = datetime.date.today().strftime("%Y%m%d")
  parser.add_argument(
    "rooms", nargs="*", metavar="PACKAGE", help=f"of {', '.join(ROOMS)}"
  )
  parser.add_argument("--list", action="store_true", help="only list the mutants")
  parser.add_argument(
    "--sample", default="20", help="mutants of each package, or 'all'"
  )
  parser.add_argument(
    "--seed", default=today, help="seed of the sample (default: the date)"
  )
  parser.add_argument(
    "--minutes", type=float, default=float("inf"), help="time for all of it"
  )
  parser.add_argument("--limit", type=float, default=600, help="seconds for one mutant")
  parser.add_argument(
    "--processes", type=int, default=2, help="mutants at the same time"
  )
  parser.add_argument(
    "--own", action="store_true", help="what is left out or changes places"
  )
  parser.add_argument(
    "--whole-room", action="store_true", help="all tests of the package"
  )
  parser.add_argument("--session", type=pathlib.Path, help="file to resume from")
  flags = parser.parse_args()
  rooms = flags.rooms or list(ROOMS)
  if unknown := set(rooms) - set(ROOMS):
    parser.error(f"no such package: {', '.join(unknown)}")
  operators = tuple(OWN) if flags.own else OPERATORS
  if flags.list:
    _print_list(rooms, operators)
    return
  count = None if flags.sample == "all" else int(flags.sample)
  drawn = "all" if count is None else f"{count}-{flags.seed}"
  drawn += "-own" * flags.own
  name = f"mutants-{'-'.join(rooms)}-{drawn}.sqlite"
  path = flags.session or pathlib.Path(tempfile.gettempdir(), name)
  print(f"session: {path}")
  with use_db(path) as session:
    try:
      fill(session, rooms, count, flags.seed, operators)
    except ValueError as error:
      sys.exit(f"{path}: {error}")
    items = pending(session)
    n_done = 0

    def done(item: WorkItem, result: WorkResult) -> None:
      nonlocal n_done
      n_done += 1
      session.set_result(item.job_id, result)
      outcome = "SURVIVED"
      if result.test_outcome != TestOutcome.SURVIVED:
        outcome = "stopped" if was_stopped(result) else "seen"
      print(
        f"{n_done}/{len(items)}  {outcome:8}  {seconds_of(result):5.1f} s  {item.job_id}",
        flush=True,
      )

    try:
      run(
        items,
        done,
        whole_room=flags.whole_room,
        limit=flags.limit,
        processes=flags.processes,
        seconds=60 * flags.minutes,
      )
    except KeyboardInterrupt:
      print("interrupted; the same command resumes")
    except RuntimeError as error:
      sys.exit(f"{path}: {error}")
    found = outcomes(session, operators)
    print_outcomes(found)
  below = [
    room
    for room, outcome in found.items()
    if is_below(outcome.seen, outcome.tested, ROOMS[room].bar)
  ]
  if below:
    sys.exit(
      f"below the bar, by more than the chance of a sample explains: {', '.join(below)}"
    )


if __name__ == "__main__":
  main()
