"""One picture under prompts side by side: names, label maps, names of boxes, objects.

Shapes: N names, S rows of names and padding, R regions, E embedding.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
import copy
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Float, Float32
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.config import WORLD
from pomp_jax.data.class_lists import ClassList, load_templates
from pomp_jax.data.images import prepare
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt, describe, features_under
from pomp_jax.files.paths import without_folders
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import Prompt, PromptFileError, check_fits
from pomp_jax.rooms.page.form import FormError

# Features of names in memory, one array for each prompt and list of names.
_MOST_FEATURES = 32


class Answer(NamedTuple):
  """The likeliest names under one prompt, with their probabilities, best first."""

  label: str  # of the prompt
  learned: bool  # whether the prompt is a learned one
  best: list[tuple[str, float]]


class Comparison:
  """A CLIP and prompts, with labels to show. The caller makes sure that one thread computes."""

  def __init__(
    self,
    encoder: Encoder,
    prompts: Sequence[NamedPrompt],
    top: int,
    regions: Any = None,
    files: Collection[str] = (),
  ):
    """Compiles on first use.

    Args:
      encoder: CLIP on the devices.
      prompts: prompts that fit any names.
      top: number of names in an answer.
      regions: `RegionsOfPictures`; None where the page has no regions.
      files: real paths of the prompts' files.
    """
    self._encoder, self._top = encoder, top
    self.prompts, self.regions, self.files = list(prompts), regions, files
    self.is_toy = encoder.clip.name == WORLD
    self._features: OrderedDict[str, np.ndarray] = OrderedDict()

  @property
  def has_learned(self) -> bool:
    """Whether one of the prompts is learned."""
    return any(isinstance(named.prompt, Prompt) for named in self.prompts)

  def under(self, prompts: Sequence[NamedPrompt]) -> "Comparison":
    """The same under other prompts, with what is computed by now; FormError if one can't be."""
    clip = self._encoder.clip
    for label, prompt, _ in prompts:
      if isinstance(prompt, Prompt):
        if prompt.context.ndim == 3:
          raise FormError(f"{label}: is of one list of classes, expected one that fits any names")
        try:
          check_fits(prompt, clip.text_width, clip.name, path=label)
        except PromptFileError as error:
          raise FormError(without_folders(str(error))) from error
    other = copy.copy(self)
    other.prompts = list(prompts)
    return other

  def classify(self, image: Image.Image, names: Sequence[str]) -> list[Answer]:
    """The likeliest names of a picture under each prompt; TokenizeError, EvaluationError."""
    clip, features = self._encoder.clip, self._class_features(names)
    pixels = prepare(image, clip.image_size, resize=self._encoder.resize)
    features_1xE = self._encoder.image_features(pixels[None])
    check_finite(features_1xE, "images")
    logits = [clip.logit_scale * features_1xE[0] @ rows[: len(names)].T for rows in features]
    return self._answers(names, list(map(scipy.special.softmax, logits)))

  def segment(self, image: Image.Image, names: Sequence[str]) -> bytes:
    """Draws a class for every pixel under each prompt; a PNG."""
    if not self.regions.segments:
      raise FormError("segmentation needs a ViT or a network; this CLIP has neither")
    if len(names) > self.regions.most_names:
      expected = f"expected at most {self.regions.most_names} for a segmentation"
      raise FormError(f"names: got {len(names):,}, {expected}")
    return self.regions.segment(image, names, self._class_features(names), self._labels)

  def find_objects(
    self, image: Image.Image, names: Sequence[str]
  ) -> tuple[bytes, list[list[tuple[str, float]]]]:
    """Objects that the network finds: a PNG, and names with scores under each prompt."""
    if not self.regions.finds:
      raise FormError("finding objects needs a network; this page has none (propose.network)")
    return self.regions.find_objects(image, names, self._class_features(names), self._labels)

  def name_boxes(
    self, image: Image.Image, names: Sequence[str], boxes_Rx4: Float32[np.ndarray, "R 4"]
  ) -> tuple[bytes, list[list[Answer]]]:
    """Names given boxes: a PNG with each in the colour of its name, and the answers of each."""
    given = image, names, self._class_features(names), self._labels
    picture, scores = self.regions.name_boxes(*given, boxes_Rx4)
    return picture, [self._answers(names, rows) for rows in zip(*scores, strict=True)]

  @property
  def _labels(self) -> list[str]:
    return [named.label for named in self.prompts]

  def _answers(self, names: Sequence[str], rows: Sequence[Float[np.ndarray, " N"]]) -> list[Answer]:
    """Best names of probabilities under each prompt."""
    answers = []
    for named, row_N in zip(self.prompts, rows, strict=True):
      best = np.argsort(-row_N, kind="stable")[: self._top]
      pairs = [(names[c], float(row_N[c])) for c in best]
      answers.append(Answer(named.label, isinstance(named.prompt, Prompt), pairs))
    return answers

  def _class_features(self, names: Sequence[str]) -> list[Float[np.ndarray, "S E"]]:
    """Features of the names under each prompt, computed once."""
    # Padded to a power of two, so that few shapes are compiled.
    padding = max(8, 1 << (len(names) - 1).bit_length()) - len(names)
    classes = ClassList((*names, *[names[0]] * padding), ensemble=load_templates("imagenet"))
    found = []
    for named in self.prompts:
      key = fingerprint([named.label, str(classes.names), *describe(named.prompt, classes)])
      if key not in self._features:
        features_SxE = features_under(self._encoder, classes, named.prompt)
        check_finite(features_SxE, "classes")
        self._features[key] = features_SxE
        while len(self._features) > _MOST_FEATURES:
          self._features.popitem(last=False)
      self._features.move_to_end(key)
      found.append(self._features[key])
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
