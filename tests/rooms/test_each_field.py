"""Each field of each job does what it says: another value, and the records that it
changes.

A case has a run that computes nothing that takes long. It runs once as usual and once
with other values of all fields of its rows. An ignored field would leave its records as
they were.

The core's cases are in `tests/support/field_cases.py`, a room's in
`tests/rooms/ROOM/field_cases.py`. Such a file may have `CASES`; `ELSEWHERE`, fields or
groups of fields with the test whose table has their rows; and `write_files`, which
writes what its cases read.
"""

import contextlib
import importlib
import pathlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pomp_jax.config import defaults, fields_of
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from tests.support.processes import ROOT
from tests.support.recorded_calls import Calls, Case, Recorded
from tests.train.test_wiring import ROUNDING, ROUNDING_OF_IMAGES, SAME


def case_files() -> list[ModuleType]:
  """The core's file of cases, and that of each room that has one."""
  files = [importlib.import_module("tests.support.field_cases")]
  for path in sorted(pathlib.Path(__file__).parent.glob("*/field_cases.py")):
    files.append(importlib.import_module(f"tests.rooms.{path.parent.name}.field_cases"))
  return files


def joined(files: list[ModuleType], table: str) -> dict[str, Any]:
  """A table of all files.

  Args:
    files: modules that may have the table.
    table: its name.

  Raises:
    ValueError: two files have an entry of the same name.
  """
  entries = {}
  for file in files:
    entries_of_file = getattr(file, table, {})
    twice = sorted(entries.keys() & entries_of_file.keys())
    if twice:
      raise ValueError(f"{file.__name__}: {table} of another file has {twice} too")
    entries |= entries_of_file
  return entries


FILES = case_files()
CASES: dict[str, Case] = joined(FILES, "CASES")
ELSEWHERE: dict[str, str] = joined(FILES, "ELSEWHERE")
ROWS = [(name, field) for name, case in CASES.items() for field in case.rows]


def test_each_field_has_a_row():
  fields_with_row = {field for _, field in ROWS}
  fields_elsewhere = set()
  for field in fields_of():
    group = field.partition(".")[0] + "."
    if field in ELSEWHERE or group in ELSEWHERE:
      fields_elsewhere.add(field)
  assert fields_with_row | fields_elsewhere == set(fields_of())
  for place in ELSEWHERE.values():
    file, _, name = place.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
  # What a training learns does not tell whether they are read.
  assert {*SAME, *ROUNDING, *ROUNDING_OF_IMAGES} <= fields_with_row


@pytest.fixture(scope="module")
def folders(region_set, tmp_path_factory):
  """Paths that the names in capitals of the cases stand for."""
  paths = {"ROOT": tmp_path_factory.mktemp("fields"), "REGIONS": region_set}
  for file in FILES:
    if hasattr(file, "write_files"):
      file.write_files(paths)
  return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def records(folders, tmp_path_factory):
  """A function: run, fields -> its records."""
  encoder = opening.open_encoder(defaults().clip)
  recorded: dict[str, dict[str, Any]] = {}

  def find(run, fields):
    key = repr((run.__module__, run.__name__, sorted(fields.items())))
    if key not in recorded:
      job = fields.get("job", "pretrain")
      config = defaults(job).replace(in_place(folders, fields))
      with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Recorded):
        calls = Calls(patch, encoder)
        run(calls, config, tmp_path_factory.mktemp("run") / "run")
      recorded[key] = calls.seen
    return recorded[key]

  return find


def in_place(folders: dict[str, str], value: Any) -> Any:
  """A value with paths for the names in capitals."""
  if isinstance(value, dict):
    return {key: in_place(folders, entry) for key, entry in value.items()}
  if isinstance(value, list | tuple | set):
    return type(value)(in_place(folders, entry) for entry in value)
  if isinstance(value, str):
    for name, folder in folders.items():
      value = value.replace(name, folder)
  return value


@pytest.mark.parametrize(("case", "field"), ROWS)
def test_a_field_changes_its_records(records, folders, case, field):
  run, fields, rows = CASES[case]
  value, changed, *becomes = rows[field]
  assert value != fields_of()[field].default
  try:
    before = records(run, fields)
  except InputError:  # the job needs the field
    before = {}
  after = records(run, fields | {name: row[0] for name, row in rows.items()})
  expected = changed
  if not isinstance(changed, dict):
    expected = {changed: becomes[0] if becomes else value}
  for record, expected_value in in_place(folders, expected).items():
    assert read(after, record) == expected_value
    assert read(before, record) != expected_value


def read(records: dict[str, Any], name: str) -> Any:
  """A record, or a part of one by attributes and keys; None if there is none."""
  record = name
  attributes = []
  while record not in records:
    record, _, attribute = record.rpartition(".")
    attributes.insert(0, attribute)
    if not record:
      return None
  value = records[record]
  for attribute in attributes:
    value = value[attribute] if isinstance(value, dict) else getattr(value, attribute)
  return pytest.approx(value) if isinstance(value, np.ndarray) else value
