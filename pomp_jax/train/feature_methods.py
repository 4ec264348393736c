"""The methods that need no step, on features of the frozen CLIP: zero-shot, probe, Tip-Adapter.

What they leave is a run's folder as the main job's, with `classifier.npz` where they learn one. A
classifier with weights for its training's classes knows no others: splits with others are not
evaluated, and the results name them.
Shapes: n images, N classes, E embedding.
"""

from collections.abc import Callable, Mapping, Sequence
import logging
import time
from typing import Any

import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis import plots
from pomp_jax.baselines import linear_probe
from pomp_jax.baselines.tip_adapter import Published, TipAdapter, mean_keys, published, tune, unit
from pomp_jax.config import Settings
from pomp_jax.data.class_lists import CLASS_LISTS, ClassList, load_class_list
from pomp_jax.data.source import Source
from pomp_jax.encoder import Encoder
from pomp_jax.files.atomic import replacing
from pomp_jax.files.progress import waiting
from pomp_jax.files.run_folder import RunFolder, write_json, writing
from pomp_jax.inference.evaluate import SplitFeatures, split_features
from pomp_jax.inference.metrics import Accuracy, accuracy_of_scores, topk_accuracy
from pomp_jax.inference.named_prompts import ENSEMBLE, HAND_WRITTEN, features_under
from pomp_jax.train.view_features import view_features
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

# The hand-written prompts of a zero-shot CLIP: the set's own text, the name alone, and CLIP's
# ensembles of 7 and of 80 texts.
_ZERO_SHOT = {
  "hand_written": HAND_WRITTEN,
  "class_name": "{}.",
  "ensemble_7": f"{ENSEMBLE}:imagenet_7",
  "ensemble_80": f"{ENSEMBLE}:imagenet",
}


def run(config: Settings, folder: RunFolder) -> dict[str, Any]:
  """Learns, evaluates, and leaves the run's folder; returns what `results.json` holds.

  Raises:
    VocabularyError, TokenizeError: names that can't be used.
    TrainingError: nothing that was learned is finite.
    EvaluationError: features of images that are not finite.
  """
  encoder = inputs.open_encoder(config)
  start = time.monotonic()
  try:
    learned = {} if config.method == "zero_shot" else _learn(config, encoder)
  except FloatingPointError as error:
    raise TrainingError(f"{config.method}: {error}") from error
  seconds = time.monotonic() - start
  if learned and hosts.is_first():
    # Before it is evaluated: whatever happens there, what was learned can be used.
    folder.create()
    path = folder.path / "classifier.npz"
    with writing(path), replacing(path) as file:
      np.savez(file, names=np.array(learned["names"]), **learned["classifier"]._asdict())
  results = _results(config, encoder, learned, seconds)
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


def _learn(config: Settings, encoder: Encoder) -> dict[str, Any]:
  """The classifier, the names that it knows, and what the search for its settings tried."""
  data = config.data
  training = inputs.open_training_source(data, encoder.clip.image_size)
  read = {"threads": data.threads, "max_corrupt": data.max_corrupt}
  source = inputs.open_source(data, "validation", n_images=config.eval.images)
  validation = split_features(encoder, source, **read)
  if config.method == "linear_probe":
    train = split_features(encoder, training, **read)
    classifier, tried = _linear_probe(config, train, validation)
    found = {
      "strength": classifier.strength,
      "validation_images": len(validation.labels),
      "validation_top1": {f"{key:.4g}": top1 for key, top1 in tried.items()},
    }
  else:
    classifier = _tip_adapter(config, encoder, training, validation)
    found = {
      "alpha": classifier.alpha,
      "beta": classifier.beta,
      "validation_images": len(validation.labels),
    }
  return {"classifier": classifier, "names": tuple(training.names), "found": found}


def _linear_probe(config: Settings, train: SplitFeatures, validation: SplitFeatures):
  def fit(strength, start):
    return linear_probe.fit(
      *(train.features, train.labels, len(train.names), strength),
      iterations=config.probe.iterations,
      start=start,
    )

  with waiting("fitting linear probes"):
    return linear_probe.search(fit, lambda probe: _accuracy(probe.scores, validation)["top1"])


