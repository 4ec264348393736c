"""The figures of the paper's tables, and the number of test images of each set.

`targets.json` has the figures by table.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

_FILE = pathlib.Path(__file__).with_name("targets.json")

# Test images of the fourteen sets: CoOp (Zhou et al., IJCV 2022), appendix A. All
# compared methods use CoOp's splits. ImageNet-21K's processed winter 2021 release has
# 50 validation images of each of 10,450 classes (Ridnik et al., 2021).
TEST_IMAGES = {
  "caltech101": 2_465,
  "oxford_pets": 3_669,
  "stanford_cars": 8_041,
  "flowers102": 2_463,
  "food101": 30_300,
  "fgvc_aircraft": 3_333,
  "sun397": 19_850,
  "dtd": 1_692,
  "eurosat": 8_100,
  "ucf101": 3_783,
  "imagenet_v2": 10_000,
  "imagenet_sketch": 50_889,
  "imagenet_a": 7_500,
  "imagenet_r": 30_000,
  "imagenet21k_p_w21": 522_500,
}
COUNTS_SOURCE = "CoOp, appendix A; ImageNet-21K-P, winter 2021"


class Target(NamedTuple):
  """A published figure."""

  value: float  # as printed
  table: str  # where it is printed
  row: str  # the method


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
  """The tables by number or name: `caption`, `columns`, and `rows` by method."""
  content: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
  found: dict[str, dict[str, Any]] = content["tables"]
  return found


def source() -> str:
  """The publication that prints the figures."""
  content: dict[str, str] = json.loads(_FILE.read_text(encoding="utf-8"))
  return content["source"]


def target(table: str, method: str, column: str) -> Target | None:
  """A figure of a table; None if the table has a dash there, or no such column.

  Args:
    table: number or name of the table.
    method: name of the row.
    column: name of the column.
  """
  content = tables()[table]
  if column not in content["columns"]:
    return None
  value = content["rows"][method][content["columns"].index(column)]
  if value is None:
    return None
  label = f"table {table}" if table[0].isdigit() else table
  return Target(value, label, method)
