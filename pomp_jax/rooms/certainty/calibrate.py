"""A temperature, a floor and sets for a prompt's answers, from validation images.

The seed splits the images into two random halves. The first half fixes the temperature.
The second half, which the temperature has not seen, fixes the floor and the thresholds
of the sets. The run's folder gets `prompt.npz` with all three, `class_names.json`,
`results.json`, `results.md` and `report.html`. With several processes all compute, and
process 0 writes.

Shapes: B images, b and c images of the two halves, N classes, C classes of a split, E
embedding.
"""

from collections.abc import Sequence
import dataclasses
import logging
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

from pomp_jax import hosts
from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.fields import Data, Eval
from pomp_jax.data.class_lists import ClassList
from pomp_jax.data.source import FeatureSource
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import check_finite, wilson_interval
from pomp_jax.evaluate.named_prompts import (
  NamedPrompt,
  check_prompt,
  read_prompt,
  texts_of,
)
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.calibration import SETS, Calibration, Sets, classes_digest
from pomp_jax.files.prompt_file import Prompt, Sentences, save_prompt
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.report import plots
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.certainty import promises, unknown
from pomp_jax.rooms.certainty.fields import Calibrate, CalibrateConfig
from pomp_jax.rooms.certainty.outputs import (
  Outputs,
  adaptive_set_sizes,
  is_right,
  outputs,
  set_sizes,
)
from pomp_jax.rooms.certainty.temperature import calibration_figures, fit_temperature

log = logging.getLogger(__name__)

_FIELD = "calibrate.prompt"
_LEAST_IMAGES = 20  # fewest images in each half


class Head(NamedTuple):
  """Class vectors of a prompt, and the factors on their cosines with images."""

  rows: Float[np.ndarray, "N E"]  # unit features of the classes
  plain: float  # the CLIP's factor
  calibrated: float  # the CLIP's factor divided by the temperature


def check(config: CalibrateConfig, workdir: str) -> None:
  """Opens the prompt and every split; writes nothing."""
  data, settings = config.data, config.calibrate
  expected = "a source with validation images: a floor without them promises nothing"
  require(opening.has_validation(data), "data.source", data.source, expected)
  source = opening.open_source(data, "validation", n_images=config.eval.images)
  require(
    len(source) >= 2 * _LEAST_IMAGES,
    "eval.images",
    len(source),
    f"{2 * _LEAST_IMAGES} or more validation images",
  )
  require(len(source.names) > 1, "data.source", data.source, "two classes or more")
  clip_config = opening.clip_config(config.clip.model, config.clip.image_tower)
  opening.check_features(source, config.clip.model, clip_config)
  opened, label = _opened(settings.prompt)
  classes = [(name,) for name in source.names]
  check_prompt(NamedPrompt(label, opened), classes, clip_config, config.clip.model)
  splits = opening.evaluation_splits(data)
  wanted_images = {
    "test": "images of the validation's classes",
    "unknown": "images of classes other than the validation's",
  }
  for field, wanted in wanted_images.items():
    split = getattr(settings, field)
    if not split:
      continue
    accepted = f"one of {', '.join(splits)}, or nothing"
    require(split in splits, f"calibrate.{field}", split, accepted)
    images = opening.open_source(data, split, n_images=config.eval.images)
    is_known_C = np.isin(images.names, source.names)
    is_wanted_B = is_known_C[images.labels] == (field == "test")
    accepted = f"a split with {wanted}"
    require(is_wanted_B.any(), f"calibrate.{field}", split, accepted)


def run(config: CalibrateConfig, workdir: str) -> dict[str, Any]:
  """Fits and measures a calibration, and writes the files; returns the results.

  Raises:
    EvaluationError: features are not finite.
    TemperatureError: the validation images fix no temperature.
  """
  folder, settings = RunFolder(workdir), config.calibrate
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  opened, _ = _opened(settings.prompt)
  images = _images(encoder, config.data, config.eval, "validation")
  classes = opening.class_list(config.data, config.eval.template, images.names)
  prompt = as_prompt(opened, classes, encoder)
  rows_NxE = features_under(encoder, classes, prompt)
  check_finite(rows_NxE, "classes")
  calibration, results = calibrated(
    images,
    rows_NxE,
    encoder.clip.logit_scale,
    settings=settings,
    seed=config.seed,
  )
  calibration = dataclasses.replace(
    calibration, clip_model=encoder.clip.name, clip=encoder.clip_digest
  )
  plain = encoder.clip.logit_scale
  head = Head(rows_NxE, plain, plain / calibration.temperature)
  known = None
  if settings.test:
    test = _images(encoder, config.data, config.eval, settings.test)
    known = of_classes(test, images.names, known=True)
    results["test"] = {"split": settings.test} | promised(known, head, calibration)
  if settings.unknown:
    other = _images(encoder, config.data, config.eval, settings.unknown)
    strangers = of_classes(other, images.names, known=False)
    # Without a test split, compare the unknown images with the validation images.
    compared = images if known is None else known
    results["unknown"] = {"split": settings.unknown} | told_apart(
      compared, strangers, head, calibration
    )
  results = dict[str, Any](
    job=config.job,
    clip_model=encoder.clip.name,
    prompt=settings.prompt,
    classes=len(images.names),
    **results,
  )
  if not hosts.is_first():
    return results
  folder.create(config.to_dict())
  with writing(folder.path):
    save_prompt(folder.prompt, dataclasses.replace(prompt, calibration=calibration))
    folder.write_classes(images.names)
    plots.calibration_panels(folder.plots / "calibration.png", _panels(results))
  finish_run(folder, config.to_dict(), results)
  log.info(
    "temperature %.3g: ECE %.1f%% before, %.1f%% after; %s has it",
    calibration.temperature,
    100 * results["before"]["ece"],
    100 * results["after"]["ece"],
    folder.prompt,
  )
  return results


