"""Some runs of the fault campaign; all runs: `python -m tests.faults.campaign`."""

import dataclasses

import pytest

from tests.faults import cases
from tests.faults.campaign import kinds, run_kind
from tests.faults.training import Training, config_of

# One run of each. tests/files/test_checkpoint_faults.py has SIGKILL during a save.
SELECTED = (
  "SIGTERM at any step",
  "newest checkpoint bit-flipped",
  "disk full, retry",
  "NaN, roll back",
)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
  return Training(config_of(), tmp_path_factory.mktemp("faults") / "reference")


@pytest.mark.parametrize("name", SELECTED)
def test_a_fault(training, name, tmp_path):
  ((number, kind),) = [(n, kind) for n, kind in enumerate(kinds()) if kind.name == name]
  try:
    (outcome,) = run_kind(training, dataclasses.replace(kind, runs=1), number, 1, tmp_path)
  except cases.Skip as skip:
    pytest.skip(str(skip))
  assert outcome.survived and outcome.equal
  assert 0 <= outcome.lost <= 8
