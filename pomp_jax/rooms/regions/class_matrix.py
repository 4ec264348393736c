"""Class matrices: text features under any prompt, which score regions and pixels.

Shapes: C classes, S names of all classes, E embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from pomp_jax.data.class_lists import ClassList, load_templates
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.named_prompts import NamedPrompt, describe
from pomp_jax.files.prompt_file import ClassFeatures


class ClassMatrix(NamedTuple):
  """Text features of classes with one or several names each."""

  # Unit rows, one for each name, in the order of the classes.
  features: Float[np.ndarray, "S E"]
  starts: Int[np.ndarray, " C"]  # first row of each class

  def over_names(self, scores: Float[np.ndarray, "*X S"]) -> Float[np.ndarray, "*X C"]:
    """Highest score among the names of each class."""
    return np.maximum.reduceat(scores, self.starts, axis=-1)


def class_matrix(
  encoder: Encoder, synonyms: Sequence[Sequence[str]], named: NamedPrompt
) -> ClassMatrix:
  """Computes the class matrix of a prompt.

  Args:
    encoder: CLIP's encoder.
    synonyms: names of each of the C classes.
    named: prompt. If it has one row for each class, as a file of class features has,
      only the first name of each class is used.
  """
  has_one_row_a_class = getattr(named.prompt, "has_rows", False)
  if isinstance(named.prompt, ClassFeatures) or has_one_row_a_class:
    synonyms = [names[:1] for names in synonyms]
  features_SxE = features_under(encoder, _class_list(synonyms), named.prompt)
  n_names_C = [len(names) for names in synonyms]
  starts_C = np.cumsum([0, *n_names_C[:-1]])
  return ClassMatrix(features_SxE, starts_C)


def key_parts(named: NamedPrompt, synonyms: Sequence[Sequence[str]]) -> list:
  """Cache key parts of the class matrix of a prompt."""
  return [named.label, str(synonyms), *describe(named.prompt, _class_list(synonyms))]


def _class_list(synonyms: Sequence[Sequence[str]]) -> ClassList:
  """Class list of all names, class by class."""
  names = tuple(name for names in synonyms for name in names)
  # The prompt `ensemble` uses CLIP's 80 texts, as published training-free segmentation.
  return ClassList(names, ensemble=load_templates("imagenet"))
