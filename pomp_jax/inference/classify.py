"""Zero-shot classification with a prompt and any list of names.

Shapes: N classes, B images, C categories, E embedding.
"""

from collections.abc import Sequence
import itertools
import os

from jaxtyping import Float
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.clip import Clip
from pomp_jax.data.class_lists import check_names
from pomp_jax.data.images import prepare_batch
from pomp_jax.encoder import Encoder
from pomp_jax.files.class_features import Category
from pomp_jax.files.paths import is_file
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt
from pomp_jax.inference.metrics import check_finite


class Classifier:
  """Names and probabilities for images; `class_features` are unit rows [N,E] of the `names`."""

  def __init__(
    self, clip: Clip | Encoder, prompt: Prompt | str | os.PathLike, names: Sequence[str]
  ):
    """Computes the text features of all names once.

    Args:
      clip: loaded CLIP, or an encoder that holds one.
      prompt: learned prompt, path of a file that `load_prompt` reads, or a template such as
        "a photo of a {}.".
      names: distinct class names.

    Raises:
      VocabularyError, TokenizeError, PromptFileError: unusable names or prompt.
      EvaluationError: features are not finite.
    """
    check_names(names)
    self.names = tuple(names)
    self._encoder = clip if isinstance(clip, Encoder) else Encoder(clip)
    self.class_features = self._encoder.class_features(names, open_prompt(prompt))
    check_finite(self.class_features, "classes")

  def probabilities(self, images: Sequence[Image.Image | np.ndarray]) -> Float[np.ndarray, "B N"]:
    """Returns softmax(logit_scale * cos(f(x), g(t_c))) over the classes.

    Args:
      images: Pillow images or uint8 [H,W,3] arrays of any size.

    Raises:
      EvaluationError: features are not finite.
    """
    clip = self._encoder.clip
    features_BxE = self._encoder.image_features(prepare_batch(images, clip.image_size))
    check_finite(features_BxE, "images")
    return scipy.special.softmax(clip.logit_scale * features_BxE @ self.class_features.T, axis=-1)

  def predict(
    self, images: Sequence[Image.Image | np.ndarray], top: int = 5
  ) -> list[list[tuple[str, float]]]:
    """Returns the `top` likeliest names of each image with probabilities, best first."""
    probabilities_BxN = self.probabilities(images)
    best_BxT = np.argsort(-probabilities_BxN, axis=-1, kind="stable")[:, :top]
    return [
      [(self.names[c], float(row[c])) for c in best]
      for row, best in zip(probabilities_BxN, best_BxT, strict=True)
    ]


def category_features(
  encoder: Encoder,
  categories: Sequence[Category],
  prompt: Prompt | str,
  synonyms: bool = False,
  *,
  unit: bool = True,
) -> Float[np.ndarray, "C E"]:
  """Computes text features of a data set's categories, with or without their synonyms.

  With synonyms, a row is the mean of the features of the name and of all its synonyms, normalised
  before and after if `unit`. Each distinct name is encoded once.

  Raises:
    PromptFileError: the prompt does not fit the CLIP or the number of categories, or is
      class-specific while synonyms are asked for.
    VocabularyError, TokenizeError: unusable names.
  """
  if not synonyms:
    return encoder.class_features([category.name for category in categories], prompt, unit=unit)
  if isinstance(prompt, Prompt) and prompt.context.ndim == 3:
    raise PromptFileError(
      f"the prompt: context {list(prompt.context.shape)} is class-specific, which leaves none for"
      " synonyms; a shared context [M, D] is needed"
    )
  names = [[category.name, *category.synonyms] for category in categories]
  row = {name: i for i, name in enumerate(dict.fromkeys(itertools.chain(*names)))}
  features_NxE = encoder.class_features(list(row), prompt, unit=unit)
  means_CxE = np.stack([features_NxE[[row[name] for name in own]].mean(axis=0) for own in names])
  return means_CxE / np.linalg.norm(means_CxE, axis=-1, keepdims=True) if unit else means_CxE


def open_prompt(prompt: Prompt | str | os.PathLike) -> Prompt | str:
  """Loads a prompt file; returns a prompt or a template unchanged.

  Raises:
    PromptFileError: neither a prompt, a template nor a readable prompt file.
  """
  if isinstance(prompt, Prompt) or (isinstance(prompt, str) and prompt.count("{}") == 1):
    return prompt
  if is_file(prompt):
    return load_prompt(prompt)
  raise PromptFileError(
    f"prompt {os.fspath(prompt)!r}: no file of that name, and no template; accepted: a Prompt, a"
    " prompt file that exists, or a text with exactly one {}"
  )
