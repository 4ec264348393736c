"""Fields of the jobs on regions and pixels, and checks that the fields fit together.

They extend the table of `config.fields`. The checks raise ConfigError, and open no
files.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.every_job import Config
from pomp_jax.config.fields import Checkpoint, Data, Log, Loop, Mesh, Predict
from pomp_jax.config.group import Group
from pomp_jax.config.jobs import EvaluateConfig, PredictConfig, TrainingConfig
from pomp_jax.config.rows import Check, above, at_least, below, between, one_of, row
from pomp_jax.files.paths import exists, is_dir, is_file
from pomp_jax.rooms.regions.label_images import VALUES
from pomp_jax.rooms.regions.mask_views import MASK_AUGMENTS

# Image of a region: its mask on CLIP's mean colour, or the box with its surroundings.
_CROPS = ("masked", "context")
# Recipes of `rooms.regions.dense_tower`.
_RECIPES = ("clip", "maskclip", "sclip", "clearclip", "naclip")
# The world's scenes have 12 grounds, and each ground has three base classes for each
# novel class. The number of classes is therefore a multiple of 12 * 4.
_scene_classes = functools.partial(
  row,
  2400,
  "classes of the world's scenes, three quarters of them base",
  Check(
    lambda n: n % 48 == 0 and 48 <= n <= 9600, "a multiple of 48 between 48 and 9600"
  ),
)
_prompts = functools.partial(
  row,
  ("hand_written",),
  "prompts, see evaluate.prompts; network: the one in propose.network",
)
_names = Check(
  lambda names: all(name.strip() for name in names), "names that are not empty"
)


@dataclasses.dataclass(frozen=True)
class RegionData(Group):
  """Regions of images as training data."""

  annotations: str = row(
    "", "for regions: COCO or LVIS JSON, or a folder of label images"
  )

  def check_in(self, config: Any) -> None:
    """Checks that a training or evaluation has annotations if, and only if, its data
    are regions."""
    source = config.data.source
    if not isinstance(config, TrainingConfig | EvaluateConfig):
      return
    if source != "regions":
      where = f"where data.source={source!r}"
      require(not self.annotations, "data.annotations", self.annotations, f"'' {where}")
    elif not config.dry_run:
      expected = "a JSON file or a folder of label images that exists"
      require(exists(self.annotations), "data.annotations", self.annotations, expected)


@dataclasses.dataclass(frozen=True)
class Regions(Group):
  """Regions of images and the fusion of their scores; see docs/concepts/regions.md."""

  source: str = row(
    "none", "origin of the regions", one_of("none", "truth", "file", "network")
  )
  path: str = row(
    "",
    "for file: a regions folder, or COCO results JSON; see docs/reference/formats.md",
  )
  max_regions: int = row(
    100, "regions of an image, those of highest objectness", at_least(1)
  )
  mask_threshold: float = row(
    0.5, "value above which a pixel of a soft mask is inside", below(1)
  )
  crop: str = row(
    "masked", "image of a region: its mask, or box with context", one_of(*_CROPS)
  )
  size: int = row(
    0,
    "shorter side of the image that crops are cut from, pixels; 0: as it is",
    at_least(0),
  )
  expand: float = row(
    1.0, "factor on the sides of a box before it is cropped", above(0)
  )
  e_base: float = row(
    0.2, "CLIP's exponent in the fusion, of trained classes", between(0, 1)
  )
  e_novel: float = row(
    0.8, "CLIP's exponent in the fusion, of other classes", between(0, 1)
  )
  null: str = row(
    "drop", "probability of no class in the fusion", one_of("drop", "keep", "gate")
  )
  objectness: bool = row(False, "scores as sqrt(score * objectness)")
  alone: bool = row(
    False, "the network's scores alone and CLIP's alone beside the fusion"
  )

  def check_in(self, config: Any) -> None:
    """Checks the regions of `predict`."""
    if isinstance(config, PredictConfig) and config.predict.task in (
      "segment",
      "detect",
    ):
      predict = config.predict
      check_task(predict, self, predict.of(Segment), predict.of(Propose))


@dataclasses.dataclass(frozen=True)
class Segment(Group):
  """The job segment: a class for every pixel under prompts; see
  docs/concepts/regions.md."""

  source: str = row(
    "world", "the world's scenes, or folders of images", one_of("world", "folder")
  )
  images: str = row("", "folder of images")
  labels: str = row("", "folder of label images of the same stems; empty: no figures")
  names: str = row("", "class list with halves, such as coco_stuff, or a file")
  label_values: str = row("index", "meaning of a label image's values", one_of(*VALUES))
  ignore: int = row(
    255, "value of pixels that are not evaluated", between(0, 2**16 - 1)
  )
  n_images: int = row(0, "images, evenly over the folder; 0: all", at_least(0))
  scene_classes: int = _scene_classes()
  prompts: tuple[str, ...] = _prompts()
  recipe: str = row(
    "naclip", "patch features where there are no regions", one_of(*_RECIPES)
  )
  logit_scale: float = row(0.0, "factor on cosines; 0: CLIP's", at_least(0))
  size: int = row(
    336, "shorter side of an image without regions, pixels; 0: as it is", at_least(0)
  )
  window: int = row(224, "side of a window, pixels; 0: the whole image", at_least(0))
  stride: int = row(112, "distance of windows, pixels", at_least(1))
  pamr: int = row(0, "steps of PAMR, which fits the scores to edges", at_least(0))
  background: tuple[str, ...] = row(
    (), "names of a background class, which becomes class 0", _names
  )
  background_below: float = row(
    0.0, "probability below which a pixel is background", between(0, 1)
  )
  output: bool = row(False, "label images of all images, not only of those in the plot")


@dataclasses.dataclass(frozen=True)
class Detect(Group):
  """The job detect: boxes with classes under prompts; see docs/concepts/regions.md."""

  source: str = row(
    "world", "the world's scenes, or annotated images", one_of("world", "coco")
  )
  annotations: str = row("", "COCO or LVIS JSON of the objects")
  images: str = row(
    "", "folder of images; not read where regions have embeddings alone"
  )
  names: str = row(
    "", "class list with halves, such as coco, or a file; empty: the categories"
  )
  synonyms: bool = row(
    False, "categories by all their names (LVIS), the best of which counts"
  )
  n_images: int = row(0, "images, evenly over the file; 0: all", at_least(0))
  scene_classes: int = _scene_classes()
  prompts: tuple[str, ...] = _prompts()
  logit_scale: float = row(0.0, "factor on cosines; 0: CLIP's", at_least(0))
  min_score: float = row(
    0.02, "score above which a region is a detection", between(0, 1)
  )
  nms: float = row(
    0.5, "IoU above which the lower score of a class is dropped", between(0, 1)
  )
  top: int = row(0, "detections of an image; 0: 300 for LVIS, else 100", at_least(0))
  output: bool = row(False, "COCO results JSON of the detections under each prompt")


@dataclasses.dataclass(frozen=True)
class TrainMasks(Group):
  """The job train_masks: a network that finds regions; see docs/concepts/regions.md."""

  source: str = row(
    "world",
    "the world's scenes, label images, annotated objects, or panoptic segments",
    one_of("world", "folder", "coco", "panoptic"),
  )
  images: str = row("", "folder of images")
  labels: str = row(
    "", "folder of label images of the same stems; for panoptic: of the segments' PNGs"
  )
  annotations: str = row(
    "",
    "for coco: COCO or LVIS JSON of the objects, with masks; for panoptic: COCO's JSON",
  )
  names: str = row(
    "", "class list with halves, such as coco_stuff, or a file; novel ones are left out"
  )
  label_values: str = row("index", "meaning of a label image's values", one_of(*VALUES))
  ignore: int = row(255, "value of pixels without a class", between(0, 2**16 - 1))
  n_images: int = row(
    0, "images, evenly over the data; 0: all; of the world: scenes", at_least(0)
  )
  scene_classes: int = _scene_classes()
  network: str = row("r101c", "sizes of the network", one_of("small", "r101c"))
  init: str = row("", "network to start from, a file; empty: random parameters")
  prompt: str = row(
    "a photo of a {}.", "prompt of the classes, which stays fixed; see evaluate.prompts"
  )
  size: int = row(640, "side of a view, pixels", at_least(32))
  augment: str = row(
    "crop_flip", "augmentation: random scale, crop and flip", one_of(*MASK_AUGMENTS)
  )
  targets: int = row(
    50, "regions of a view, the largest ones; at most the queries", at_least(1)
  )
  lr: float = row(1e-4, "learning rate of AdamW", at_least(0))
  backbone: float = row(0.1, "factor on the learning rate of the backbone", at_least(0))
  clip_norm: float = row(0.01, "largest norm of the gradient; 0: any", at_least(0))
  dice: float = row(1.0, "weight of the dice loss", at_least(0))


@dataclasses.dataclass(frozen=True)
class Propose(Group):
  """The regions that a trained network finds, for propose and
  regions.source='network'."""

  network: str = row("", "network: a file, or the folder of a run of train_masks")
  images: str = row(
    "segment", "images: those of segment or of detect", one_of("segment", "detect")
  )
  prompt: str = row(
    "a photo of a {}.", "prompt of the trained classes, for the objectness"
  )
  size: int = row(
    0, "shorter side of an image in the network, pixels; 0: as it is", at_least(0)
  )
  stride: int = row(
    4,
    "pixels of the network's image along a side of a mask's pixel: 4, or 1 as ZSSeg",
    Check((1, 4).__contains__, "1 or 4"),
  )
  batch_size: int = row(
    8, "images of one padded size that are computed together", at_least(1)
  )


_NETWORK = "a .safetensors or .pth file, or a run's folder that exists"
_ACCEPTED: dict[Callable[..., bool], str] = {
  is_dir: "a folder that exists",
  is_file: "a JSON file that exists",
  exists: _NETWORK,
}


def check_task(
  predict: Predict, regions: Regions, segment: Segment, propose: Propose
) -> None:
  """Checks the regions of the job `predict`.

  Args:
    predict: task of the job, `segment` or `detect` among others.
    regions: where the regions of a picture come from.
    segment: names of the background, and probability below which a pixel is background.
    propose: the network that finds regions, if the config names one.

  Raises:
    ConfigError: a field has a value that the others forbid, or a path does not exist.
  """
  if regions.source == "truth":
    accepted = "none, file or network where job='predict'"
    raise ConfigError("regions.source", "truth", accepted)
  if propose.network and regions.source == "file":
    accepted = "'' where regions.source='file'"
    raise ConfigError("propose.network", propose.network, accepted)

  # A named network finds the regions, so it must exist. Detection has no other default
  # source of regions.
  lacks_regions = predict.task == "detect" and regions.source == "none"
  if propose.network or lacks_regions:
    accepted = f"{_NETWORK}, or regions.source='file'"
    require(exists(propose.network), "propose.network", propose.network, accepted)
  _check_regions(regions, propose.network)

  if regions.alone:
    # `alone` compares accuracies, but pictures to predict have no labels.
    raise ConfigError("regions.alone", True, "False where job='predict'")
  if predict.task == "segment":
    _check_background(segment)


def check_segment(segment: Segment, regions: Regions, propose: Propose) -> None:
  """Checks the fields of the job `segment`.

  Args:
    segment: images, labels and prompts.
    regions: where the regions of an image come from.
    propose: the network, which finds the regions if `regions.source` is `network`.

  Raises:
    ConfigError: a field has a value that the others forbid, or a path does not exist.
  """
  _check_regions(regions, propose.network)
  _check_background(segment)
  if segment.background and segment.label_values == "reduce_zero_label":
    # `reduce_zero_label` drops the value 0, which is the background's.
    accepted = "index where there is a background, whose value is 0"
    raise ConfigError("segment.label_values", segment.label_values, accepted)

  if segment.source == "world":
    _check_world("segment", segment, ("images", "labels", "names", "background"))
    return
  _check_path("segment.images", segment.images, is_dir)
  # Without labels the job computes no accuracy, but it draws pictures.
  if segment.labels or regions.source == "truth":
    _check_path("segment.labels", segment.labels, is_dir)


def check_detect(detect: Detect, regions: Regions, propose: Propose) -> None:
  """Checks the fields of the job `detect`.

  Args:
    detect: images, annotations and prompts.
    regions: where the regions of an image come from.
    propose: the network, which finds the regions if `regions.source` is `network`.

  Raises:
    ConfigError: a field has a value that the others forbid, or a path does not exist.
  """
  _check_regions(regions, propose.network)
  if regions.source == "none":
    accepted = "truth, file or network where job='detect'"
    raise ConfigError("regions.source", "none", accepted)
  _check_detect_images(detect)


def check_propose(
  propose: Propose, segment: Segment, detect: Detect, regions: Regions
) -> None:
  """Checks the fields of the job `propose`.

  The job takes its images from the fields of another job, `segment` or `detect`. Only
  the fields of that job are checked.

  Args:
    propose: the network, and the job whose images it takes.
    segment: images of the job `segment`.
    detect: images of the job `detect`.
    regions: where the regions of the job `segment` come from.

  Raises:
    ConfigError: a field has a value that the others forbid, or a path does not exist.
  """
  _check_path("propose.network", propose.network, exists)
  if propose.images == "segment":
    check_segment(segment, regions, propose)
  else:
    # Don't call `check_detect`: it asks for a source of regions, which this job finds.
    _check_detect_images(detect)


def check_train_masks(
  train_masks: TrainMasks, data: Data, loop: Loop, mesh: Mesh, checkpoint: Checkpoint
) -> None:
  """Checks the fields of `train_masks`.

  Args:
    train_masks: images and regions of the training.
    data: views and features, which are fixed.
    loop: batches, which the job does not accumulate.
    mesh: devices, which do not split classes.
    checkpoint: choice of the checkpoint, which must be the last.

  Raises:
    ConfigError: the job does not support a field's value, or a path does not exist.
  """
  for field, value, fixed in (
    ("data.views", data.views, 1),
    ("data.features", data.features, "online"),
    ("accumulate", loop.accumulate, 1),
    ("mesh.class_size", mesh.class_size, 1),
    ("checkpoint.select", checkpoint.select, "last"),
  ):
    require(value == fixed, field, value, f"{fixed!r} where job='train_masks'")
  source = train_masks.source
  if source == "world":
    unread = ("images", "labels", "annotations", "names")
    _check_world("train_masks", train_masks, unread)
    return
  _check_path("train_masks.images", train_masks.images, is_dir)
  if source in ("folder", "panoptic"):
    _check_path("train_masks.labels", train_masks.labels, is_dir)
  if source in ("coco", "panoptic"):
    _check_path("train_masks.annotations", train_masks.annotations, is_file)


def _check_world(group: str, settings: Any, unread: Sequence[str]) -> None:
  """Checks the fields of a job whose images are the world's scenes.

  Args:
    group: name of the job's group of fields.
    settings: the group.
    unread: fields of the group that must stay unset, since scenes do not read them, such
      as names of files.

  Raises:
    ConfigError: the number of scenes is 0, or one of the unread fields is set.
  """
  where = f"where {group}.source='world'"
  n_images = settings.n_images
  require(n_images > 0, f"{group}.n_images", n_images, f"1 or more {where}")
  for field in unread:
    value = getattr(settings, field)
    require(not value, f"{group}.{field}", value, f"nothing {where}")


def _check_detect_images(detect: Detect) -> None:
  if detect.source == "world":
    _check_world("detect", detect, ("annotations", "images", "names"))
    return
  _check_path("detect.annotations", detect.annotations, is_file)
  if detect.images:
    _check_path("detect.images", detect.images, is_dir)


def _check_background(segment: Segment) -> None:
  below = segment.background_below
  fits = bool(segment.background) or not below
  require(fits, "segment.background_below", below, "0 without background")


def _check_regions(regions: Regions, network: str) -> None:
  source, path = regions.source, regions.path
  if source == "file":
    require(exists(path), "regions.path", path, "a file or folder that exists")
  else:
    require(not path, "regions.path", path, "'' unless regions.source='file'")
  if source == "network":
    _check_path("propose.network", network, exists)


def _check_path(field: str, path: str, fits: Callable[..., bool]) -> None:
  require(fits(path), field, path, _ACCEPTED[fits])


@dataclasses.dataclass(frozen=True)
class SegmentConfig(Config):
  """The job segment."""

  data: Data = Data()
  regions: Regions = Regions()
  segment: Segment = Segment()
  propose: Propose = Propose()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    check_segment(self.segment, self.regions, self.propose)


@dataclasses.dataclass(frozen=True)
class DetectConfig(Config):
  """The job detect."""

  data: Data = Data()
  regions: Regions = Regions()
  detect: Detect = Detect()
  propose: Propose = Propose()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    check_detect(self.detect, self.regions, self.propose)


@dataclasses.dataclass(frozen=True)
class ProposeConfig(Config):
  """The job propose."""

  data: Data = Data()
  regions: Regions = Regions()
  segment: Segment = Segment()
  detect: Detect = Detect()
  propose: Propose = Propose()

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    check_propose(self.propose, self.segment, self.detect, self.regions)


@dataclasses.dataclass(frozen=True)
class TrainMasksConfig(Loop, Config):
  """The job train_masks."""

  data: Data = Data()
  checkpoint: Checkpoint = Checkpoint()
  log: Log = Log()
  train_masks: TrainMasks = TrainMasks()

  @property
  def loop(self) -> Loop:
    """Batches and length."""
    return self.only(Loop)

  def check(self) -> None:
    """See `Config.check`."""
    super().check()
    check_train_masks(
      self.train_masks, self.data, self.loop, self.mesh, self.checkpoint
    )
