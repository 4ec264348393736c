"""The registries of methods, image sources, jobs and suites: rows only, imported when used.

To add one is a file and a row here.
"""

from collections.abc import Mapping
import importlib
import types
from typing import Any, NamedTuple

WORLD = "world"
SYNTHETIC = "synthetic"


def load(module: str) -> types.ModuleType:
  """Imports a module by its path below `pomp_jax`."""
  return importlib.import_module(f"pomp_jax.{module}")


class Method(NamedTuple):
  """One value of `config.method`.

  Attributes:
    learns: "steps" (by gradient steps on the contrast of images and classes), "features" (a
      classifier of features of the frozen CLIP) or "nothing".
    module: path below `pomp_jax` of the module with `make_learner` (`train.methods`) for "steps",
      or with `fit_classifier` (see `rooms.baselines.linear_probe`) for "features".
    fixes: field -> the one value that the method accepts.
    pixels: whether it learns tokens of the image tower, and so needs pixels.
    per_image_text: whether each image has class features of its own.
    fixed_text: whether class features are those of the hand-written prompt.
    deep: towers whose layers have tokens of their own, `prompt.depth` of them.
    fixed_words: whether words of `prompt.init` beyond `prompt.m` tokens stay fixed before the name.
    saves_prompt: whether it learns a prompt, which `prompt.npz` can hold.
    seeded: whether the seed changes the result.
  """

  learns: str
  module: str
  fixes: Mapping[str, Any] = types.MappingProxyType({})
  pixels: bool = False
  per_image_text: bool = False
  fixed_text: bool = False
  deep: tuple[str, ...] = ()
  fixed_words: bool = False
  saves_prompt: bool = False
  seeded: bool = True

  @property
  def by_steps(self) -> bool:
    """Whether it learns by gradient steps."""
    return self.learns == "steps"

  def load(self) -> types.ModuleType:
    """Imports the module."""
    return load(self.module)


_NOT_AUGMENTED = types.MappingProxyType({"data.augment": "none"})
# CoOp is pomp with negatives="all".
METHODS = {
  "pomp": Method("steps", "prompt.learner", saves_prompt=True),
  "cocoop": Method("steps", "rooms.baselines.cocoop", per_image_text=True),
  "vpt_shallow": Method("steps", "rooms.baselines.visual_tokens", pixels=True, fixed_text=True),
  "vpt_deep": Method(
    "steps", "rooms.baselines.visual_tokens", pixels=True, fixed_text=True, deep=("vision",)
  ),
  "maple": Method(
    "steps",
    "rooms.baselines.visual_tokens",
    {"prompt.position": "end", "clip.text_tower": "shared"},
    pixels=True,
    deep=("vision", "text"),
    fixed_words=True,
  ),
  "zero_shot": Method("nothing", "", _NOT_AUGMENTED, seeded=False),
  "linear_probe": Method("features", "rooms.baselines.linear_probe", _NOT_AUGMENTED, seeded=False),
  "tip_adapter": Method("features", "rooms.baselines.tip_adapter", seeded=False),
  "tip_adapter_f": Method("features", "rooms.baselines.tip_adapter"),
}


class Source(NamedTuple):
  """One value of `config.data.source`.

  Attributes:
    module: path below `pomp_jax` of the module that opens it.
    unread: fields of `config.data` that it does not read; they must have their defaults.
    stored: whether its images are files on a disk, so that the module has `splits` and `open_split`
      for `evaluate.stored`; other modules have `open_source`, `n_training_classes`,
      `evaluation_splits` and `has_validation`.
    root: whether `data.root` must be a folder that exists.
    test_sets: whether the module has `open_test_set`, for `evaluate.source`.
    holds_out: whether images for missing splits are held out of the training images.
    draws_shots: whether `open_split` draws few-shot subsets of its own.
  """

  module: str
  unread: tuple[str, ...] = ()
  stored: bool = True
  root: bool = True
  test_sets: bool = False
  holds_out: bool = False
  draws_shots: bool = False

  def load(self) -> types.ModuleType:
    """Imports the module."""
    return load(self.module)


SOURCES = {
  WORLD: Source(
    "world",
    ("root", "dataset", "annotations", "names", "shots", "classes", "base", "novel"),
    stored=False,
    root=False,
  ),
  "folder": Source("data.folder", ("dataset", "annotations"), test_sets=True, holds_out=True),
  "coop": Source("data.coop", ("annotations",), test_sets=True, draws_shots=True),
  "tfds": Source("data.tfds", ("annotations",), root=False, test_sets=True),
  "regions": Source("rooms.regions.region_crops", ("dataset",), holds_out=True),
  SYNTHETIC: Source("data.synthetic", root=False),
}

# Values of `evaluate.source`.
READERS = tuple(name for name, source in SOURCES.items() if source.test_sets)


