"""Some trials of damaged and hostile files; all: `python -m tests.faults.edges`."""

from tests.faults.edges import kinds, run_kind


def test_no_outcome_is_wrong(tmp_path):
  for name, trials in kinds(1, tmp_path, 6).items():
    row = run_kind(trials())
    assert row.counts.total() and row.good, row.text(name)
