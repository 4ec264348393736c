"""Fields of the jobs calibrate and near_names, and the fields that this room adds to
`predict` and `export`."""

import dataclasses
from typing import Any

from pomp_jax.config.errors import require
from pomp_jax.config.every_job import Config
from pomp_jax.config.fields import Data, Eval, check_class_list
from pomp_jax.config.group import Group
from pomp_jax.config.rows import at_least, between, one_of, row
from pomp_jax.files.calibration import SETS
from pomp_jax.files.paths import is_file

KINDS = ("float32", "float16", "int8")  # types of class vectors
WORDNET = "wordnet"
SUFFIXES = (".csv", ".toml", ".json")  # suffixes of tree files
UNDER = "under:"  # prefix of a node's name in `certain.subset`
_share = between(0.001, 0.999)


@dataclasses.dataclass(frozen=True)
class Calibrate(Group):
  """The job calibrate: a prompt's temperature, floor and sets from validation images."""

  prompt: str = row("", "prompt file, run's folder, or hand-written text with {}")
  error: float = row(0.05, "share of right answers that the floor may refuse", _share)
  coverage: float = row(0.9, "share of images whose set holds the right name", _share)
  sets: str = row(
    "pooled", "thresholds of the sets that the prompt file gets", one_of(*SETS)
  )
  test: str = row("", "split of known classes on which the promises are measured")
  unknown: str = row("", "split of other classes, to be told from the known ones")

  def check(self) -> None:
    """Raises ConfigError without a prompt."""
    expected = "a prompt file, a run's folder or a text with {}"
    require(self.prompt, "calibrate.prompt", self.prompt, expected)


@dataclasses.dataclass(frozen=True)
class Certain(Group):
  """The task certain of `predict`: how sure, how deep, or none of the names."""

  tree: str = row("", "tree above the names: wordnet, .csv, .toml, COCO's .json")
  least: float = row(0.9, "probability that a node of the tree must have", _share)
  subset: str = row("", "names to choose from: class list, file, or under:NODE")
  rows: str = row("float32", "type of the class vectors", one_of(*KINDS))

  def check_in(self, config: Any) -> None:
    """Raises ConfigError if tree or subset can't be found, or `under:` is set without a
    tree."""
    if self.tree and self.tree != WORDNET:
      is_tree = self.tree.endswith(SUFFIXES) and is_file(self.tree)
      expected = f"{WORDNET}, or a file {', '.join(SUFFIXES)} that exists"
      require(is_tree, "certain.tree", self.tree, expected)
    if self.subset.startswith(UNDER):
      expected = "names, or with certain.tree under:NODE"
      require(self.tree, "certain.subset", self.subset, expected)
    elif self.subset:
      check_class_list("certain.subset", self.subset)


@dataclasses.dataclass(frozen=True)
class CalibrateConfig(Config):
  """The job calibrate."""

  data: Data = Data()
  eval: Eval = Eval()
  calibrate: Calibrate = Calibrate()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    self.data.check_source(self.eval.images, self.dry_run)


@dataclasses.dataclass(frozen=True)
class ClassifierFile(Group):
  """The format classifier of `export`."""

  extend: str = row("", "earlier classifier that gets the names, its rows unchanged")
  images: str = row("", "pictures whose answers before and after extend are compared")
  image_tower: str = row(
    "none",
    "the image tower beside the classifier",
    one_of("none", "stablehlo", "onnx"),
  )

  def check_in(self, config: Any) -> None:
    """Raises ConfigError if `extend` is not a file, or if `images` is set without
    `extend`."""
    expected = "a file of export:format=classifier that exists"
    is_usable = not self.extend or is_file(self.extend)
    require(is_usable, "classifier.extend", self.extend, expected)
    expected = "nothing without classifier.extend"
    require(self.extend or not self.images, "classifier.images", self.images, expected)


@dataclasses.dataclass(frozen=True)
class NearNames(Group):
  """The job near_names: names whose vectors under a prompt are nearly equal."""

  prompt: str = row("{}.", "prompt file, run's folder, or another of evaluate.prompts")
  names: str = row("", "class list, or a file of names; empty: the run's")
  bound: float = row(0.95, "cosine from which two names are near", between(-1.0, 1.0))
  most: int = row(10_000, "pairs in pairs.csv", at_least(1))

  def check(self) -> None:
    """Raises ConfigError without names."""
    check_class_list("near_names.names", self.names, self.prompt)


@dataclasses.dataclass(frozen=True)
class NearNamesConfig(Config):
  """The job near_names."""

  data: Data = Data()
  near_names: NearNames = NearNames()

  @property
  def encodes_images(self) -> bool:
    """See `Config.encodes_images`."""
    return False
