"""One picture under prompts side by side: names, label maps, names of boxes, objects.

Shapes: N names, R regions, E embedding.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
import copy
import os
import pathlib
import tempfile
from typing import NamedTuple

from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.clip.resnet import ResNetConfig
from pomp_jax.config import WORLD, Settings
from pomp_jax.data.class_splits import ClassSplit
from pomp_jax.data.images import prepare
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.class_matrix import ClassMatrix, class_matrix, key_parts
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.files.paths import is_bucket
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import Prompt, PromptFileError, check_fits
from pomp_jax.files.prompt_hub import without_folders
from pomp_jax.files.run_folder import prompt_path
from pomp_jax.rooms.page.form import FormError
from pomp_jax.rooms.regions.boxes import select_detections
from pomp_jax.rooms.regions.files import RegionHeader, Regions
from pomp_jax.rooms.regions.label_maps import label_maps_of_regions
from pomp_jax.rooms.regions.pictures import Boxes, detection_sheet, segmentation_sheet, strongest
from pomp_jax.rooms.regions.proposals import Proposer
from pomp_jax.rooms.regions.region_scorer import (
  open_region_encoder,
  open_segmenter,
  region_scores,
  trained_classes,
)
from pomp_jax.rooms.regions.scores import Fusion

# Class matrices in memory, one for each prompt and list of names.
_MATRICES = 32
# A label map has the scores of all names at each pixel in memory.
MAX_SEGMENT_NAMES = 100
_SEGMENT_SIDE = 384


class Answer(NamedTuple):
  """The likeliest names under one prompt, with their probabilities, best first."""

  label: str  # of the prompt
  learned: bool  # whether the prompt is a learned one
  best: list[tuple[str, float]]


class Comparison:
  """A CLIP and prompts, with labels to show. The caller makes sure that one thread computes.

  `finds`: whether a network can find objects; `segments`: whether it or a ViT can compute label
  maps; `is_toy`: whether the CLIP is the embedded world's; `files`: paths of the config's prompts.
  """

  def __init__(
    self,
    encoder: Encoder,
    prompts: Sequence[NamedPrompt],
    config: Settings,
    network: Proposer | None = None,
  ):
    """Compiles on first use. The prompts fit any names; the network finds regions."""
    self._encoder, self._config, self._network = encoder, config, network
    self.prompts = list(prompts)
    self.is_toy = config.clip.model == WORLD
    names = [name for name in config.page.prompts if not is_bucket(name)]
    self.files = {os.path.realpath(prompt_path(name)) for name in names}
    self._matrices: OrderedDict[str, ClassMatrix] = OrderedDict()
    self.finds = network is not None
    self.segments = self.finds or not isinstance(encoder.clip.config.vision_config, ResNetConfig)
    dense = self.segments and not self.finds
    self._segmenter = open_segmenter(config, encoder) if dense else None
    self._crops = open_region_encoder(config.regions, encoder)

  @property
  def has_learned(self) -> bool:
    """Whether one of the prompts is learned."""
    return any(isinstance(named.prompt, Prompt) for named in self.prompts)

  def under(self, prompts: Sequence[NamedPrompt]) -> "Comparison":
    """The same under other prompts, with what is computed by now; FormError if one can't be."""
    width, model = self._encoder.clip.config.text_config.hidden_size, self._config.clip.model
    for label, prompt, _ in prompts:
      if isinstance(prompt, Prompt):
        if prompt.context.ndim == 3:
          raise FormError(f"{label}: is of one list of classes, expected one that fits any names")
        try:
          check_fits(prompt, width, model, path=label)
        except PromptFileError as error:
          raise FormError(without_folders(str(error))) from error
    other = copy.copy(self)
    other.prompts = list(prompts)
    return other

  def classify(self, image: Image.Image, names: Sequence[str]) -> list[Answer]:
    """The likeliest names of a picture under each prompt; TokenizeError, EvaluationError."""
    clip, matrices = self._encoder.clip, self._class_matrices(names)
    features_1xE = self._encoder.image_features(prepare(image, clip.image_size)[None])
    check_finite(features_1xE, "images")
    logits = [clip.logit_scale * features_1xE[0] @ one.features[: len(names)].T for one in matrices]
    return self._answers(names, list(map(scipy.special.softmax, logits)))

  def segment(self, image: Image.Image, names: Sequence[str]) -> bytes:
    """Draws a class for every pixel under each prompt; a PNG.

    The regions are the network's. Without one the classes of patches are drawn, by
    `segment.recipe`. FormError: more than MAX_SEGMENT_NAMES names, or neither a network nor a ViT.
    """
    if not self.segments:
      raise FormError("segmentation needs a ViT or a network; this CLIP has a ResNet")
    if len(names) > MAX_SEGMENT_NAMES:
      expected = f"expected at most {MAX_SEGMENT_NAMES} for a segmentation"
      raise FormError(f"names: got {len(names):,}, {expected}")
    if self.finds:
      pixels = np.asarray(image)
      regions, scores = self._regions(pixels, names, self._config.segment.logit_scale)
      maps = list(label_maps_of_regions(scores, regions.drawn("the picture"), *pixels.shape[:2]))
    else:
      image = image.copy()
      image.thumbnail((_SEGMENT_SIDE, _SEGMENT_SIDE), Image.Resampling.BICUBIC)
      pixels = np.asarray(image)
      assert self._segmenter is not None
      [found] = self._segmenter.label_maps([pixels], self._class_matrices(names))
      # Rows beyond the names repeat the first one.
      maps = [np.where(one.labels_HxW < len(names), one.labels_HxW, 0) for one in found]
    return self._drawn(segmentation_sheet, pixels, maps, names)

  def find_objects(
    self, image: Image.Image, names: Sequence[str]
  ) -> tuple[bytes, list[list[tuple[str, float]]]]:
    """Objects that the network finds: a PNG, and names with scores under each prompt, best first.

    Of boxes that overlap by half only the best counts, and eight in all. FormError: no network.
    """
    if not self.finds:
      raise FormError("finding objects needs a network; this page has none (propose.network)")
    pixels, detect = np.asarray(image), self._config.detect
    regions, scores = self._regions(pixels, names, detect.logit_scale)
    limits = {"min_score": detect.min_score, "max_iou": detect.nms}
    drawn, rows = [], []
    for scores_RxN in scores:
      found = select_detections(regions.boxes, scores_RxN, **limits)
      boxes = Boxes(regions.boxes[found.regions], found.classes, found.scores.astype(np.float32))
      drawn.append(best := strongest(boxes))
      pairs = zip(best.classes, best.scores, strict=True)
      rows.append([(names[c], float(score)) for c, score in pairs])
    return self._drawn(detection_sheet, pixels, drawn, names), rows

  def _regions(
    self, pixels_HxWx3: UInt8[np.ndarray, "H W 3"], names: Sequence[str], logit_scale: float
  ) -> tuple[Regions, list[Float[np.ndarray, "R N"]]]:
    """Regions that the network finds, and their fused scores under each prompt."""
    assert self._network is not None
    [regions] = self._network.regions([pixels_HxWx3])
    regions = regions.top(self._config.regions.max_regions)
    header = self._network.header
    classes = ClassSplit(tuple((name,) for name in names), ("-",) * len(names))
    trained_C = trained_classes(header, classes)
    return regions, self._scores(pixels_HxWx3, regions, names, logit_scale, trained_C, header)

  def _scores(
    self,
    pixels_HxWx3: UInt8[np.ndarray, "H W 3"],
    regions: Regions,
    names: Sequence[str],
    logit_scale: float,
    trained_C: Bool[np.ndarray, " N"],
    header: RegionHeader | None = None,
  ) -> list[Float[np.ndarray, "R N"]]:
    """Scores of regions under each prompt; `trained_C`: whether the network knows a name."""
    own = self._config.regions
    [features_RxE] = self._crops.features([pixels_HxWx3], [regions.boxes], None)
    return [
      region_scores(
        regions,
        header,
        features_RxE,
        ClassMatrix(matrix.features[: len(names)], np.arange(len(names))),
        logit_scale=logit_scale or self._encoder.clip.logit_scale,
        fusion=Fusion(own.e_base, own.e_novel, own.null),
        trained_C=trained_C,
        objectness=own.objectness,
      )
      for matrix in self._class_matrices(names)
    ]

  def name_boxes(
    self, image: Image.Image, names: Sequence[str], boxes_Rx4: Float32[np.ndarray, "R 4"]
  ) -> tuple[bytes, list[list[Answer]]]:
    """Names given boxes: a PNG with each in the colour of its name, and the answers of each."""
    pixels, scale = np.asarray(image), self._config.detect.logit_scale
    untrained_C = np.zeros(len(names), bool)
    scores = self._scores(pixels, Regions(boxes_Rx4), names, scale, untrained_C)
    drawn = [Boxes(boxes_Rx4, rows.argmax(1), rows.max(1).astype(np.float32)) for rows in scores]
    picture = self._drawn(detection_sheet, pixels, drawn, names)
    return picture, [self._answers(names, rows) for rows in zip(*scores, strict=True)]

  def _drawn(
    self, sheet: Callable[..., None], pixels: np.ndarray, found: Sequence, names: Sequence[str]
  ) -> bytes:
    """The PNG that a function of `analysis.pictures` writes of what each prompt has found."""
    labels = [named.label for named in self.prompts]
    with tempfile.TemporaryDirectory(prefix="pomp_page_") as folder:
      path = pathlib.Path(folder) / "plot.png"
      sheet(path, [pixels], [found], labels, names)
      return path.read_bytes()

  def _answers(self, names: Sequence[str], rows: Sequence[Float[np.ndarray, " N"]]) -> list[Answer]:
    """Best names of probabilities under each prompt."""
    answers = []
    for named, row_N in zip(self.prompts, rows, strict=True):
      best = np.argsort(-row_N, kind="stable")[: self._config.page.top]
      pairs = [(names[c], float(row_N[c])) for c in best]
      answers.append(Answer(named.label, isinstance(named.prompt, Prompt), pairs))
    return answers

  def _class_matrices(self, names: Sequence[str]) -> list[ClassMatrix]:
    """Features of the names under each prompt, computed once."""
    # Padded to a power of two, so that few shapes are compiled.
    padding = max(8, 1 << (len(names) - 1).bit_length()) - len(names)
    synonyms = [[name] for name in (*names, *[names[0]] * padding)]
    found = []
    for named in self.prompts:
      key = fingerprint(key_parts(named, synonyms))
      if key not in self._matrices:
        matrix = class_matrix(self._encoder, synonyms, named)
        check_finite(matrix.features, "classes")
        self._matrices[key] = matrix
        while len(self._matrices) > _MATRICES:
          self._matrices.popitem(last=False)
      self._matrices.move_to_end(key)
      found.append(self._matrices[key])
    return found


def shown_prompts(prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """The prompts with labels that tell no folder of the server: a file's last two names."""
  found: list[NamedPrompt] = []
  for named in prompts:
    label = named.label
    if isinstance(named.prompt, Prompt) and "://" not in label:
      label = "/".join(pathlib.PurePath(label).parts[-2:])
    number = sum(one.label.partition(" #")[0] == label for one in found) + 1
    label = f"{label} #{number}" if number > 1 else label
    found.append(named._replace(label=label))
  return found
