"""The section of a report on classes and pictures that were left out or are duplicates."""

from collections.abc import Mapping
from typing import Any

from pomp_jax.report.report import Section, Table

_MOST = 200  # rows


def left_out_section(left_out: Mapping[str, Any]) -> Section:
  """Lists classes without pictures, duplicates and pictures of unread formats.

  `left_out` is the field of `results.json` that `image_splits.left_out` returns.
  """
  rows = []
  for name in left_out.get("classes_without_pictures", ()):
    rows.append(("class without a picture", name))
  for split, names in left_out.get("classes_without_test_pictures", {}).items():
    rows += [(f"class without a picture in {split}", name) for name in names]
  for split, pairs in left_out.get("duplicates", {}).items():
    what = f"{split}: equals an earlier split's"
    rows += [(what, f"{file} = {original}") for file, original in pairs.items()]
  for file in left_out.get("not_read", ()):
    rows.append(("HEIC, which is not read", file))
  text = (
    "A class without any picture is no answer. A picture that equals one of an earlier split"
    " (train, validation, test) is dropped, unless data.duplicates=keep. HEIC pictures can be"
    " converted to JPEG."
  )
  notes = []
  if len(rows) > _MOST:
    notes.append(f"The first {_MOST} of {len(rows):,}.")
  table = Table(("what", "which"), rows[:_MOST])
  title = "Pictures and classes that are left out"
  return Section(title, text, table, notes=notes)
