"""Fits and evaluates classifiers of image features, and evaluates zero-shot CLIP.

Shapes: n images, N classes, E embedding.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts
from pomp_jax.config.fields import Clip, Data
from pomp_jax.config.jobs import TrainingConfig
from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import Accuracy
from pomp_jax.evaluate.named_prompts import ENSEMBLE, HAND_WRITTEN
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.rooms.baselines.learner_accuracy import classifier_accuracy
from pomp_jax.train import batches, results
from pomp_jax.train.fill_features import fill_features
from pomp_jax.train.watch import TrainingError

# Hand-written prompts of a zero-shot CLIP: the template of the data set, the name
# alone, and CLIP's ensembles of 7 and of 80 templates.
_ZERO_SHOT = {
  "hand_written": HAND_WRITTEN,
  "class_name": "{}.",
  "ensemble_7": f"{ENSEMBLE}:imagenet_7",
  "ensemble_80": f"{ENSEMBLE}:imagenet",
}


class Fitted(NamedTuple):
  """A fitted classifier."""

  # NamedTuple of arrays with a method `scores`: features [n,E] -> [n,N]
  classifier: Any
  names: tuple[str, ...]
  found: dict[str, Any]  # result of the search for the settings, as JSON


class Training(NamedTuple):
  """What a classifier is fitted on."""

  data: Data
  encoder: Encoder
  folder: RunFolder  # of the run, which may store features of images
  source: Source  # the training images
  validation: SplitFeatures

  def features(self) -> SplitFeatures:
    """Computes the features of the training images."""
    threads, max_corrupt = self.data.threads, self.data.max_corrupt
    return split_features(
      self.encoder, self.source, threads=threads, max_corrupt=max_corrupt
    )


# Returns a classifier, and the result of the search for its settings, as JSON. Raises
# FloatingPointError if no setting gives a finite classifier.
Fit = Callable[[Training], tuple[Any, dict[str, Any]]]


def run(
  config: TrainingConfig, folder: RunFolder, fit: Fit | None = None
) -> dict[str, Any]:
  """Fits and evaluates a classifier; writes `classifier.npz` and the results.

  Args:
    config: config of the training.
    folder: folder of the run.
    fit: fits the classifier; None: zero-shot CLIP, without a `classifier.npz`.

  Raises:
    TrainingError: no setting gives a finite classifier.
  """
  data = config.data
  method = config.method
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, data.feature_store
  )
  start = time.monotonic()
  fitted = None
  if fit is not None:
    try:
      fitted = fitted_by(fit, data, config.clip, config.eval.images, encoder, folder)
    except FloatingPointError as error:
      raise TrainingError(f"{method}: {error}") from error
  evaluation_start = time.monotonic()
  if fitted and hosts.is_first():
    # Save the classifier before the evaluation, which may fail.
    folder.create()
    path = folder.path / "classifier.npz"
    with writing(path), replacing(path) as file:
      np.savez(file, names=np.array(fitted.names), **fitted.classifier._asdict())
  # A classifier knows only the classes of its training.
  known_names = fitted.names if fitted else None
  splits = results.open_splits(data, config.eval.images, encoder, folder, known_names)
  scores = {}
  for name, (_, split) in splits.items():
    classes = opening.class_list(data, config.eval.template, split.names)
    scores[name] = _scores(encoder, split, method, fitted, classes)
  compared = method if fitted else "hand_written"
  figures, sets = results.figures_of_splits(splits, scores, compared)
  not_evaluated = [
    name for name in opening.evaluation_splits(data) if name not in splits
  ]
  outcome = {
    "job": config.job,
    "method": method,
    "seed": config.seed,
    "clip_model": encoder.clip.name,
    **figures,
    "n_classes": opening.n_training_classes(data),
    "seconds": round(evaluation_start - start, 2),
    "eval_seconds": round(time.monotonic() - evaluation_start, 2),
    "not_evaluated": not_evaluated,
  }
  if fitted:
    outcome["found"] = fitted.found
  if hosts.is_first():
    fields = config.to_dict()
    folder.create(fields)
    with writing(folder.plots):
      results.finish(folder, fields, outcome, sets)
    with results.open_tracker(config.log, folder, fields) as tracker:
      tracker.finish(outcome)
  return outcome


def fitted_by(
  fit: Fit,
  data: Data,
  clip: Clip,
  n_validation: int,
  encoder: Encoder,
  folder: RunFolder,
) -> Fitted:
  """Fits a classifier to the training images.

  Args:
    fit: fits the classifier.
    data: images of the training.
    clip: fields of the CLIP; stored features must have been computed with them.
    n_validation: number of validation images.
    encoder: the CLIP.
    folder: folder of the run, which may store features of the images.

  Raises:
    FloatingPointError: no setting gives a finite classifier.
  """
  source = encoder.sized(opening.open_source(data, "train"))
  fill_features(data, clip, folder, source, encoder)
  validation_images = opening.open_source(data, "validation", n_images=n_validation)
  validation = batches.readable_features(data, encoder, validation_images, folder)
  training = Training(data, encoder, folder, source, validation)
  classifier, search_facts = fit(training)
  return Fitted(classifier, names=tuple(source.names), found=search_facts)


def _scores(
  encoder: Encoder,
  split: SplitFeatures,
  method: str,
  fitted: Fitted | None,
  classes: ClassList,
) -> dict[str, Accuracy]:
  """Accuracy of the classifier, under its method's name, and of hand-written prompts.

  All prompts of `_ZERO_SHOT` are scored if there is no classifier, else only
  "hand_written" and "class_name".
  """
  scores = {}
  prompts = list(_ZERO_SHOT)
  if fitted:
    scores[method] = classifier_accuracy(fitted.classifier, split)
    prompts = [name for name in prompts if name in ("hand_written", "class_name")]
  for prompt in prompts:
    features_NxE = features_under(encoder, classes, _ZERO_SHOT[prompt])
    scores[prompt] = topk_accuracy(
      split.features, features_NxE, split.labels, mesh=encoder.mesh
    )
  return scores
