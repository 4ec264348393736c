"""Which data sets an evaluation goes over, and which of them a table sums up.

A set of a suite is a class list (`data.vocabularies`), or a split of the embedded world.
"""

import dataclasses

# In the order of CoOp's tables, and of those after it.
TEN = (
  "caltech101",
  "oxford_pets",
  "stanford_cars",
  "flowers102",
  "food101",
  "fgvc_aircraft",
  "sun397",
  "dtd",
  "eurosat",
  "ucf101",
)
FOUR = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")

# The group of a user's own sets, and of the data set that `config.data` names.
OWN = "own"
# What `evaluate.suite` says where none is asked for.
NO_SUITE = "none"
# The source of the cross-dataset and cross-domain comparisons; it is in no mean.
_SOURCE = "imagenet1k"


@dataclasses.dataclass(frozen=True)
class Suite:
  """Data sets that belong together.

  Attributes:
    sets: those that are evaluated unless others are asked for.
    more: others that can be asked for.
    halves: every set twice, over its base classes and over its new ones.
  """

  sets: tuple[str, ...]
  more: tuple[str, ...] = ()
  halves: bool = False


SUITES = {
  # Prompts are learned on base; nothing of novel was ever seen.
  "world": Suite(("base", "novel", "shifted")),
  "cross_dataset": Suite(TEN),
  "cross_domain": Suite(FOUR),
  # Both, each with its own table and its own mean.
  "fourteen": Suite((*TEN, *FOUR), (_SOURCE,)),
  # CoCoOp's protocol (Zhou et al., CVPR 2022).
  "base_to_new": Suite((_SOURCE, *TEN), halves=True),
  # The first is the list of the published figures.
  "imagenet21k": Suite(("imagenet21k_p_w21",), ("imagenet21k_p", "imagenet21k")),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Sets that stand in one table.

  Attributes:
    title: of the table.
    sets: all that belong to it; the mean over fewer is not called "mean".
    mean: whether the mean over the sets says anything.
    readers: those under which the images are the ones of the published figures.
  """

  title: str
  sets: tuple[str, ...] = ()
  mean: bool = True
  readers: tuple[str, ...] = ()


GROUPS = {
  "world": Group("embedded world", SUITES["world"].sets, mean=False),
  # CoOp's splits of the ten are its own; a variant of ImageNet is one data set everywhere.
  "cross_dataset": Group("CoOp's ten cross-dataset sets", TEN, readers=("coop",)),
  "cross_domain": Group("four variants of ImageNet", FOUR, readers=("coop", "tfds")),
  "base_to_new": Group("base to new", SUITES["base_to_new"].sets, readers=("coop",)),
  "imagenet21k": Group(
    "ImageNet-21K", SUITES["imagenet21k"].sets, mean=False, readers=("tfds", "folder")
  ),
  _SOURCE: Group("ImageNet-1K, the source", (_SOURCE,), mean=False),
  OWN: Group("own sets"),
}


# The group of every set that has a name of ours, where its classes are not halved.
GROUP_OF = {
  name: group
  for group in ("world", "cross_dataset", "cross_domain", "imagenet21k")
  for name in (*SUITES[group].sets, *SUITES[group].more)
} | {_SOURCE: _SOURCE}
