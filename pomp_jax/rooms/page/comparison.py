"""Compares the answers for one picture under several prompts, side by side.

Shapes: N names, S rows of names and padding, E embedding.
"""

from collections.abc import Collection, Sequence
import copy
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.config import WORLD
from pomp_jax.data.class_lists import ClassList, load_templates
from pomp_jax.data.images import prepare
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import named_prompts
from pomp_jax.evaluate.calibrated import Scale, scale_of
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import NamedPrompt, describe
from pomp_jax.files.paths import without_folders
from pomp_jax.files.pieces import ArrayCache, fingerprint
from pomp_jax.files.prompt_file import Prompt, PromptFileError
from pomp_jax.rooms.page.form import FormError

_MOST_FEATURES = 32  # arrays in memory, one for each prompt and list of names
# A prompt, and the likeliest names under it with their probabilities, best first.
Answer = tuple[NamedPrompt, list[tuple[str, float]]]


class Comparison:
  """A CLIP and prompts with labels to show.

  Not thread-safe: the caller makes sure that only one thread computes at a time.
  """

  def __init__(
    self,
    encoder: Encoder,
    prompts: Sequence[NamedPrompt],
    top: int,
    regions: Any = None,
    files: Collection[str] = (),
  ):
    """Stores the arguments; the first picture compiles.

    Args:
      encoder: the CLIP.
      prompts: prompts side by side.
      top: number of names in an answer.
      regions: `RegionsOfPictures`; None if the page has no regions.
      files: real paths of the prompts' files.
    """
    self._encoder = encoder
    self._top = top
    self.prompts = list(prompts)
    self.regions = regions
    self.files = files
    self.is_toy = encoder.clip.name == WORLD
    self._features = ArrayCache(in_memory=_MOST_FEATURES)

  def under(self, prompts: Sequence[NamedPrompt]) -> "Comparison":
    """Returns this comparison with other prompts.

    The two comparisons share the encoder and the cache of features.

    Args:
      prompts: prompts side by side, in place of this comparison's prompts.

    Raises:
      FormError: a prompt belongs to one list of classes, or does not fit the CLIP.
    """
    clip = self._encoder.clip
    for named in prompts:
      if named_prompts.of_one_list(named.prompt):
        problem = "is of one list of classes, expected one that fits any names"
        raise FormError(f"{named.label}: {problem}")
      try:
        # No names yet: a visitor enters them.
        named_prompts.check_prompt(named, (), clip.config, clip.name)
      except PromptFileError as error:
        # A visitor must not learn the folders of this machine.
        raise FormError(without_folders(str(error))) from error
    other = copy.copy(self)  # shallow, so that the cache of features is shared
    other.prompts = list(prompts)
    return other

  def classify(self, image: Image.Image, names: Sequence[str]) -> list[Answer]:
    """Returns the likeliest names of a picture under each prompt.

    Raises:
      TokenizeError, EvaluationError, CalibrationError: a name is too long, features are
        not finite, or a scale is unusable.
    """
    size = self._encoder.clip.image_size
    scales = self.scales(names)
    class_features = self._class_features(names)
    pixels = prepare(image, size, resize=self._encoder.resize)
    features_1xE = self._encoder.image_features(pixels[None])
    check_finite(features_1xE, "images")
    rows = []
    for scale, features_SxE in zip(scales, class_features, strict=True):
      # Rows behind those of the names are padding.
      features_NxE = features_SxE[: len(names)]
      logits_N = scale.logit_scale * features_1xE[0] @ features_NxE.T
      rows.append(scipy.special.softmax(logits_N))
    return self.answers(names, rows)

  def scales(self, names: Sequence[str]) -> list[Scale]:
    """Factor on the cosines under each prompt, with the note about the factor."""
    return [
      scale_of(self._encoder, named.prompt, names, where=named.label)
      for named in self.prompts
    ]

  def asked(self, image: Image.Image, names: Sequence[str]) -> tuple:
    """Returns the argument of the methods of `regions`.

    It is a tuple of the picture, the names, a function that computes the features of
    the names, and the labels of the prompts.
    """
    labels = [named.label for named in self.prompts]
    return image, names, lambda: self._class_features(names), labels

  def answers(
    self, names: Sequence[str], rows: Sequence[Float[np.ndarray, " N"]]
  ) -> list[Answer]:
    """Returns the likeliest names under each prompt; `rows` has a row for each prompt."""
    answers = []
    for named, row_N in zip(self.prompts, rows, strict=True):
      best = np.argsort(-row_N, kind="stable")[: self._top]
      answers.append((named, [(names[c], float(row_N[c])) for c in best]))
    return answers

  def _class_features(self, names: Sequence[str]) -> list[Float[np.ndarray, "S E"]]:
    """Returns features of the names under each prompt; caches them."""
    # Pad the list with the first name to 8, 16, 32, .. names, so that few shapes are
    # compiled.
    n_rows = 8
    while n_rows < len(names):
      n_rows *= 2
    padding = [names[0]] * (n_rows - len(names))
    classes = ClassList((*names, *padding), ensemble=load_templates("imagenet"))
    features = []
    for named in self.prompts:
      key = fingerprint(
        [named.label, str(classes.names), *describe(named.prompt, classes)]
      )
      features_SxE = self._features.find(key)
      if features_SxE is None:
        features_SxE = features_under(self._encoder, classes, named.prompt)
        check_finite(features_SxE, "classes")
        self._features.keep(key, features_SxE)
      features.append(features_SxE)
    return features


def shown_prompts(prompts: Sequence[NamedPrompt]) -> list[NamedPrompt]:
  """Returns the prompts with labels that reveal no folder of the server.

  A file's label is the last two names of its path. Equal labels are numbered.
  """
  relabelled: list[NamedPrompt] = []
  count_of: dict[str, int] = {}
  for named in prompts:
    label = named.label
    if isinstance(named.prompt, Prompt):
      if "://" not in label:
        label = "/".join(pathlib.PurePath(label).parts[-2:])
    elif not isinstance(named.prompt, str):
      label = without_folders(label)
    # Labels that differ only in a number, "a" and "a #2", are counted together.
    count_key = label.partition(" #")[0]
    number = count_of.get(label, 0) + 1
    numbered = f"{label} #{number}" if number > 1 else label
    count_of[count_key] = count_of.get(count_key, 0) + 1
    relabelled.append(named._replace(label=numbered))
  return relabelled
