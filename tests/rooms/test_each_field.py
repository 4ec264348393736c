"""Each field of each job does what it says: another value, and the records that it
changes.

A case is a run of `tests.rooms.recorded_jobs`, which computes nothing that takes long.
It runs once as usual and once with other values of all fields of its rows. An ignored
field would leave its records as they were.
"""

import contextlib
from typing import Any

import numpy as np
import pytest

from pomp_jax.config import defaults, fields_of
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from tests.rooms.field_cases import CASES, ELSEWHERE, write_files
from tests.rooms.recorded_jobs import RUNS, Calls, Recorded
from tests.support.processes import ROOT
from tests.train.test_wiring import ROUNDING, ROUNDING_OF_IMAGES, SAME

ROWS = [(case, field) for case, (_, _, rows) in CASES.items() for field in rows]


def test_each_field_has_a_row():
  own = {field for case in CASES.values() for field in case.rows}
  group_of = lambda field: field.partition(".")[0] + "."
  others = {
    field for field in fields_of() if {field, group_of(field)} & ELSEWHERE.keys()
  }
  assert own | others == set(fields_of())
  for place in ELSEWHERE.values():
    file, _, name = place.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
  # What a training learns does not tell whether they are read.
  assert {*SAME, *ROUNDING, *ROUNDING_OF_IMAGES} <= own


@pytest.fixture(scope="module")
def folders(region_set, tmp_path_factory):
  """Paths that the names in capitals of the cases stand for."""
  root = tmp_path_factory.mktemp("fields")
  write_files(root, region_set)
  return {"ROOT": str(root), "REGIONS": str(region_set)}


@pytest.fixture(scope="module")
def records(folders, tmp_path_factory):
  """A function: run, fields -> its records."""
  encoder = opening.open_encoder(defaults().clip)
  found: dict[str, dict[str, Any]] = {}

  def find(run, fields):
    key = repr((run, sorted(fields.items())))
    if key not in found:
      config = defaults(fields.get("job", "pretrain")).replace(
        in_place(folders, fields)
      )
      with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Recorded):
        calls = Calls(patch, encoder)
        RUNS[run](calls, config, tmp_path_factory.mktemp("run") / "run")
      found[key] = calls.seen
    return found[key]

  return find


def in_place(folders: dict[str, str], value: Any) -> Any:
  """A value with paths for the names in capitals."""
  if isinstance(value, dict):
    return {key: in_place(folders, own) for key, own in value.items()}
  if isinstance(value, list | tuple | set):
    return type(value)(in_place(folders, own) for own in value)
  for name, folder in folders.items():
    value = value.replace(name, folder) if isinstance(value, str) else value
  return value


@pytest.mark.parametrize(("case", "field"), ROWS)
def test_a_field_changes_its_records(records, folders, case, field):
  run, beside, rows = CASES[case]
  value, changed, *becomes = rows[field]
  assert value != fields_of()[field].default
  try:
    before = records(run, beside)
  except InputError:  # the job needs the field
    before = {}
  after = records(run, beside | {name: row[0] for name, row in rows.items()})
  expected = changed if isinstance(changed, dict) else {changed: (*becomes, value)[0]}
  for record, own in in_place(folders, expected).items():
    assert read(after, record) == own != read(before, record)


def read(records: dict[str, Any], name: str) -> Any:
  """A record, or a part of one by attributes and keys; None if there is none."""
  owner, attributes = name, []
  while owner not in records:
    owner, _, attribute = owner.rpartition(".")
    attributes.insert(0, attribute)
    if not owner:
      return None
  value = records[owner]
  for attribute in attributes:
    value = value[attribute] if isinstance(value, dict) else getattr(value, attribute)
  return pytest.approx(value) if isinstance(value, np.ndarray) else value
