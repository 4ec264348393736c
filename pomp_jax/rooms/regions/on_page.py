"""What the page shows of regions: label maps, objects, and the scores of given boxes.

Shapes: N names, S rows of names and padding, R regions, E embedding.
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

# of the names under each prompt
Features = Callable[[], Sequence[Float[np.ndarray, "S E"]]]
# A picture, names, what computes their features, and labels of the prompts.
Asked = tuple[Image.Image, Sequence[str], Features, Sequence[str]]

_SEGMENT_SIDE = 384
# Names that the example of a scene lists and its picture does not show.
_OTHERS = 4


def check(page: Group, clip_model: str) -> None:
  """Raises InputError for masked crops, which boxes have not, and for a network that
  misfits."""
  crop, propose = page.of(fields.Regions).crop, page.of(fields.Propose)
  if crop != "context":
    raise ConfigError("regions.crop", crop, "'context': boxes have no masks")
  if propose.network:
    check_network(propose, clip_model)


def examples() -> list[tuple[Image.Image, str, str]]:
  """Scenes of several objects of the world: picture, names with some others', boxes;
  one a line."""
  found = Scenes("test", 2)
  scenes = []
  for index in range(len(found)):
    scene = found.scene(index)
    others = range(index, len(found.names), len(found.names) // _OTHERS)
    classes = dict.fromkeys([*scene.labels.tolist(), *others])
    names = "\n".join(found.names[c] for c in classes)
    boxes = "\n".join(
      " ".join(f"{value:g}" for value in box) for box in scene.boxes.tolist()
    )
    scenes.append((Image.fromarray(scene.image), names, boxes))
  return scenes


class RegionsOfPictures:
  """Regions of one picture under the features of names; rows beyond the names are
  padding.

  `finds`: whether a network can find objects; `segments`: whether it or a ViT can
  compute label maps, of at most `most_names` names.
  """

  most_names = 100  # a label map has the scores of all names at each pixel in memory

  def __init__(self, encoder: Encoder, clip: Clip, page: Group):
    """Opens the network of `config.propose`, if there is one; compiles on first use.

    Args:
      encoder: the CLIP.
      clip: its fields.
      page: the fields of the page, with those of this room.
    """
    regions, propose = page.of(fields.Regions), page.of(fields.Propose)
    segment = page.of(fields.Segment)
    # Crops are of the picture as it is, under one fusion.
    self._encoder, self._fields = (
      encoder,
      dataclasses.replace(regions, size=0, alone=False),
    )
    self._segment, self._detect = segment, page.of(fields.Detect)
    self._network = self._segmenter = None
    if propose.network:
      one = dataclasses.replace(propose, batch_size=1)
      self._network = open_network(one, clip, regions.mask_threshold, encoder)
    elif encoder.clip.config.vit:
      self._segmenter = DenseSegmenter(encoder, segment, dtype=clip.dtype)
    self.finds = self._network is not None
    self.segments = self.finds or self._segmenter is not None
    self._crops = RegionEncoder(encoder, regions)

  def segment(self, asked: Asked) -> bytes:
    """Draws a class for every pixel under each prompt; a PNG.

    The regions are the network's; without one patches get classes, by `segment.recipe`.
    """
    image, names, features, labels = asked
    if not self.segments:
      raise InputError("segmentation needs a ViT or a network; this CLIP has neither")
    if len(names) > self.most_names:
      expected = f"expected at most {self.most_names} for a segmentation"
      raise InputError(f"names: got {len(names):,}, {expected}")
    if (segmenter := self._segmenter) is None:
      pixels = np.asarray(image)
      regions, scores = self._scored(asked, self._segment.logit_scale)
      maps = list(
        label_maps_of_regions(scores, regions.drawn("the picture"), *pixels.shape[:2])
      )
    else:
      image = image.copy()
      image.thumbnail((_SEGMENT_SIDE, _SEGMENT_SIDE), Image.Resampling.BICUBIC)
      pixels = np.asarray(image)
      [found] = segmenter.label_maps([pixels], [_matrix(rows) for rows in features()])
      # Rows beyond the names repeat the first one.
      maps = [np.where(one.labels_HxW < len(names), one.labels_HxW, 0) for one in found]
    return _drawn(segmentation_sheet, pixels, maps, labels, names)

  def find_objects(self, asked: Asked) -> tuple[bytes, list[list[tuple[str, float]]]]:
    """Objects that the network finds: a PNG, and names with scores under each prompt,
    best first.

    Of boxes that overlap by half only the best counts, and eight in all.
    """
    if not self.finds:
      raise InputError(
        "finding objects needs a network; this page has none (propose.network)"
      )
    (image, names, _, labels), detect = asked, self._detect
    regions, scores = self._scored(asked, detect.logit_scale)
    drawn, rows = [], []
    for scores_RxN in scores:
      found, classes, best_D = select_detections(
        regions.boxes, scores_RxN, min_score=detect.min_score, max_iou=detect.nms
      )
      boxes = Detections(regions.boxes[found], best_D.astype(np.float32), classes)
      drawn.append(best := strongest(boxes))
      pairs = zip(best.classes, best.scores, strict=True)
      rows.append([(names[c], float(score)) for c, score in pairs])
    return _drawn(detection_sheet, np.asarray(image), drawn, labels, names), rows

  def _scored(
    self, asked: Asked, logit_scale: float, given: Regions | None = None
  ) -> Scored:
    """The network's regions, or the given ones, and their scores under each prompt."""
    image, names, features, _ = asked
    pixels_HxWx3 = np.asarray(image)
    images = Images(
      ["the picture"], lambda _: pixels_HxWx3.shape[:2], lambda _: pixels_HxWx3
    )
    if given is None:
      assert (network := self._network) is not None
      most = self._fields.max_regions
      find = lambda block: [one.top(most) for one in network.regions([pixels_HxWx3])]
      source = RegionSource(images, network.header, find)
    else:
      source = RegionSource(images, None, lambda block: [given])
    # Rows beyond the names repeat the first one.
    matrices = [_matrix(rows[: len(names)]) for rows in features()]
    scorer = RegionScorer(
      self._fields,
      source,
      self._encoder,
      undivided(names),
      matrices,
      logit_scale=logit_scale,
      crops=self._crops,
    )
    [(_, found)] = scorer.scored([0])
    return found

  def name_boxes(
    self, asked: Asked, boxes_Rx4: Float32[np.ndarray, "R 4"]
  ) -> tuple[bytes, Sequence[Float[np.ndarray, "R N"]]]:
    """Names given boxes: a PNG with each in the colour of its name, and scores by
    prompt."""
    image, names, _, labels = asked
    _, scores = self._scored(asked, self._detect.logit_scale, Regions(boxes_Rx4))
    drawn = [
      Detections(boxes_Rx4, rows.max(1).astype(np.float32), rows.argmax(1))
      for rows in scores
    ]
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
  """The PNG that a function of `plots` writes of what is found under each prompt."""
  with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
    path = pathlib.Path(folder) / "plot.png"
    sheet(path, [pixels], [found], titles, names)
    return path.read_bytes()
