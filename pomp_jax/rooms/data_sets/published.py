"""Published figures beside those of an evaluation; `published.json` has them with their sources."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

_PUBLISHED = pathlib.Path(__file__).with_name("published.json")


def published(
  group: str, kind: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Published figures in the columns of `rows`: method -> `source` and `figures` (percent)."""
  content = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
  columns = {column for row in rows.values() for column in row}
  return {
    method["name"]: {
      "source": content["sources"][method["source"]],
      "figures": method["figures"][group][kind],
    }
    for method in content["methods"]
    if columns & set(method["figures"].get(group, {}).get(kind, {}))
  }
