"""Suites of data sets for `evaluate`, and the tables of their figures.

`published.json` has published figures with their sources.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any, NamedTuple

from pomp_jax.data.class_lists import FOUR, TEN

NO_SUITE = "none"  # value of `evaluate.suite` for no suite
_IMAGENET = "imagenet1k"  # source of the cross-dataset and cross-domain comparisons
_PUBLISHED = pathlib.Path(__file__).with_name("published.json")


class Suite(NamedTuple):
  """A value of `config.evaluate.suite`: data sets, or splits of the world."""

  sets: tuple[str, ...]  # data sets to evaluate by default
  more: tuple[str, ...] = ()  # data sets that `evaluate.sets` may name beside them
  halves: bool = False  # whether a set's base and new classes are evaluated apart


SUITES = {
  "world": Suite(("base", "novel", "shifted")),
  "cross_dataset": Suite(TEN),
  "cross_domain": Suite(FOUR),
  # Both comparisons, each with its own table and mean.
  "fourteen": Suite((*TEN, *FOUR), (_IMAGENET,)),
  # CoCoOp's protocol (Zhou et al., CVPR 2022).
  "base_to_new": Suite((_IMAGENET, *TEN), halves=True),
  # The default set has the class list of the published figures.
  "imagenet21k": Suite(("imagenet21k_p_w21",), ("imagenet21k_p", "imagenet21k")),
}


# The tables, as arguments of `report.evaluation_report.Group`: title, sets, whether to
# average over the sets, and readers whose images are those of the published figures.
GROUPS: dict[str, tuple] = {
  # CoOp has its own splits of the ten sets. An ImageNet variant has the same images in
  # CoOp's layout and in TFDS.
  "cross_dataset": ("CoOp's ten cross-dataset sets", TEN, True, ("coop",)),
  "cross_domain": ("four variants of ImageNet", FOUR, True, ("coop", "tfds")),
  "base_to_new": ("base to new", SUITES["base_to_new"].sets, True, ("coop",)),
  "imagenet21k": (
    "ImageNet-21K",
    SUITES["imagenet21k"].sets,
    False,
    ("tfds", "folder"),
  ),
  _IMAGENET: ("ImageNet-1K, the source", (_IMAGENET,), False),
}

# Set -> table, for the suites that do not halve the classes.
GROUP_OF: dict[str, str] = {}
for _group in ("world", "cross_dataset", "cross_domain", "imagenet21k"):
  for _name in SUITES[_group].sets + SUITES[_group].more:
    GROUP_OF[_name] = _group
GROUP_OF[_IMAGENET] = _IMAGENET


def published(
  group: str, kind: str, rows: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """Returns published figures for comparison with the figures of a table.

  Args:
    group: name of the table.
    kind: kind of the figures, such as "top1".
    rows: rows of the table. Only methods with a figure in one of its columns count.

  Returns:
    `source` and `figures` (percent, by column) of each such method, by its name.
  """
  content = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
  columns = set().union(*rows.values())
  methods = {}
  for method in content["methods"]:
    figures = method["figures"].get(group, {}).get(kind, {})
    if columns & set(figures):
      source = content["sources"][method["source"]]
      methods[method["name"]] = {"source": source, "figures": figures}
  return methods