def _tip_adapter(
  config: Settings, encoder: Encoder, source: Source, validation: SplitFeatures
) -> TipAdapter:
  tip = tip_settings(config)
  # Without augmentation all views are the same.
  n_views = 1 if config.data.augment == "none" else config.tip.views
  tuned_for = tip.epochs if config.method == "tip_adapter_f" else 0
  epochs = view_features(config.data, source, encoder, n_views + tuned_for)
  first = [next(epochs) for _ in range(n_views)]
  kept = np.flatnonzero(np.logical_and.reduce([epoch.readable for epoch in first]))
  labels_n = np.asarray(source.labels)[kept]
  adapter = TipAdapter(
    mean_keys(epoch.features[kept] for epoch in first),
    labels_n,
    features_under(encoder, _classes(config, source.names), tip.text),
    encoder.clip.logit_scale,
    tip.alpha,
    config.tip.beta,
  )
  del first
  if tuned_for:
    adapter = tune(
      adapter,
      (unit(epoch.features[kept]).reshape(-1, adapter.keys.shape[1]) for epoch in epochs),
      np.repeat(labels_n, config.data.views),
      n_epochs=tuned_for,
      batch_size=config.batch_size,
      rate=config.optim.lr,
      seed=config.seed,
      validate=lambda tuned: _accuracy(tuned.scores, validation)["top1"],
    )
  return adapter.searched(
    validation.features,
    validation.labels,
    alphas=_grid(tip.alpha_max, config.tip.alpha_steps),
    betas=_grid(tip.beta_max, config.tip.beta_steps),
  )


def tip_settings(config: Settings) -> Published:
  """`config.tip`, and where it is 0 what was published for `data.dataset`, or else for ImageNet."""
  tip, dataset = config.tip, config.data.dataset
  stored = config.data.source in ("coop", "tfds")
  row = published(dataset) if stored else None
  if row is None:
    log.info("Tip-Adapter has no published settings for this data set: ImageNet's, for what is 0")
    row = published("imagenet1k")._replace(text=HAND_WRITTEN)
  asked = {
    "alpha": tip.alpha,
    "alpha_max": tip.alpha_max,
    "beta_max": tip.beta_max,
    "epochs": tip.epochs,
  }
  return row._replace(**{field: value for field, value in asked.items() if value})


def _grid(most: float, steps: int) -> np.ndarray:
  """From 0.1 in equal steps towards `most`, which is not reached: as the published search."""
  return 0.1 + (most - 0.1) / steps * np.arange(steps)


def _accuracy(scores: Callable[[np.ndarray], np.ndarray], split: SplitFeatures) -> Accuracy:
  return accuracy_of_scores(lambda part: scores(split.features[part]), split.labels)


def _classes(config: Settings, names: Sequence[str]) -> ClassList:
  """A split's classes with the texts that are written for their data set, if there are such."""
  template = config.eval.template
  if config.data.dataset in CLASS_LISTS:
    known = load_class_list(config.data.dataset)
    return ClassList(tuple(names), None, known.template, known.ensemble, known.source)
  return ClassList(tuple(names), None, template, (template,), config.data.source)


def _results(
  config: Settings, encoder: Encoder, learned: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
  """The layout of the main job's results."""
  start = time.monotonic()
  label = config.method if learned else "hand_written"
  scores: dict[str, dict[str, Accuracy]] = {}
  n_classes, skipped, unreadable = {}, [], {}
  for name in inputs.evaluation_splits(config.data):
    source = inputs.open_source(config.data, name, n_images=config.eval.images)
    split = split_features(
      encoder, source, threads=config.data.threads, max_corrupt=config.data.max_corrupt
    )
    if learned and split.names != learned["names"]:
      skipped.append(name)
      continue
    n_classes[name] = len(split.names)
    unreadable[name] = len(source) - len(split.labels)
    scores[name] = {}
    if learned:
      scores[name][label] = _accuracy(learned["classifier"].scores, split)
    classes = _classes(config, split.names)
    for prompt, text in _ZERO_SHOT.items():
      if not learned or prompt in ("hand_written", "class_name"):
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
    # Splits with classes that the classifier has no weights for.
    "not_evaluated": skipped,
    **({"found": learned["found"]} if learned else {}),
    "eval": scores,
    "eval_unreadable": unreadable,
    "top1": {split: of_split[label]["top1"] for split, of_split in scores.items()},
  }
