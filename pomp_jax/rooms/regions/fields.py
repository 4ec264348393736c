"""Fields of the jobs on regions and pixels; part of the table of `config.fields`."""

import dataclasses
import functools

from pomp_jax.config.declare import Check, above, at_least, below, between, one_of, row
from pomp_jax.rooms.regions.label_images import VALUES
from pomp_jax.rooms.regions.mask_views import MASK_AUGMENTS

# Image of a region: its mask on CLIP's mean colour, or the box with its surroundings.
_CROPS = ("masked", "context")
# Recipes of `rooms.regions.dense_tower`.
_RECIPES = ("clip", "maskclip", "sclip", "clearclip", "naclip")
# Of the world's scenes: 12 grounds, and on each of them three base classes for a novel one.
_scene_classes = functools.partial(
  row,
  2400,
  "classes of the world's scenes, three quarters of them base",
  Check(lambda n: n % 48 == 0 and 48 <= n <= 9600, "a multiple of 48 between 48 and 9600"),
)
_prompts = functools.partial(
  row, ("hand_written",), "prompts, see evaluate.prompts; network: the one in propose.network"
)
_names = Check(lambda names: all(name.strip() for name in names), "names that are not empty")


@dataclasses.dataclass(frozen=True)
class Regions:
  """Regions of images and the fusion of their scores; see docs/regions.md."""

  source: str = row("none", "origin of the regions", one_of("none", "truth", "file", "network"))
  path: str = row("", "for file: a regions folder, or COCO results JSON; see docs/formats.md")
  max_regions: int = row(100, "regions of an image, those of highest objectness", at_least(1))
  mask_threshold: float = row(0.5, "value above which a pixel of a soft mask is inside", below(1))
  crop: str = row("masked", "image of a region: its mask, or box with context", one_of(*_CROPS))
  size: int = row(
    0, "shorter side of the image that crops are cut from, pixels; 0: as it is", at_least(0)
  )
  expand: float = row(1.0, "factor on the sides of a box before it is cropped", above(0))
  e_base: float = row(0.2, "CLIP's exponent in the fusion, of trained classes", between(0, 1))
  e_novel: float = row(0.8, "CLIP's exponent in the fusion, of other classes", between(0, 1))
  null: str = row("drop", "probability of no class in the fusion", one_of("drop", "keep", "gate"))
  objectness: bool = row(False, "scores as sqrt(score * objectness)")
  alone: bool = row(False, "the network's scores alone and CLIP's alone beside the fusion")


@dataclasses.dataclass(frozen=True)
class Segment:
  """The job segment: a class for every pixel under prompts; see docs/regions.md."""

  source: str = row("world", "the world's scenes, or folders of images", one_of("world", "folder"))
  images: str = row("", "folder of images")
  labels: str = row("", "folder of label images of the same stems; empty: no figures")
  names: str = row("", "class list with halves, such as coco_stuff, or a file")
  label_values: str = row("index", "meaning of a label image's values", one_of(*VALUES))
  ignore: int = row(255, "value of pixels that are not evaluated", between(0, 2**16 - 1))
  n_images: int = row(0, "images, evenly over the folder; 0: all", at_least(0))
  scene_classes: int = _scene_classes()
  prompts: tuple[str, ...] = _prompts()
  recipe: str = row("naclip", "patch features where there are no regions", one_of(*_RECIPES))
  logit_scale: float = row(0.0, "factor on cosines; 0: CLIP's", at_least(0))
  size: int = row(336, "shorter side of an image without regions, pixels; 0: as it is", at_least(0))
  window: int = row(224, "side of a window, pixels; 0: the whole image", at_least(0))
  stride: int = row(112, "distance of windows, pixels", at_least(1))
  pamr: int = row(0, "steps of PAMR, which fits the scores to edges", at_least(0))
  background: tuple[str, ...] = row(
    (), "names of a background class, which becomes class 0", _names
  )
  background_below: float = row(0.0, "probability below which a pixel is background", between(0, 1))
  output: bool = row(False, "label images of all images, not only of those in the plot")


@dataclasses.dataclass(frozen=True)
class Detect:
  """The job detect: boxes with classes under prompts; see docs/regions.md."""

  source: str = row("world", "the world's scenes, or annotated images", one_of("world", "coco"))
  annotations: str = row("", "COCO or LVIS JSON of the objects")
  images: str = row("", "folder of images; not read where regions have embeddings alone")
  names: str = row("", "class list with halves, such as coco, or a file; empty: the categories")
  synonyms: bool = row(False, "categories by all their names (LVIS), the best of which counts")
  n_images: int = row(0, "images, evenly over the file; 0: all", at_least(0))
  scene_classes: int = _scene_classes()
  prompts: tuple[str, ...] = _prompts()
  logit_scale: float = row(0.0, "factor on cosines; 0: CLIP's", at_least(0))
  min_score: float = row(0.02, "score above which a region is a detection", between(0, 1))
  nms: float = row(0.5, "IoU above which the lower score of a class is dropped", between(0, 1))
  top: int = row(0, "detections of an image; 0: 300 for LVIS, else 100", at_least(0))
  output: bool = row(False, "COCO results JSON of the detections under each prompt")


@dataclasses.dataclass(frozen=True)
class TrainMasks:
  """The job train_masks: a network that finds regions; see docs/regions.md."""

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
    "", "for coco: COCO or LVIS JSON of the objects, with masks; for panoptic: COCO's JSON"
  )
  names: str = row(
    "", "class list with halves, such as coco_stuff, or a file; novel ones are left out"
  )
  label_values: str = row("index", "meaning of a label image's values", one_of(*VALUES))
  ignore: int = row(255, "value of pixels without a class", between(0, 2**16 - 1))
  n_images: int = row(0, "images, evenly over the data; 0: all; of the world: scenes", at_least(0))
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
  min_scale: float = row(0.5, "smallest scale: shorter side of an image / size", above(0))
  max_scale: float = row(1.5, "largest scale", above(0))
  targets: int = row(50, "regions of a view, the largest ones; at most the queries", at_least(1))
  lr: float = row(1e-4, "learning rate of AdamW", at_least(0))
  backbone: float = row(0.1, "factor on the learning rate of the backbone", at_least(0))
  weight_decay: float = row(1e-4, "weight decay, decoupled", at_least(0))
  power: float = row(0.9, "exponent of the learning rate's polynomial decay", at_least(0))
  warmup: int = row(0, "steps of a linear warmup", at_least(0))
  clip_norm: float = row(0.01, "largest norm of the gradient; 0: any", at_least(0))
  classes: float = row(1.0, "weight of the cross-entropy", at_least(0))
  focal: float = row(20.0, "weight of the focal loss", at_least(0))
  dice: float = row(1.0, "weight of the dice loss", at_least(0))
  no_object: float = row(0.1, "weight of queries without a region in the cross-entropy", above(0))


@dataclasses.dataclass(frozen=True)
class Propose:
  """The regions that a trained network finds, for propose and regions.source='network'."""

  network: str = row("", "network: a file, or the folder of a run of train_masks")
  images: str = row("segment", "images: those of segment or of detect", one_of("segment", "detect"))
  prompt: str = row("a photo of a {}.", "prompt of the trained classes, for the objectness")
  size: int = row(0, "shorter side of an image in the network, pixels; 0: as it is", at_least(0))
  stride: int = row(
    4,
    "pixels of the network's image along a side of a mask's pixel: 4, or 1 as ZSSeg",
    Check((1, 4).__contains__, "1 or 4"),
  )
  batch_size: int = row(8, "images of one padded size that are computed together", at_least(1))
