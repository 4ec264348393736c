"""Zero-shot classification with a prompt and any list of names.

Shapes: N classes, B images of a batch, n of them without padding, S side of an image in
pixels, E embedding.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools
import os
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.clip.load import Clip, load_clip
from pomp_jax.config.errors import ConfigError
from pomp_jax.data.class_lists import (
  ClassList,
  VocabularyError,
  check_names,
  load_class_list,
)
from pomp_jax.data.images import ImageError, prepare, read_image
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate.calibrated import AUTO, Scale, scale_of
from pomp_jax.evaluate.class_features import class_features
from pomp_jax.evaluate.metrics import check_finite
from pomp_jax.evaluate.named_prompts import AnyPrompt, OtherPrompt, read_prompt
from pomp_jax.evaluate.ranking import Scorer
from pomp_jax.files.prompt_file import (
  NO_NAMES,
  Prompt,
  PromptFileError,
  recorded_classes,
  recorded_upright,
)
from pomp_jax.prompt.mesh import split_rows

ImageLike = Image.Image | np.ndarray | str | os.PathLike


class Classifier:
  """Names and probabilities for images.

  `class_features` are unit rows [N,E] of the `names`, or None for a method without
  class vectors. `upright` is whether images are turned as their EXIF orientation says.
  `scale` is the factor on cosines. It includes the temperature if the prompt's file
  holds one for these classes; `scale.note` says whether it does.

  An image is a Pillow image, a uint8 array [H,W,3] or the path of a file, of any size.
  One image gives one result; an iterable of images, or an array [B,H,W,3], gives
  several.
  """

  def __init__(
    self,
    clip: Clip | Encoder | str | os.PathLike,
    prompt: Prompt | str | os.PathLike,
    names: Sequence[str] | str | os.PathLike | None = None,
    *,
    upright: bool | None = None,
    batch_size: int = 64,
    calibration: str = AUTO,
  ):
    """Computes the text features of all names once.

    Args:
      clip: a CLIP, an encoder that holds one, or a name such as "world" or a hub id.
      prompt: learned prompt, or what `evaluate.prompts` accepts by one name: a file or a
        run's folder, a template such as "a photo of a {}.", "0.5*runs/x + 0.5*ensemble".
      names: distinct class names, or a class list: "imagenet1k", or a file with one name
        a line. None: the names of the training, if the prompt is a run's folder or the
        prompt file in that folder.
      upright: whether images are turned as their EXIF orientation says; arrays have no
        orientation. None: as in the training if the prompt's file records it, otherwise
        True.
      batch_size: images that are decoded and computed at a time, at least 1.
      calibration: use of the prompt's temperature, one of `calibrated.USES`.

    Raises:
      InputError: the CLIP, the prompt or the names can't be used.
      EvaluationError: features that are not finite.
    """
    if batch_size < 1:
      raise InputError(f"batch_size: got {batch_size}, expected at least 1")
    self._batch_size = batch_size
    # Open the files first: computing takes longer.
    opened = open_prompt(prompt)
    if names is None:
      names = _recorded_names(prompt)
    where = "the class list"
    if isinstance(names, str | os.PathLike):
      where = str(names)
      classes = load_class_list(names)
    else:
      classes = ClassList(tuple(names))
    self.names = classes.names
    check_names(self.names, where)
    if upright is None:
      upright = pictures_upright(prompt, opened)
    self.upright = upright
    if isinstance(clip, str | os.PathLike):
      clip = load_clip(os.fspath(clip))
    if not isinstance(clip, Encoder):
      clip = Encoder(clip)
    self._encoder = clip
    self.scale: Scale = scale_of(
      self._encoder, opened, self.names, use=calibration, where=_described(prompt)
    )
    self._classifier: np.ndarray | Scorer
    self._needs_pixels = False
    if isinstance(opened, OtherPrompt):
      self._needs_pixels = opened.needs_pixels
      self._classifier = opened.classifier(self._encoder, classes)
    else:
      self._classifier = class_features(self._encoder, classes, opened)
    self.class_features: Float[np.ndarray, "N E"] | None = None
    if isinstance(self._classifier, np.ndarray):
      check_finite(self._classifier, "classes")
      self.class_features = self._classifier

  def probabilities(
    self, images: ImageLike | Iterable[ImageLike]
  ) -> Float[np.ndarray, "*B N"]:
    """Returns softmax(scale * cos(f(x), g(t_c))) over the classes, [N] for one image.

    f is the image tower and g(t_c) the feature of class c. The scale is the CLIP's,
    divided by the temperature if `scale` has one.

    Raises:
      ImageError: an image can't be read.
      EvaluationError: features that are not finite.
    """
    several, is_single = _listed(images)
    # Without any image the result is [0,N]; `concatenate` needs at least one array.
    empty = np.zeros((0, len(self.names)), np.float32)
    probabilities_BxN = np.concatenate([empty, *self._batches(several)])
    if is_single:
      return probabilities_BxN[0]
    return probabilities_BxN

  def predict(
    self, images: ImageLike | Iterable[ImageLike], top: int = 5
  ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
    """Returns pairs (name, probability) of the `top` likeliest names, best first.

    Several images give a list of such lists.

    Raises:
      InputError: `top` is below 1.
      ImageError: an image can't be read.
      EvaluationError: features that are not finite.
    """
    if top < 1:
      raise InputError(f"top: got {top}, expected at least 1")
    several, is_single = _listed(images)
    answers: list[list[tuple[str, float]]] = []
    for probabilities_BxN in self._batches(several):
      for probabilities_N in probabilities_BxN:
        best = np.argsort(-probabilities_N, kind="stable")[:top]
        answers.append([(self.names[c], float(probabilities_N[c])) for c in best])
    if is_single:
      return answers[0]
    return answers

  def _batches(self, images: Iterable[Any]) -> Iterator[Float[np.ndarray, "B N"]]:
    """Yields the probabilities of `batch_size` images at a time; the last batch may
    be smaller."""
    remaining = iter(images)
    first = 0
    while part := list(itertools.islice(remaining, self._batch_size)):
      pixels = [self._pixels(image, first + i) for i, image in enumerate(part)]
      # Pad to a power of two, so that a new number of images seldom compiles anew.
      n_rows = min(self._batch_size, 1 << (len(part) - 1).bit_length())
      pixels += pixels[:1] * (n_rows - len(part))
      cosine_BxN = self._cosines(np.stack(pixels), len(part))
      yield scipy.special.softmax(self.scale.logit_scale * cosine_BxN, axis=-1)
      first += len(part)

  def _cosines(
    self, pixels_BxSxSx3: UInt8[np.ndarray, "B S S 3"], n_images: int
  ) -> Float[np.ndarray, "n N"]:
    """Cosines of images with all classes.

    Args:
      pixels_BxSxSx3: images; those beyond the first n are padding.
      n_images: n, number of images without padding.

    Raises:
      EvaluationError: an image has features or cosines that are not finite.
    """
    if isinstance(self._classifier, np.ndarray):
      features_nxE = self._encoder.image_features(pixels_BxSxSx3)[:n_images]
      check_finite(features_nxE, "images")
      return features_nxE @ self._classifier.T

    # Pad the images to a multiple of the devices, which share them evenly.
    n_more = -len(pixels_BxSxSx3) % self._encoder.mesh.size
    padding = np.repeat(pixels_BxSxSx3[:1], n_more, axis=0)
    padded = np.concatenate([pixels_BxSxSx3, padding])
    images = split_rows(padded, self._encoder.mesh)
    frozen_BxE = None
    if not self._needs_pixels:
      frozen_BxE = self._encoder.features_of_images(images)
    cosine_BxN = self._classifier(frozen_BxE, images)
    cosine_nxN = np.asarray(cosine_BxN)[:n_images]
    check_finite(cosine_nxN, "images")
    return cosine_nxN

  def _pixels(self, image: Any, place: int) -> UInt8[np.ndarray, "S S 3"]:
    """Reads or prepares one image; an error names the path, or `place` in the input."""
    size = self._encoder.clip.image_size
    resize = self._encoder.resize
    if isinstance(image, str | os.PathLike):
      return read_image(image, size, self.upright, resize=resize)
    try:
      if not isinstance(image, Image.Image):
        image = np.asarray(image)
      return prepare(image, size, self.upright, resize=resize)
    except ImageError as error:
      raise ImageError(
        f"image {place}: {error}, or the path of an image file"
      ) from error


def _listed(images: Any) -> tuple[Iterable[Any], bool]:
  """Returns the images as an iterable, and whether a single image was given."""
  is_single = isinstance(images, Image.Image | str | os.PathLike)
  if hasattr(images, "ndim"):
    # An array of four axes, [B,H,W,3], holds several images; any other is one image.
    is_single = images.ndim != 4
  if is_single:
    return [images], True
  return images, False


def pictures_upright(prompt: Prompt | str | os.PathLike, opened: AnyPrompt) -> bool:
  """Whether pictures are turned upright for a prompt: as in the prompt's training.

  Args:
    prompt: prompt, or its name.
    opened: the prompt that `open_prompt` returns for it.

  Returns:
    The recorded choice; True if none is recorded, because people see pictures upright.
  """
  recorded = getattr(opened, "upright", None)
  if recorded is None and isinstance(prompt, str | os.PathLike):
    recorded = recorded_upright(os.fspath(prompt))
  if recorded is None:
    return True
  return recorded


def _recorded_names(prompt: Prompt | str | os.PathLike) -> str:
  """File of the class names of a prompt's training; VocabularyError if none is
  recorded."""
  names = ""
  if not isinstance(prompt, Prompt):
    names = recorded_classes(os.fspath(prompt))
  if not names:
    raise VocabularyError(f"names: none given, and {_described(prompt)} {NO_NAMES}")
  return names


def _described(prompt: Prompt | str | os.PathLike) -> str:
  if isinstance(prompt, Prompt):
    return "a prompt"
  return repr(os.fspath(prompt))


def open_prompt(prompt: Prompt | str | os.PathLike, field: str = "prompt") -> AnyPrompt:
  """Loads the prompt that a name of `evaluate.prompts` stands for.

  A `Prompt`, and the name of a hand-written prompt, are returned unchanged.
  """
  if isinstance(prompt, Prompt):
    return prompt
  try:
    return read_prompt(os.fspath(prompt), field).prompt
  except ConfigError as error:
    # Here `prompt` is an argument rather than a field of the config.
    raise PromptFileError(str(error).replace("config.prompt:", "prompt:", 1)) from error
