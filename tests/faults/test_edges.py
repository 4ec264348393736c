"""A part of the campaign at the edges; all of it: `python -m tests.faults.edges`."""

from tests.faults.edges import kinds, run_kind


def test_nothing_is_wrong_without_a_word(tmp_path):
  for name, trials in kinds(1, tmp_path, 6).items():
    row = run_kind(trials())
    assert row.counts.total() and row.good, row.text(name)
