"""Damaged caches and checkpoints, read as a run does."""

import collections

from tests.faults.damaged_caches import CUTS, FLIPS, STRETCHES, trials


def test_no_damage_is_read(tmp_path):
  outcomes = collections.defaultdict(collections.Counter)
  for kind, outcome in trials(0, tmp_path):
    outcomes[kind][outcome] += 1
  assert len(outcomes) == 18
  assert sum(of.total() for of in outcomes.values()) == 6 * (FLIPS + CUTS + STRETCHES)
  for kind, of in outcomes.items():
    assert not of["WRONG"], (kind, of)
    # Only a file of Orbax's state may have unused bytes.
    assert not of["harmless"] or kind.startswith("state of a checkpoint"), (kind, of)