def calibrated(
  images: SplitFeatures,
  rows_NxE: Float[np.ndarray, "N E"],
  logit_scale: float,
  *,
  settings: Calibrate,
  seed: int,
) -> tuple[Calibration, dict[str, Any]]:
  """Fits a temperature on one half of the images, and floor and sets on the other half.

  Args:
    images: features and labels of the validation images.
    rows_NxE: unit features of the classes.
    logit_scale: the CLIP's factor on cosines.
    settings: stated error and coverage, and the kind of the sets.
    seed: random seed of the split into halves.

  Returns:
    The calibration, in which name and digest of the CLIP are still empty, and figures
    measured on the second half.
  """
  first, second = halves(len(images.labels), seed)
  temperature = fit_temperature(
    images.features[first], rows_NxE, images.labels[first], logit_scale
  )
  labels_B = images.labels[second]
  of_half = (images.features[second], rows_NxE, labels_B)
  before = outputs(*of_half, logit_scale)
  after = outputs(*of_half, logit_scale / temperature)
  right_B = is_right(after, labels_B)
  floor = promises.floor_of(after.confidence[right_B], settings.error)
  if floor is None:
    log.warning(
      "no floor: %d right answers, and an error of %g takes %d",
      right_B.sum(),
      settings.error,
      promises.least_right_answers(settings.error),
    )
  sets = _sets(settings.sets, settings.coverage, after, labels_B)
  calibration = Calibration(
    temperature=temperature,
    n_images=len(first),
    n_classes=len(rows_NxE),
    classes=classes_digest(images.names),
    clip_model="",
    clip="",
    floor=floor,
    error=None if floor is None else settings.error,
    n_right=int(right_B.sum()),
    sets=sets,
  )
  figures = {
    "temperature": temperature,
    "images_of_temperature": len(first),
    "images_of_promises": len(second),
    "before": calibration_figures(before.confidence, right_B),
    "after": calibration_figures(after.confidence, right_B),
    "floor": floor,
    "error": settings.error,
    "coverage": settings.coverage,
    "sets": None if sets is None else dataclasses.asdict(sets),
  }
  return calibration, figures


