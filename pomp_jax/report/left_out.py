"""The section of a report on pictures and classes that are in no figure."""

from collections.abc import Mapping
from typing import Any

from pomp_jax.report.report import Section, Table

_MOST = 200  # rows


def left_out_section(left_out: Mapping[str, Any]) -> Section:
  """A line for each class or picture of `left_out` of `results.json`; see
  `stored.left_out`."""
  rows = [
    ("class without a picture", name)
    for name in left_out.get("classes_without_pictures", ())
  ]
  for split, names in left_out.get("classes_without_test_pictures", {}).items():
    rows += [(f"class without a picture in {split}", name) for name in names]
  for split, pairs in left_out.get("duplicates", {}).items():
    rows += [
      (f"{split}: equals an earlier split's", f"{file} = {pairs[file]}")
      for file in pairs
    ]
  rows += [("HEIC, which is not read", file) for file in left_out.get("not_read", ())]
  more = [f"The first {_MOST} of {len(rows):,}."] if len(rows) > _MOST else []
  text = (
    "A class without any picture is no answer. A picture that equals one of an earlier split"
    " (train, validation, test) is dropped, unless data.duplicates=keep. HEIC pictures can be"
    " converted to JPEG."
  )
  table = Table(("what", "which"), rows[:_MOST])
  return Section("Pictures and classes that are left out", text, table, notes=more)
