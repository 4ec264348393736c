"""Zero-shot classification with a prompt and one's own list of names.

Shapes: N classes, B images, E embedding.
"""

from collections.abc import Callable, Sequence
import os

import jax
from jaxtyping import Float, Int
import numpy as np
from PIL import Image
import scipy.special

from pomp_jax.clip import Clip
from pomp_jax.data.images import prepare_batch
from pomp_jax.data.vocabulary import check_names
from pomp_jax.encoder import Encoder
from pomp_jax.files.progress import steps_of
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt
from pomp_jax.inference.metrics import Accuracy, EvaluationError, wilson_interval

# 4 MB.
_CACHED_SCORES = 2**20


class Classifier:
  """Names and probabilities for images.

  Attributes:
    names: the classes.
    class_features: unit text features, one row a class [N,E].
  """

  def __init__(
    self, clip: Clip | Encoder, prompt: Prompt | str | os.PathLike, names: Sequence[str]
  ):
    """Computes the features of all names once.

    Args:
      clip: a loaded CLIP, or an encoder that holds one.
      prompt: a learned prompt, the path of a file that `load_prompt` reads, or a template such as
        "a photo of a {}.".
      names: the classes to tell apart, any list of different strings.

    Raises:
      VocabularyError, TokenizeError, PromptFileError: names or a prompt that can't be used.
      EvaluationError: features that are not finite.
    """
    check_names(names)
    self.names = tuple(names)
    self._encoder = clip if isinstance(clip, Encoder) else Encoder(clip)
    self.class_features = self._encoder.class_features(names, _opened(prompt))
    check_finite(self.class_features, "classes")

  def probabilities(self, images: Sequence[Image.Image | np.ndarray]) -> Float[np.ndarray, "B N"]:
    """softmax(logit_scale * cos(f(x), g(t_c))) over the classes.

    Args:
      images: Pillow images or uint8 [H,W,3] arrays of any size.

    Raises:
      EvaluationError: features that are not finite.
    """
    clip = self._encoder.clip
    features_BxE = self._encoder.image_features(prepare_batch(images, clip.image_size))
    check_finite(features_BxE, "images")
    return scipy.special.softmax(clip.logit_scale * features_BxE @ self.class_features.T, axis=-1)

  def predict(
    self, images: Sequence[Image.Image | np.ndarray], top: int = 5
  ) -> list[list[tuple[str, float]]]:
    """The `top` likeliest names of each image with their probabilities, best first."""
    probabilities_BxN = self.probabilities(images)
    best_BxK = top_classes(probabilities_BxN, top)
    return [
      [(self.names[c], float(row[c])) for c in best]
      for row, best in zip(probabilities_BxN, best_BxK, strict=True)
    ]


def _opened(prompt: Prompt | str | os.PathLike) -> Prompt | str:
  """The prompt in a file; a prompt or a template as it is.

  Raises:
    PromptFileError: a text that is none of these, or a file that holds no prompt.
  """
  if isinstance(prompt, Prompt) or (isinstance(prompt, str) and prompt.count("{}") == 1):
    return prompt
  if os.path.isfile(prompt):
    return load_prompt(prompt)
  raise PromptFileError(
    f"prompt {os.fspath(prompt)!r}: no file of that name, and no template; accepted: a Prompt, a"
    " prompt file that exists, or a text with exactly one {}"
  )


def check_finite(features_nxE: Float[np.ndarray, "n E"], of: str) -> None:
  """Refuses features with which nothing can be told apart.

  Args:
    features_nxE: one row for each of something.
    of: what, in the plural.

  Raises:
    EvaluationError: rows that are not finite, and how many.
  """
  broken = int(np.sum(~np.isfinite(features_nxE).all(axis=-1)))
  if broken:
    raise EvaluationError(
      f"{broken} of {len(features_nxE)} {of} have features that are not finite: the CLIP's weights"
      " or the prompt are broken, or too large for config.clip.dtype"
    )


def top_classes(scores_BxN: Float[np.ndarray, "B N"], k: int) -> Int[np.ndarray, "B K"]:
  """The classes of the k highest scores in each row, best first; ties go to the lower class."""
  return np.argsort(-scores_BxN, axis=-1, kind="stable")[:, :k]


def topk_accuracy(
  image_features_BxE: Float[np.ndarray, "B E"],
  class_features_NxE: Float[np.ndarray, "N E"],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  chunk: int = 0,
) -> Accuracy:
  """Share of the images whose class is among the k most similar.

  A class that ties with the true one counts as more similar: a constant classifier scores 0.

  Args:
    image_features_BxE: unit rows.
    class_features_NxE: unit rows.
    labels_B: the true classes.
    ks: which k.
    chunk: images at a time; 0: as many as keep their scores, [chunk,N], in a processor's cache.

  Returns:
    {"images": n, "top1": .., "top1_interval": [low, high], "top5": ..}; the interval is
    `metrics.wilson_interval`'s.
  """

  def scores(part):
    return image_features_BxE[part] @ class_features_NxE.T

  chunk = chunk or max(_CACHED_SCORES // len(class_features_NxE), 16)
  return accuracy_of_scores(scores, labels_B, ks, chunk)


def accuracy_of_scores(
  scores: Callable[[slice], Float[np.ndarray, "b N"]],
  labels_B: Int[np.ndarray, " B"],
  ks: Sequence[int] = (1, 5),
  chunk: int = 512,
) -> Accuracy:
  """`topk_accuracy` of any classifier.

  An image with a score that is not finite counts as wrong, whatever k is.

  Args:
    scores: those of some of the images over all classes, higher is likelier.
    labels_B: the true classes.
    ks: which k.
    chunk: images at a time.
  """
  rank_B = np.empty(len(labels_B), np.int64)
  n_classes = 0
  for start in steps_of(range(0, len(labels_B), chunk), "scoring", "parts"):
    part = slice(start, start + chunk)
    scores_BxN = scores(part)
    n_classes = scores_BxN.shape[1]
    rank_B[part] = ranks(scores_BxN, labels_B[part])
  # Rank N, of broken scores, is among no k.
  figures: Accuracy = {"images": len(labels_B)}
  for k in ks:
    figures[f"top{k}"] = float(np.mean(rank_B < min(k, n_classes)))
    if k == 1:
      figures["top1_interval"] = wilson_interval(figures["top1"], len(labels_B))
  return figures


def ranks(
  scores_BxN: Float[np.ndarray, "B N"] | Float[jax.Array, "B N"],
  labels_B: Int[np.ndarray, " B"] | Int[jax.Array, " B"],
) -> Int[np.ndarray, " B"] | Int[jax.Array, " B"]:
  """How many classes other than the true one score at least as high as it; 0: the answer is right.

  A tie is lost. A row with a score that is not finite has rank N, worse than any other: compared,
  a NaN is neither higher nor lower, and a broken classifier would count as right.

  Args:
    scores_BxN: NumPy's or JAX's; higher is likelier.
    labels_B: the true classes.
  """
  xp = scores_BxN.__array_namespace__()
  true_Bx1 = xp.take_along_axis(scores_BxN, labels_B[:, None], axis=1)
  rank_B = xp.sum(scores_BxN >= true_Bx1, axis=1) - 1
  return xp.where(xp.all(xp.isfinite(scores_BxN), axis=1), rank_B, scores_BxN.shape[1])