def halves(
  n_images: int, seed: int
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
  """Indices of two random halves of the images; each half is ascending."""
  order = np.random.default_rng(seed).permutation(n_images)
  middle = n_images // 2
  return np.sort(order[:middle]), np.sort(order[middle:])


def promised(
  images: SplitFeatures, head: Head, calibration: Calibration
) -> dict[str, Any]:
  """Measures calibration, floor and sets on images that the calibration has not seen.

  Args:
    images: images of known classes; labels count in the calibration's classes.
    head: class vectors and factors.
    calibration: temperature, floor and sets.
  """
  labels_B = images.labels
  of_images = (images.features, head.rows, labels_B)
  before = outputs(*of_images, head.plain)
  after = outputs(*of_images, head.calibrated)
  right_B = is_right(after, labels_B)
  figures: dict[str, Any] = {
    "before": calibration_figures(before.confidence, right_B),
    "after": calibration_figures(after.confidence, right_B),
  }
  if calibration.floor is not None:
    answered_B = after.confidence >= calibration.floor
    figures["floor"] = {
      "refused_right": _share(~answered_B[right_B]),
      "refused_wrong": _share(~answered_B[~right_B]),
      "top1_of_answered": _share(right_B[answered_B]),
    }
  sets = calibration.sets
  if sets is not None:
    of_right = (after.probability, after.mass_above, after.rank, labels_B)
    sizes_B = sizes_of(sets, images.features, head)
    figures["sets"] = {
      "kind": sets.kind,
      "covered": _share(promises.covered(sets, *of_right)),
      "mean_size": float(np.mean(sizes_B)),
      "median_size": float(np.median(sizes_B)),
      "empty": float(np.mean(sizes_B == 0)),
    }
  return figures


def told_apart(
  known: SplitFeatures,
  strangers: SplitFeatures,
  head: Head,
  calibration: Calibration,
) -> dict[str, Any]:
  """Measures how well scores separate unknown from known images: AUROC, FPR at 95%, and
  the share of unknown images that the floor refuses.

  Args:
    known: images of known classes.
    strangers: images of other classes; their labels are not read.
    head: class vectors and factors.
    calibration: temperature and floor.
  """
  scores = []
  for images in (known, strangers):
    # No score depends on the right class.
    unused_B = np.zeros(len(images.labels), np.int32)
    of_images = (images.features, head.rows, unused_B)
    plain = outputs(*of_images, head.plain)
    scores.append(unknown.scores_of(plain, outputs(*of_images, head.calibrated)))
  figures: dict[str, Any] = {
    "known_images": len(known.labels),
    "unknown_images": len(strangers.labels),
    "scores": unknown.detection_figures(*scores),
  }
  if calibration.floor is not None:
    figures["refused"] = _share(scores[1]["calibrated"] < calibration.floor)
  return figures


def sizes_of(
  sets: Sets, features_BxE: Float[np.ndarray, "B E"], head: Head
) -> Int[np.ndarray, " B"]:
  """Number of names in the set of each image.

  Args:
    sets: thresholds of the sets.
    features_BxE: unit features of the images.
    head: class vectors, and the factors on cosines.
  """
  if sets.kind == "raps":
    return adaptive_set_sizes(features_BxE, head.rows, head.calibrated, sets)
  least_N = promises.least_probabilities(sets, len(head.rows))
  return set_sizes(features_BxE, head.rows, head.calibrated, least_N)


def of_classes(
  images: SplitFeatures, names: Sequence[str], *, known: bool
) -> SplitFeatures:
  """Selects the images whose class is among the names, or all other images.

  Labels of the result count in `names`. The other images have label 0.

  Args:
    images: features and labels, with the names of these labels.
    names: names of the classifier.
    known: True for the images whose class is among the names, False for the others.
  """
  label_of = {name: label for label, name in enumerate(names)}
  label_C = np.array([label_of.get(name, -1) for name in images.names], np.int32)
  labels_B = label_C[images.labels]
  kept = np.flatnonzero((labels_B >= 0) == known)
  return SplitFeatures(
    names=tuple(names),
    labels=np.maximum(labels_B[kept], 0),
    features=images.features[kept],
    indices=images.indices[kept],
  )


def as_prompt(opened: Prompt | str, classes: ClassList, encoder: Encoder) -> Prompt:
  """Returns a learned prompt unchanged, and turns hand-written texts into a prompt
  that a file can hold.

  Args:
    opened: learned prompt, or the name of hand-written texts.
    classes: class list with the templates that `opened` may name.
    encoder: the CLIP that the texts are for.
  """
  if isinstance(opened, Prompt):
    return opened
  sentences = Sentences(tuple(texts_of(opened, classes)))
  context_0xD = np.zeros((0, encoder.clip.text_width), np.float32)
  return Prompt(context_0xD, encoder.clip.name, sentences=sentences)


def _opened(name: str) -> tuple[Prompt | str, str]:
  """Opens the prompt and returns it with its label; ConfigError if a prompt file can't
  hold the prompt."""
  named = read_prompt(name, _FIELD)
  is_outputs = isinstance(named.prompt, str) and named.prompt.startswith("outputs:")
  if is_outputs or not isinstance(named.prompt, Prompt | str):
    raise ConfigError(_FIELD, name, "a learned prompt, or texts with {}")
  return named.prompt, named.label


def _images(
  encoder: Encoder, data: Data, evaluation: Eval, split: str
) -> SplitFeatures:
  """Features of the images of a split."""
  source = opening.open_source(data, split, n_images=evaluation.images)
  if not isinstance(source, FeatureSource):
    source = encoder.sized(source)
  return split_features(
    encoder, source, threads=data.threads, max_corrupt=data.max_corrupt
  )


def _sets(
  kind: str, coverage: float, of_images: Outputs, labels_B: Int[np.ndarray, " B"]
) -> Sets | None:
  assert kind in SETS
  return promises.sets_of(
    kind,
    coverage,
    probability_B=of_images.probability,
    mass_above_B=of_images.mass_above,
    rank_B=of_images.rank,
    labels_B=labels_B,
  )


def _share(are: np.ndarray) -> dict[str, Any]:
  """Share of the images for which `are` is true, with its interval; None without
  images."""
  n_images = len(are)
  if not n_images:
    return {"share": None, "interval": None, "images": 0}
  share = float(np.mean(are))
  return {
    "share": share,
    "interval": wilson_interval(share, n_images),
    "images": n_images,
  }


def _panels(results: dict[str, Any]) -> dict[str, Any]:
  """Panels of the reliability plot: figures before and after the temperature, by
  split."""
  pick = lambda of: {"before": of["before"], "after": of["after"]}
  panels = {"validation": pick(results)}
  if "test" in results:
    panels[results["test"]["split"]] = pick(results["test"])
  return panels
