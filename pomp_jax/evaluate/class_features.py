"""Features of a class list under a prompt of any kind, and the mean over templates."""

import functools

import numpy as np

from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder, unit_rows
from pomp_jax.evaluate.named_prompts import OUTPUTS, AnyPrompt, OtherPrompt, texts_of
from pomp_jax.evaluate.other_clip import warn_of_other_clip
from pomp_jax.evaluate.ranking import Scorer
from pomp_jax.files import prompt_file
from pomp_jax.files.terminal import steps_of


def features_under(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt
) -> np.ndarray:
  """Computes unit features [N,E] of a class list under a prompt of any kind.

  For several texts the mean is normalised (Radford et al., 2021, section 3.1.4):
  `ensemble` averages unit features, `outputs` the text tower's outputs, as PromptSRC
  does for its anchors.

  Args:
    encoder: CLIP in use.
    classes: names, and templates of hand-written prompts.
    prompt: prompt of a `NamedPrompt`.

  Raises:
    PromptFileError: the prompt does not fit the CLIP or the number of names.
    TokenizeError: a text is too long.
  """
  if isinstance(prompt, OtherPrompt):
    return prompt.features(encoder, classes)
  if isinstance(prompt, prompt_file.Prompt):
    return _learned(encoder, classes, prompt)
  if isinstance(prompt, prompt_file.ClassFeatures):
    prompt.check_fits(
      len(classes), encoder.clip.config.projection_dim, "class features"
    )
    return prompt.features
  texts = steps_of(texts_of(prompt, classes), "class features of texts", "texts")
  unit = not prompt.startswith(f"{OUTPUTS}:")
  of_texts = (encoder.class_features(classes.names, text, unit=unit) for text in texts)
  return unit_rows(functools.reduce(np.add, of_texts))


def classifier_under(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt
) -> np.ndarray | Scorer:
  """Builds the classifier of a prompt, as `ranking.tally` takes it.

  Most prompts give each class one feature vector. A prompt whose text features depend
  on the image, or that scores images in another way, gives a function instead.

  Args:
    encoder: CLIP in use.
    classes: names, and templates of hand-written prompts.
    prompt: prompt of a `NamedPrompt`.

  Returns:
    Unit class features [N,E], or a function from images to scores.

  Raises:
    PromptFileError: see `features_under`.
  """
  if isinstance(prompt, OtherPrompt):
    return prompt.classifier(encoder, classes)
  return features_under(encoder, classes, prompt)


def class_features(
  encoder: Encoder, classes: ClassList, prompt: AnyPrompt, *, unit: bool = True
) -> np.ndarray:
  """Computes features [N,E] as `features_under` does, optionally not normalised.

  Args:
    encoder: CLIP in use.
    classes: names, and templates of hand-written prompts.
    prompt: prompt of a `NamedPrompt`.
    unit: whether features under a single text or a learned prompt are normalised; other
      features always are.

  Raises:
    PromptFileError: see `features_under`.
  """
  if isinstance(prompt, prompt_file.Prompt):
    return _learned(encoder, classes, prompt, unit=unit)
  # A text with one {} is a template; other strings are names of hand-written prompts.
  if isinstance(prompt, str) and prompt.count("{}") == 1:
    return encoder.class_features(classes.names, prompt, unit=unit)
  return features_under(encoder, classes, prompt)


def _learned(
  encoder: Encoder, classes: ClassList, prompt: prompt_file.Prompt, unit: bool = True
) -> np.ndarray:
  """Features under a learned prompt; warns if it seems to be of another CLIP."""
  features_NxE = encoder.class_features(classes.names, prompt, unit=unit)
  warn_of_other_clip(encoder, classes.names, prompt, features_NxE)
  return features_NxE
