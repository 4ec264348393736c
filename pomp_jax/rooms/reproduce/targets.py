"""The paper's tables, number by number, and what they say of a set.

`targets.json` has the figures with the table that each stands in.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

_FILE = pathlib.Path(__file__).with_name("targets.json")

# Test images and classes of the fourteen sets: CoOp (Zhou et al., IJCV 2022), appendix
# A, whose splits all of the compared methods use. ImageNet-21K's processed winter 2021
# release has 50 validation images of each of 10,450 classes (Ridnik et al., 2021).
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
  """The publication that the figures stand in."""
  content: dict[str, str] = json.loads(_FILE.read_text(encoding="utf-8"))
  return content["source"]


def target(table: str, method: str, column: str) -> Target | None:
  """A figure of a table; None where it has a dash, or no such column.

  Args:
    table: number or name of the table.
    method: its row.
    column: its column.
  """
  content = tables()[table]
  if column not in content["columns"]:
    return None
  value = content["rows"][method][content["columns"].index(column)]
  if value is None:
    return None
  label = f"table {table}" if table[0].isdigit() else table
  return Target(value, label, method)
