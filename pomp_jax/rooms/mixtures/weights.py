"""Weights of mixtures of class vectors, chosen by accuracy on the validation images.

Accuracy is the mean over the classes, as in a training's validation.
"""

from collections.abc import Sequence
import itertools
import logging
from typing import Any

import numpy as np

from pomp_jax.config import WORLD
from pomp_jax.config.errors import ConfigError
from pomp_jax.config.fields import Clip, Data, Eval
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.images_key import images_key
from pomp_jax.evaluate.named_prompts import NamedPrompt, check_lengths, check_prompt
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.report.labels import counted
from pomp_jax.rooms.mixtures.prompts import Mixture, mixed

log = logging.getLogger(__name__)

# Steps of the grid over a weight from 0 to 1, for two parts and for more parts.
_STEPS = 10
_STEPS_OF_MORE = 4


class Weights:
  """Chooses the weights of mixtures that are named without weights."""

  def __init__(
    self, prompts: Sequence[NamedPrompt], clip: Clip, data: Data, evaluation: Eval
  ):
    """Opens the validation images of `config.data`, if a mixture lacks weights.

    Args:
      prompts: prompts of the job, mixtures and others.
      clip: fields of the CLIP.
      data: source of the validation images.
      evaluation: number of validation images, and the template of their classes.

    Raises:
      ConfigError: a mixture lacks weights, and there are no validation images.
      InputError: the images or their class list are unusable.
    """
    self._prompts = prompts
    self._clip = clip
    self._data = data
    self._source: Any = None
    self._unweighted: list[NamedPrompt] = []
    for named in prompts:
      if isinstance(named.prompt, Mixture) and not named.prompt.weights:
        self._unweighted.append(named)
    if not self._unweighted:
      return

    # Only the world's own CLIP knows the world's pictures.
    fits_clip = clip.model == WORLD or data.source != WORLD
    if not fits_clip or not opening.has_validation(data):
      accepted = (
        "weights, such as 0.5*A + 0.5*B, where config.data has no validation images"
      )
      raise ConfigError("evaluate.prompts", self._unweighted[0].label, accepted)
    self._source = opening.open_source(data, "validation", n_images=evaluation.images)
    self._classes = opening.class_list(data, evaluation.template, self._source.names)

  def check(self) -> None:
    """Checks that mixtures without weights fit the validation images.

    Raises:
      InputError: the images have stored features of another CLIP, or a part of a
        mixture misfits the CLIP, the validation classes, or the lengths of their names.
    """
    if self._source is None:
      return
    model = self._clip.model
    clip_config, tokenizer = opening.clip_config_and_tokenizer(
      model, self._clip.image_tower
    )
    opening.check_features(self._source, model, clip_config)
    # A validation class has one name.
    synonyms = [(name,) for name in self._classes.names]
    for named in self._unweighted:
      label = f"{named.label}, validation images"
      mixture = named.prompt
      check_prompt(NamedPrompt(label, mixture), synonyms, clip_config, model)
      check_lengths(mixture, self._classes, tokenizer, clip_config.text_config, label)

  def key(self, encoder: Encoder) -> list[str]:
    """Cache key parts that chosen weights depend on beside the prompts.

    Empty if all mixtures have weights.
    """
    if self._source is None:
      return []
    return [repr(images_key(self._source, encoder)), repr(self._classes)]

  def choose(self, encoder: Encoder) -> tuple[list[NamedPrompt], list[dict[str, Any]]]:
    """Returns the prompts with their weights, and a row of `results.json` for each.

    All processes call it together. Of equally good weights, those nearest to equal
    weights win.
    """
    images = None
    if self._source is not None:
      images = split_features(
        encoder,
        self._source,
        threads=self._data.threads,
        max_corrupt=self._data.max_corrupt,
      )
    prompts = []
    rows = []
    for named in self._prompts:
      row: dict[str, Any] = {"label": named.label, "step": named.step}
      if isinstance(named.prompt, Mixture):
        parts = named.prompt.parts
        weights = named.prompt.weights
        note = f"{named.label}: weights "
        if not weights and images is not None:
          scores = self._scores(encoder, parts, images)
          # Of equal scores the first wins; `grid` begins nearest to equal weights.
          weights = max(scores, key=lambda weights: scores[weights])
          n_images = len(images.labels)
          n_classes = len(np.unique(images.labels))
          row["validation_images"] = n_images
          row["validation_classes"] = n_classes
          row["grid"] = list(scores.items())
          # Weights of each part alone, in the order of the parts.
          corners = sorted(
            (weights for weights in scores if 1 in weights), reverse=True
          )
          alone = ", ".join(f"{100 * scores[corner]:.1f}%" for corner in corners)
          note = (
            f"{named.label}: top-1 {100 * scores[weights]:.1f}%, the mean over"
            f" {counted(n_classes, 'class')} with {counted(n_images, 'validation image')}"
            f" (its parts alone {alone}), by the weights "
          )
        row["weights"] = weights
        row["note"] = note + ", ".join(f"{weight:.3g}" for weight in weights)
        log.info("%s", row["note"])
        named = named._replace(prompt=Mixture(parts, weights))
      prompts.append(named)
      rows.append(row)
    return prompts, rows

  def _scores(
    self, encoder: Encoder, parts: Sequence[NamedPrompt], images: SplitFeatures
  ) -> dict[tuple[float, ...], float]:
    """Scores weights by top-1, the mean over the classes of the validation images."""
    features = [features_under(encoder, self._classes, part.prompt) for part in parts]
    scores = {}
    for weights in grid(len(parts)):
      figures = topk_accuracy(
        images.features,
        mixed(features, weights),
        images.labels,
        ks=(1,),
        mesh=encoder.mesh,
      )
      scores[weights] = figures["macro_top1"]
    return scores


def grid(n_parts: int) -> list[tuple[float, ...]]:
  """Lists the weights to choose from, including each part alone.

  Weights nearest to equal weights come first.
  """
  n_steps = _STEPS if n_parts == 2 else _STEPS_OF_MORE
  choices = []
  for counts in itertools.product(range(n_steps + 1), repeat=n_parts):
    if sum(counts) == n_steps:
      choices.append(tuple(count / n_steps for count in counts))
  return sorted(choices, key=lambda weights: sum(weight**2 for weight in weights))