class Job(NamedTuple):
  """One value of `config.job`.

  Attributes:
    module: path of its module below `pomp_jax`. `check(config, workdir)` there raises a one-line
      error for what can't work and writes nothing; `run(config, workdir)` does it. With several
      processes all call both. `run` may return in a process before the first one has written its
      files (`hosts.finish` waits for all), but for `pretrain` and `ablate`, which others call.
    help: what it does, a noun phrase.
    report: "module:function" below `pomp_jax`, which takes what `results.json` holds and the fields
      by dotted name, and returns a `report.Report`; empty: the job writes no report.
    trains: whether it trains by steps, so that all processes can stop after the same step.
    processes: whether it runs with several processes.
    devices: whether it computes on JAX's devices.
  """

  module: str
  help: str
  report: str = ""
  trains: bool = False
  processes: bool = True
  devices: bool = True


JOBS = {
  "pretrain": Job(
    "train.pretrain",
    "a training: a prompt, its evaluation, plots",
    "report.reports:training_report",
    trains=True,
  ),
  "evaluate": Job(
    "evaluate.evaluate",
    "accuracy of prompts over a suite of data sets",
    "report.evaluation_report:evaluation_report",
  ),
  "predict": Job(
    "evaluate.predict",
    "names for pictures, their pixels or their objects",
    "report.reports:predictions_report",
  ),
  "repeat": Job(
    "train.repeat",
    "a training once per seed, with mean and spread",
    "report.reports:seeds_report",
    trains=True,
  ),
  "benchmark": Job(
    "rooms.benchmark.benchmark",
    "cost of the text tower and of the whole step",
    processes=False,
  ),
  "export": Job("evaluate.export", "a prompt, or features of names, as a file for other programs"),
  "prepare": Job(
    "rooms.prepare.prepare",
    "a data set as distributed, made into records",
    processes=False,
    devices=False,
  ),
  "analyse": Job(
    "rooms.analysis.analyse",
    "geometry of class features under prompts",
    "report.reports:geometry_report",
  ),
  "baselines": Job(
    "rooms.baselines.baselines",
    "methods side by side, with accuracy and cost",
    "report.reports:baselines_report",
    processes=False,
  ),
  "ablate": Job(
    "rooms.ablation.ablate",
    "a training for every combination of some fields' values",
    "rooms.ablation.ablation_report:ablation_report",
  ),
  "detect": Job(
    "rooms.regions.detect",
    "boxes with classes, under prompts side by side",
    "rooms.regions.reports:regions_report",
  ),
  "segment": Job(
    "rooms.regions.segment",
    "a class for every pixel, under prompts side by side",
    "rooms.regions.reports:regions_report",
  ),
  "propose": Job(
    "rooms.regions.propose",
    "regions that a trained network finds, for segment and detect",
    processes=False,
  ),
  "train_masks": Job(
    "rooms.regions.train_masks", "a training of a network that finds regions", trains=True
  ),
  "page": Job(
    "rooms.page.page",
    "a page in the browser: pictures under prompts, and runs",
    processes=False,
  ),
  "gradient_bias": Job(
    "rooms.analysis.gradient_bias",
    "bias and variance of the sampled gradient",
    "rooms.analysis.bias:gradient_bias_report",
    processes=False,
  ),
}


_DRY_RUN = "rooms.benchmark.dry_run"


def load_job(name: str) -> types.ModuleType:
  """Imports the module of a job, or of "dry_run", which `config.dry_run` runs instead of it."""
  return load(_DRY_RUN if name == "dry_run" else JOBS[name].module)


# CoOp's cross-dataset sets, in the order of its tables.
TEN = ("caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101") + (
  "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
FOUR = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
OWN = "own"  # group of a user's own sets, and of the data set in `config.data`
NO_SUITE = "none"
_IMAGENET = "imagenet1k"  # source of the cross-dataset and cross-domain comparisons


class Suite(NamedTuple):
  """One value of `config.evaluate.suite`: class lists of `data`, or splits of the world.

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
  "fourteen": Suite((*TEN, *FOUR), (_IMAGENET,)),
  # CoCoOp's protocol (Zhou et al., CVPR 2022).
  "base_to_new": Suite((_IMAGENET, *TEN), halves=True),
  # The default is the list of the published figures.
  "imagenet21k": Suite(("imagenet21k_p_w21",), ("imagenet21k_p", "imagenet21k")),
}


class Group(NamedTuple):
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
  _IMAGENET: Group("ImageNet-1K, the source", (_IMAGENET,), mean=False),
  OWN: Group("own sets"),
}

# Group of every named set, unless its classes are halved.
GROUP_OF = {
  name: group
  for group in ("world", "cross_dataset", "cross_domain", "imagenet21k")
  for name in (*SUITES[group].sets, *SUITES[group].more)
} | {_IMAGENET: _IMAGENET}
