"""Suites of evaluation sets, and the groups of sets that a table averages.

A set of a suite is a packaged class list (`data.class_lists`), or a split of the embedded world.
"""

import dataclasses

# CoOp's cross-dataset sets, in the order of its tables.
TEN = ("caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101") + (
  "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
FOUR = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")

# Group of a user's own sets, and of the data set in `config.data`.
OWN = "own"
# Value of `evaluate.suite` for no suite.
NO_SUITE = "none"
# Source of the cross-dataset and cross-domain comparisons; part of no mean.
_SOURCE = "imagenet1k"


@dataclasses.dataclass(frozen=True)
class Suite:
  """Data sets of one evaluation protocol.

  Attributes:
    sets: data sets to evaluate by default.
    more: data sets that `evaluate.sets` may name beside them.
    halves: whether every set is evaluated twice, over its base and its new classes.
  """

  sets: tuple[str, ...]
  more: tuple[str, ...] = ()
  halves: bool = False


SUITES = {
  "world": Suite(("base", "novel", "shifted")),
  "cross_dataset": Suite(TEN),
  "cross_domain": Suite(FOUR),
  # Both, each with its own table and mean.
  "fourteen": Suite((*TEN, *FOUR), (_SOURCE,)),
  # CoCoOp's protocol (Zhou et al., CVPR 2022).
  "base_to_new": Suite((_SOURCE, *TEN), halves=True),
  # The default is the list of the published figures.
  "imagenet21k": Suite(("imagenet21k_p_w21",), ("imagenet21k_p", "imagenet21k")),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Data sets of one table.

  Attributes:
    title: title of the table.
    sets: all sets of the group; only a mean over all of them is called "mean".
    mean: whether to average over the sets.
    readers: readers whose images are those of the published figures.
  """

  title: str
  sets: tuple[str, ...] = ()
  mean: bool = True
  readers: tuple[str, ...] = ()


GROUPS = {
  "world": Group("embedded world", SUITES["world"].sets, mean=False),
  # CoOp has its own splits of the ten. An ImageNet variant is the same data set everywhere.
  "cross_dataset": Group("CoOp's ten cross-dataset sets", TEN, readers=("coop",)),
  "cross_domain": Group("four variants of ImageNet", FOUR, readers=("coop", "tfds")),
  "base_to_new": Group("base to new", SUITES["base_to_new"].sets, readers=("coop",)),
  "imagenet21k": Group(
    "ImageNet-21K", SUITES["imagenet21k"].sets, mean=False, readers=("tfds", "folder")
  ),
  _SOURCE: Group("ImageNet-1K, the source", (_SOURCE,), mean=False),
  OWN: Group("own sets"),
}

# Group of every named set, unless its classes are halved.
GROUP_OF = {
  name: group
  for group in ("world", "cross_dataset", "cross_domain", "imagenet21k")
  for name in (*SUITES[group].sets, *SUITES[group].more)
} | {_SOURCE: _SOURCE}
