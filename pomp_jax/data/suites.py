"""Which data sets an evaluation goes over, and how their classes are told apart.

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


@dataclasses.dataclass(frozen=True)
class Suite:
  """Data sets that belong together.

  Attributes:
    sets: those that are evaluated unless others are asked for.
    more: others that can be asked for.
    halves: every set twice, over its base classes and over its new ones.
    mean: whether the mean over the sets says anything.
  """

  sets: tuple[str, ...]
  more: tuple[str, ...] = ()
  halves: bool = False
  mean: bool = True


SUITES = {
  # Prompts are learned on base; nothing of novel was ever seen.
  "world": Suite(("base", "novel", "shifted"), mean=False),
  "cross_dataset": Suite(TEN),
  "cross_domain": Suite(FOUR),
  # CoCoOp's protocol (Zhou et al., CVPR 2022).
  "base_to_new": Suite(("imagenet1k", *TEN), halves=True),
  # The first is the list of the published figures.
  "imagenet21k": Suite(("imagenet21k_p_w21",), ("imagenet21k_p", "imagenet21k"), mean=False),
}
