"""Methods without gradient steps on the contrast: zero-shot, and those that fit a classifier.

They leave the folder of a run as `pretrain` does, with `classifier.npz` instead of a prompt. A
classifier has weights for the classes of its training only: splits with other classes are skipped,
and the results name them.
Shapes: n images, N classes, E embedding.
"""

from collections.abc import Sequence
import functools
import logging
import time
from typing import Any, NamedTuple

import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis import plots
from pomp_jax.baselines.recognition import classifier_accuracy
from pomp_jax.config import METHODS, Settings
from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.encoder import Encoder
from pomp_jax.files.atomic import replacing
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.inference.evaluate import split_features
from pomp_jax.inference.metrics import Accuracy, topk_accuracy
from pomp_jax.inference.named_prompts import ENSEMBLE, HAND_WRITTEN, features_under
from pomp_jax.train.batches import view_features
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

# Hand-written prompts of a zero-shot CLIP: the template of the data set, the name alone, and CLIP's
# ensembles of 7 and of 80 templates.
_ZERO_SHOT = {
  "hand_written": HAND_WRITTEN,
  "class_name": "{}.",
  "ensemble_7": f"{ENSEMBLE}:imagenet_7",
  "ensemble_80": f"{ENSEMBLE}:imagenet",
}


class Fitted(NamedTuple):
  """A fitted classifier.

  Attributes:
    classifier: NamedTuple of arrays with a method `scores`: features [n,E] -> [n,N].
    names: names of its N classes.
    found: what the search for its settings found, as JSON.
  """

  classifier: Any
  names: tuple[str, ...]
  found: dict[str, Any]


def run(config: Settings, folder: RunFolder) -> dict[str, Any]:
  """Fits and evaluates, writes the run's folder, and returns the content of `results.json`.

  Raises:
    VocabularyError, TokenizeError: names that can't be used.
    TrainingError: a classifier that is not finite.
    EvaluationError: image features that are not finite.
  """
  encoder = inputs.open_encoder(config)
  start = time.monotonic()
  try:
    fitted = fit(config, encoder) if METHODS[config.method].learns == "features" else None
  except FloatingPointError as error:
    raise TrainingError(f"{config.method}: {error}") from error
  seconds = time.monotonic() - start
  if fitted and hosts.is_first():
    # Saved before the evaluation, which may fail.
    folder.create()
    path = folder.path / "classifier.npz"
    with writing(path), replacing(path) as file:
      np.savez(file, names=np.array(fitted.names), **fitted.classifier._asdict())
  results = _results(config, encoder, fitted, seconds)
  if hosts.is_first():
    folder.create()
    write_json(folder.config, config.to_dict())
    with writing(folder.plots):
      plots.accuracy_bars(folder.plots / "accuracy.png", results["eval"])
    # Last: a folder with results is a finished run.
    write_json(folder.results, results)
    for split, top1 in results["top1"].items():
      n_images = results["eval_images"][split]
      log.info("%s top-1 of %d images: %s %.1f%%", split, n_images, config.method, 100 * top1)
  return results


def fit(config: Settings, encoder: Encoder) -> Fitted:
  """Fits the classifier of `config.method` on the training images.

  Raises:
    FloatingPointError: no setting gives a finite classifier.
  """
  data = config.data
  source = inputs.open_training_source(data, encoder.clip.image_size)
  validation = split_features(
    encoder,
    inputs.open_source(data, "validation", n_images=config.eval.images),
    threads=data.threads,
    max_corrupt=data.max_corrupt,
  )
  classes, method = _class_list(config, source.names), METHODS[config.method].load()
  classifier, found = method.fit_classifier(
    config,
    encoder,
    source,
    validation,
    view_epochs=functools.partial(view_features, data, source, encoder),
    text_features=functools.partial(features_under, encoder, classes),
  )
  return Fitted(classifier, tuple(source.names), found)


def _class_list(config: Settings, names: Sequence[str]) -> ClassList:
  """Classes with the templates of their data set, if it has any."""
  template = config.eval.template
  if config.data.dataset in CLASS_LISTS:
    known = load_class_list(config.data.dataset)
    return ClassList(tuple(names), None, known.template, known.ensemble, known.source)
  return ClassList(tuple(names), None, template, (template,), config.data.source)


def _results(
  config: Settings, encoder: Encoder, fitted: Fitted | None, seconds: float
) -> dict[str, Any]:
  """Results in the layout of `pretrain`."""
  start = time.monotonic()
  label = config.method if fitted else "hand_written"
  scores: dict[str, dict[str, Accuracy]] = {}
  n_classes, skipped, unreadable = {}, [], {}
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    split = split_features(
      encoder, source, threads=config.data.threads, max_corrupt=config.data.max_corrupt
    )
    if fitted and split.names != fitted.names:
      skipped.append(name)
      continue
    n_classes[name] = len(split.names)
    unreadable[name] = len(source) - len(split.labels)
    scores[name] = {label: classifier_accuracy(fitted.classifier, split)} if fitted else {}
    classes = _class_list(config, split.names)
    for prompt, text in _ZERO_SHOT.items():
      if not fitted or prompt in ("hand_written", "class_name"):
        features_NxE = features_under(encoder, classes, text)
        scores[name][prompt] = topk_accuracy(split.features, features_NxE, split.labels)
  return {
    "job": config.job,
    "method": config.method,
    "seed": config.seed,
    "seconds": round(seconds, 2),
    "eval_seconds": round(time.monotonic() - start, 2),
    "clip_model": encoder.clip.name,
    "n_classes": inputs.n_training_classes(config.data),
    "eval_images": {name: of_split[label]["images"] for name, of_split in scores.items()},
    "eval_classes": n_classes,
    "not_evaluated": skipped,
    **({"found": fitted.found} if fitted else {}),
    "eval": scores,
    "eval_unreadable": unreadable,
    "top1": {split: of_split[label]["top1"] for split, of_split in scores.items()},
  }
