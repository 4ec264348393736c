"""Damaged caches and checkpoints, read as a run does: none of them passes for what was written."""

import collections

from tests.faults.damaged_caches import CUTS, FLIPS, STRETCHES, trials


def test_nothing_wrong_is_read_without_a_word(tmp_path):
  outcomes = collections.defaultdict(collections.Counter)
  for kind, outcome in trials(0, tmp_path):
    outcomes[kind][outcome] += 1
  assert len(outcomes) == 18
  assert sum(of.total() for of in outcomes.values()) == 6 * (FLIPS + CUTS + STRETCHES)
  for kind, of in outcomes.items():
    assert not of["WRONG"], (kind, of)
    # A file of Orbax's state may have bytes that nothing depends on; the others have none.
    assert not of["harmless"] or kind.startswith("state of a checkpoint"), (kind, of)
