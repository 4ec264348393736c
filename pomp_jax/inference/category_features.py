"""Features of a data set's categories, with or without their synonyms.

Shapes: C categories, N names, E embedding.
"""

from collections.abc import Sequence
import itertools

from jaxtyping import Float
import numpy as np

from pomp_jax.encoder import Encoder
from pomp_jax.files.class_features import Category
from pomp_jax.files.prompt_file import Prompt, PromptFileError


def category_features(
  encoder: Encoder,
  categories: Sequence[Category],
  prompt: Prompt | str,
  synonyms: bool = False,
  *,
  unit: bool = True,
) -> Float[np.ndarray, "C E"]:
  """Features, one row a category in the order given.

  With synonyms, the row is the mean of the features of the name and of all its synonyms: of unit
  rows on the unit sphere again, else as it is. A name that several categories share is encoded
  once.

  Args:
    encoder: the CLIP.
    categories: whose features are wanted.
    prompt: a learned prompt, or a template such as "a {}".
    synonyms: whether they count.
    unit: whether rows are of length 1; else they are as the text tower has them.

  Raises:
    PromptFileError: the prompt does not fit the CLIP or the number of categories, or has one
      context a class where synonyms are asked for: these are names of no class of its training.
    VocabularyError, TokenizeError: names that can't be used.
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
  return means_CxE if not unit else means_CxE / np.linalg.norm(means_CxE, axis=-1, keepdims=True)
