"""What the page shows of regions: label maps, objects, and the scores of given boxes.

Shapes: H, W sides of the picture, N names, S rows of names and padding, R regions, D
detections, E embedding.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import tempfile

from jaxtyping import Float, Float32, Int, UInt8
import numpy as np
from PIL import Image

from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Clip
from pomp_jax.config.group import Group
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.rooms.regions import fields
from pomp_jax.rooms.regions.class_matrix import ClassMatrix
from pomp_jax.rooms.regions.class_splits import undivided
from pomp_jax.rooms.regions.crop_features import RegionEncoder
from pomp_jax.rooms.regions.dense import DenseSegmenter
from pomp_jax.rooms.regions.detections import Detections, select_detections
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.plots import detection_sheet, segmentation_sheet, strongest
from pomp_jax.rooms.regions.proposals import check_network, open_network
from pomp_jax.rooms.regions.region_folder import Regions
from pomp_jax.rooms.regions.region_scorer import RegionScorer, Scored
from pomp_jax.rooms.regions.region_sources import Images, RegionSource
from pomp_jax.rooms.regions.scenes import Scenes

# Computes the features of the names under each prompt.
Features = Callable[[], Sequence[Float[np.ndarray, "S E"]]]
# A picture, names, the function for the features of the names, and labels of prompts.
Asked = tuple[Image.Image, Sequence[str], Features, Sequence[str]]

_SEGMENT_SIDE = 384
# Number of names that an example lists beside those of the objects in its picture.
_OTHERS = 4


def check(page: Group, clip_model: str) -> None:
  """Checks the fields of regions on the page.

  Raises:
    InputError: crops are masked, but boxes have no masks; or a network misfits the
      CLIP.
  """
  crop = page.of(fields.Regions).crop
  if crop != "context":
    raise ConfigError("regions.crop", crop, "'context': boxes have no masks")
  propose = page.of(fields.Propose)
  if propose.network:
    check_network(propose, clip_model)


def examples() -> list[tuple[Image.Image, str, str]]:
  """Makes examples from the world's scenes: a picture, its names, and its boxes.

  Names and boxes are texts with one a line. The names are those of the objects, and
  some that the picture does not show.
  """
  scenes = Scenes("test", 2)
  examples = []
  for index in range(len(scenes)):
    scene = scenes.scene(index)
    others = range(index, len(scenes.names), len(scenes.names) // _OTHERS)
    classes = dict.fromkeys([*scene.labels.tolist(), *others])
    names = [scenes.names[label] for label in classes]
    boxes = []
    for box in scene.boxes.tolist():
      boxes.append(" ".join(f"{value:g}" for value in box))
    picture = Image.fromarray(scene.image)
    examples.append((picture, "\n".join(names), "\n".join(boxes)))
  return examples


class RegionsOfPictures:
  """Finds and scores regions of one picture, under features of names.

  Feature rows behind those of the names are padding. `finds` is whether a network can
  find objects. `segments` is whether a network or a ViT can compute label maps, which
  have at most `most_names` names.
  """

  most_names = 100  # a label map has the scores of all names at each pixel in memory

  def __init__(self, encoder: Encoder, clip: Clip, page: Group):
    """Opens the network of `config.propose`, if there is one; compiles on first use.

    Args:
      encoder: the CLIP.
      clip: fields of the CLIP.
      page: fields of the page, with those of this room.
    """
    regions = page.of(fields.Regions)
    propose = page.of(fields.Propose)
    self._encoder = encoder
    # Cut crops from the picture at its own size, and score them by the fusion alone.
    self._fields = dataclasses.replace(regions, size=0, alone=False)
    self._segment = page.of(fields.Segment)
    self._detect = page.of(fields.Detect)
    self._network = None
    self._segmenter = None
    if propose.network:
      single = dataclasses.replace(propose, batch_size=1)
      self._network = open_network(single, clip, regions.mask_threshold, encoder)
    elif encoder.clip.config.vit:
      self._segmenter = DenseSegmenter(encoder, self._segment, dtype=clip.dtype)
    self.finds = self._network is not None
    self.segments = self.finds or self._segmenter is not None
    self._crops = RegionEncoder(encoder, regions)

  def segment(self, asked: Asked) -> bytes:
    """Draws a class for every pixel under each prompt; a PNG.

    A network's regions are scored if the page has a network. Otherwise the ViT's
    patches get classes by `segment.recipe`.

    Raises:
      InputError: there is neither a network nor a ViT, or there are too many names.
    """
    image, names, features, labels = asked
    if not self.segments:
      raise InputError("segmentation needs a ViT or a network; this CLIP has neither")
    if len(names) > self.most_names:
      expected = f"expected at most {self.most_names} for a segmentation"
      raise InputError(f"names: got {len(names):,}, {expected}")
    # A page with a network has no segmenter of patches.
    if self._segmenter is None:
      pixels = np.asarray(image)
      regions, scores = self._scored(asked, self._segment.logit_scale)
      masks = regions.drawn("the picture")
      height, width = pixels.shape[:2]
      maps = list(label_maps_of_regions(scores, masks, height, width))
    else:
      image = image.copy()
      image.thumbnail((_SEGMENT_SIDE, _SEGMENT_SIDE), Image.Resampling.BICUBIC)
      pixels = np.asarray(image)
      matrices = [_matrix(rows) for rows in features()]
      [maps_of_prompts] = self._segmenter.label_maps([pixels], matrices)
      maps = []
      for pixel_map in maps_of_prompts:
        labels_HxW = pixel_map.labels_HxW
        # The matrix is padded with rows of the first name: a padding row is class 0.
        maps.append(np.where(labels_HxW < len(names), labels_HxW, 0))
    return _drawn(segmentation_sheet, pixels, maps, labels, names)

  def find_objects(self, asked: Asked) -> tuple[bytes, list[list[tuple[str, float]]]]:
    """Draws the objects that the network finds.

    Of boxes that overlap by more than half only the best is drawn, and at most eight
    boxes in all.

    Returns:
      A PNG, and for each prompt the names and scores of the boxes, best first.

    Raises:
      InputError: there is no network.
    """
    if not self.finds:
      raise InputError(
        "finding objects needs a network; this page has none (propose.network)"
      )
    image, names, _, labels = asked
    detect = self._detect
    regions, scores = self._scored(asked, detect.logit_scale)
    drawn = []
    named_objects = []
    for scores_RxN in scores:
      rows, classes, scores_D = select_detections(
        regions.boxes, scores_RxN, min_score=detect.min_score, max_iou=detect.nms
      )
      detections = Detections(regions.boxes[rows], scores_D.astype(np.float32), classes)
      best = strongest(detections)
      drawn.append(best)
      pairs = zip(best.classes, best.scores, strict=True)
      named_objects.append([(names[label], float(score)) for label, score in pairs])
    picture = _drawn(detection_sheet, np.asarray(image), drawn, labels, names)
    return picture, named_objects

  def _scored(
    self, asked: Asked, logit_scale: float, boxes: Regions | None = None
  ) -> Scored:
    """Scores regions under each prompt: `boxes`, or the network's regions if None."""
    image, names, features, _ = asked
    pixels_HxWx3 = np.asarray(image)
    images = Images(
      keys=["the picture"],
      shape=lambda _: pixels_HxWx3.shape[:2],
      pixels=lambda _: pixels_HxWx3,
    )
    if boxes is not None:
      regions = boxes
      header = None
    else:
      assert self._network is not None
      [proposed] = self._network.regions([pixels_HxWx3])
      regions = proposed.top(self._fields.max_regions)
      header = self._network.header
    # Rows behind the names are padding.
    matrices = [_matrix(rows[: len(names)]) for rows in features()]
    scorer = RegionScorer(
      self._fields,
      RegionSource(images, header, lambda block: [regions]),
      self._encoder,
      undivided(names),
      matrices,
      logit_scale=logit_scale,
      crops=self._crops,
    )
    [(_, scored)] = scorer.scored([0])
    return scored

  def name_boxes(
    self, asked: Asked, boxes_Rx4: Float32[np.ndarray, "R 4"]
  ) -> tuple[bytes, Sequence[Float[np.ndarray, "R N"]]]:
    """Names boxes that a user has drawn.

    Returns:
      A PNG with each box in the colour of its name, and the scores under each prompt.
    """
    image, names, _, labels = asked
    _, scores = self._scored(asked, self._detect.logit_scale, Regions(boxes_Rx4))
    drawn = []
    for scores_RxN in scores:
      best_R = scores_RxN.max(axis=1).astype(np.float32)
      drawn.append(Detections(boxes_Rx4, best_R, scores_RxN.argmax(axis=1)))
    return _drawn(detection_sheet, np.asarray(image), drawn, labels, names), scores


def _matrix(features_SxE: Float[np.ndarray, "S E"]) -> ClassMatrix:
  return ClassMatrix(features_SxE, np.arange(len(features_SxE)))


def _drawn(
  sheet: Callable[..., None],
  pixels: UInt8[np.ndarray, "H W 3"],
  found: Sequence[Detections] | Sequence[Int[np.ndarray, "H W"]],
  titles: Sequence[str],
  names: Sequence[str],
) -> bytes:
  """Draws what is found under each prompt by a function of `plots`; returns the PNG."""
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / "plot.png"
    sheet(path, [pixels], [found], titles, names)
    return path.read_bytes()
