"""How sure answers are on the embedded world: calibration, promises, unknown classes,
depth and rows of fewer bits, of learned prompts beside a sentence.

python -m docs.studies.certainty --runs=runs/demo_seeds --output=certainty.json

RUNS is the folder of `pomp --config=demo_seeds`; `--sentence`, repeatedly, adds others
than `a photo of a {}.`. Prints the figures of docs/how-to/certainty.md.

Shapes: B images, N classes, E embedding.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from pomp_jax.clip.load import load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.classifier import open_prompt
from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.calibration import SETS, Sets
from pomp_jax.rooms.certainty import depth, heads, promises, unknown
from pomp_jax.rooms.certainty.calibrate import halves
from pomp_jax.rooms.certainty.outputs import Outputs, is_right, outputs
from pomp_jax.rooms.certainty.temperature import calibration_figures, fit_temperature
from pomp_jax.rooms.certainty.trees import ClassTree, of_nodes, tree_of
from pomp_jax.world import source
from pomp_jax.world.names import COLOURS, SHAPES, TEXTURES, class_attributes

WORDS = "a photo of a {}."
IMAGES = 4096
SPLITS = 50
ERROR, COVERAGE = 0.05, 0.9
# Known classes of the small list, their images, and names beside them as negatives.
FEW, OF_EACH, NEGATIVES = 100, 80, 5000
LEASTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0)


class Known(NamedTuple):
  """Images of known classes that no calibration has seen, and their outputs."""

  labels: np.ndarray
  plain: Outputs
  calibrated: Outputs


def main(argv: Sequence[str] | None = None) -> None:
  """Measures each prompt, prints a line for each figure and writes them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=pathlib.Path, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--sentence", action="append", default=[])
  options = parser.parse_args(argv)
  encoder = Encoder(load_clip("world"))
  splits = {
    name: split_features(encoder, source(name, n_images=IMAGES))
    for name in ("validation", "base", "novel", "shifted")
  }
  few = split_features(encoder, source("base", n_classes=FEW, images_per_class=OF_EACH))
  prompts = prompts_of(options.runs, [WORDS, *options.sentence])
  results = {}
  for label, prompt in prompts.items():
    rows = {
      name: encoder.class_features(split.names, prompt)
      for name, split in splits.items()
    }
    found = measured(encoder, splits, rows)
    found["few"] = of_few(encoder, few, splits, prompt)
    results[label] = found
    print(label, json.dumps(found), flush=True)
    options.output.write_text(json.dumps(results, indent=1))


def prompts_of(runs: pathlib.Path, sentences: Sequence[str]) -> dict[str, Any]:
  """Sentences, and the learned prompts of a run with several seeds."""
  prompts: dict[str, Any] = {sentence: sentence for sentence in sentences}
  for folder in sorted(runs.glob("seed_*")):
    prompts[folder.name] = open_prompt(str(folder))
  return prompts


def measured(
  encoder: Encoder, splits: dict[str, SplitFeatures], rows: dict[str, np.ndarray]
) -> dict[str, Any]:
  """All figures of a prompt on the whole class list."""
  scale = encoder.clip.logit_scale
  validation = splits["validation"]
  first, second = halves(len(validation.labels), 0)
  temperature = fit_temperature(
    validation.features[first], rows["validation"], validation.labels[first], scale
  )
  found: dict[str, Any] = {"temperature": temperature, "ece": {}}
  for name in ("base", "novel", "shifted"):
    split = splits[name]
    arrays = (split.features, rows[name], split.labels)
    of_split = {}
    for kind, factor in (("before", scale), ("after", scale / temperature)):
      one = outputs(*arrays, factor)
      right_B = is_right(one, split.labels)
      figures = calibration_figures(one.confidence, right_B)
      of_split[kind] = {key: figures[key] for key in ("ece", "mean_confidence", "top1")}
    found["ece"][name] = of_split
  pool = pooled(validation, second, splits["base"])
  known = known_outputs(pool, rows["base"], scale, temperature)
  found["promises"] = over_splits(known)
  found["unknown"] = against_novel(
    known, splits["novel"].features, rows["base"], scale, temperature
  )
  base = splits["base"]
  found["depth"] = depths(base, rows["base"], scale, temperature)
  found["rows"] = fewer_bits(base, rows["base"])
  return found


def pooled(
  validation: SplitFeatures, kept: np.ndarray, base: SplitFeatures
) -> SplitFeatures:
  """The second half of the validation images, and those of `base`: drawn alike."""
  assert validation.names == base.names
  return SplitFeatures(
    names=base.names,
    labels=np.concatenate([validation.labels[kept], base.labels]),
    features=np.concatenate([validation.features[kept], base.features]),
    indices=np.arange(len(kept) + len(base.labels)),
  )


def known_outputs(
  pool: SplitFeatures, rows_NxE: np.ndarray, scale: float, temperature: float
) -> Known:
  """Outputs without and with the temperature."""
  arrays = (pool.features, rows_NxE, pool.labels)
  return Known(
    pool.labels, outputs(*arrays, scale), outputs(*arrays, scale / temperature)
  )


class OtherHalf(NamedTuple):
  """What becomes of the promises on images that have not fixed them."""

  refused: float  # share of right answers
  n_right: int
  covered: dict[str, float]  # share of images whose set holds the name, by kind
  sets: dict[str, Sets]  # their thresholds


def of_other_half(
  one: Outputs, labels_B: np.ndarray, first: np.ndarray, second: np.ndarray
) -> OtherHalf:
  """Fixes floor and sets on some images, and measures them on others.

  Args:
    one: outputs for all images, with a temperature.
    labels_B: their classes.
    first: images that fix the promises.
    second: images on which these are measured.
  """
  right_B = is_right(one, labels_B)
  floor = promises.floor_of(one.confidence[first][right_B[first]], ERROR)
  assert floor is not None
  tested = one.confidence[second][right_B[second]]
  part = lambda rows: [
    of[rows] for of in (one.probability, one.mass_above, one.rank, labels_B)
  ]
  covered = {}
  thresholds = {}
  for kind in SETS:
    sets = promises.sets_of(kind, COVERAGE, *part(first))
    assert sets is not None
    inside = promises.covered(sets, *part(second))
    covered[kind] = float(np.mean(inside))
    thresholds[kind] = sets
  refused = float(np.mean(tested < floor))
  return OtherHalf(refused, len(tested), covered, thresholds)


def over_splits(known: Known) -> dict[str, Any]:
  """Error of the floor and coverage of sets on the other half, over random halves."""
  n_images = len(known.labels)
  found = [
    of_other_half(known.calibrated, known.labels, *halves(n_images, seed))
    for seed in range(SPLITS)
  ]
  return summaries(found, n_images - n_images // 2)


def summaries(found: Sequence[OtherHalf], n_tested: int) -> dict[str, Any]:
  """Each promise over the splits, which have n_tested images each."""
  n_right = int(np.mean([half.n_right for half in found]))
  floor = summary([half.refused for half in found], ERROR, n_right)
  sets = {
    kind: summary([half.covered[kind] for half in found], COVERAGE, n_tested)
    for kind in SETS
  }
  return {"floor": floor, **sets}


def summary(shares: list[float], promise: float, n_images: int) -> dict[str, Any]:
  """Mean and range over the splits, and how many binomial intervals hold the
  promise."""
  ends = [wilson_interval(share, n_images) for share in shares]
  return {
    "promise": promise,
    "mean": float(np.mean(shares)),
    "least": min(shares),
    "most": max(shares),
    "images": n_images,
    "interval_of_first": ends[0],
    "intervals_that_hold_it": sum(low <= promise <= high for low, high in ends),
    "splits": len(shares),
  }


def against_novel(
  known: Known,
  novel_BxE: np.ndarray,
  rows_NxE: np.ndarray,
  scale: float,
  temperature: float,
) -> dict[str, Any]:
  """AUROC and FPR at 95% against images of novel classes."""
  unused = np.zeros(len(novel_BxE), np.int32)
  arrays = (novel_BxE, rows_NxE, unused)
  scores = unknown.scores_of(
    outputs(*arrays, scale), outputs(*arrays, scale / temperature)
  )
  return unknown.detection_figures(
    unknown.scores_of(known.plain, known.calibrated), scores
  )


def world_tree() -> ClassTree:
  """Shape, then texture, then colour, then the name, of the base classes."""
  attributes = class_attributes("base").tolist()
  parents: dict[str, list[str]] = {"thing": []}
  nodes = []
  for label, (colour, texture, shape, _) in enumerate(attributes):
    path = [SHAPES[shape], TEXTURES[texture], COLOURS[colour], f"class {label}"]
    above = "thing"
    for depth_of in range(1, 5):
      node = " / ".join(path[:depth_of])
      parents.setdefault(node, [above])
      above = node
    nodes.append(above)
  tree = tree_of(parents, "the world")
  return of_nodes(tree, tree.nodes(nodes))


def depths(
  base: SplitFeatures, rows_NxE: np.ndarray, scale: float, temperature: float
) -> dict[str, Any]:
  """Curves of accuracy against bits, without and with the temperature."""
  tree = world_tree()
  rows = heads.rows_of(rows_NxE, "float32")
  found = {}
  for kind, factor in (("before", scale), ("after", scale / temperature)):
    probability_BxN = heads.probabilities(base.features, rows, factor)
    curves = depth.curves(tree, probability_BxN, base.labels, LEASTS, WEIGHTS)
    found[kind] = {
      name: [point._asdict() for point in points] for name, points in curves.items()
    }
  return found


def fewer_bits(split: SplitFeatures, rows_NxE: np.ndarray) -> dict[str, Any]:
  """Agreement of the first answer with float32, and top-1, of each type of rows."""
  whole = heads.rows_of(rows_NxE, "float32")
  found = {}
  for kind in ("float32", "float16", "int8"):
    rows = heads.rows_of(rows_NxE, kind)
    labels_Bx1 = heads.top_k(split.features, rows, 1.0, 1).labels
    found[kind] = {
      "bytes": rows.n_bytes,
      "agreement": heads.agreement(split.features, whole, rows),
      "top1": float(np.mean(labels_Bx1[:, 0] == split.labels)),
    }
  return found


def of_few(
  encoder: Encoder, few: SplitFeatures, splits: dict[str, SplitFeatures], prompt: Any
) -> dict[str, Any]:
  """A hundred classes with many images each: classwise sets, unknown classes, and more
  names as negatives."""
  scale = encoder.clip.logit_scale
  rows_NxE = encoder.class_features(few.names, prompt)
  first, second = halves(len(few.labels), 0)
  temperature = fit_temperature(few.features[first], rows_NxE, few.labels[first], scale)
  rest = SplitFeatures(
    few.names, few.labels[second], few.features[second], np.arange(len(second))
  )
  known = known_outputs(rest, rows_NxE, scale, temperature)
  found: dict[str, Any] = {"temperature": temperature}
  right_B = is_right(known.calibrated, known.labels)
  for kind, one in (("before", known.plain), ("after", known.calibrated)):
    found[kind] = calibration_figures(one.confidence, right_B)["ece"]
  found["top1"] = float(np.mean(right_B))
  found["promises"] = over_splits(known)
  found["worst_class"] = worst_class(known)
  novel_BxE = splits["novel"].features
  found["unknown"] = against_novel(known, novel_BxE, rows_NxE, scale, temperature)
  found["negatives"] = with_negatives(
    encoder, rest.features, novel_BxE, few.names, splits["base"].names, prompt
  )
  return found


def worst_class(known: Known) -> dict[str, float]:
  """Coverage of the class that is covered least, over the splits together."""
  one = known.calibrated
  totals = {kind: np.zeros((2, FEW)) for kind in ("pooled", "classwise")}
  for seed in range(SPLITS):
    first, second = halves(len(known.labels), seed)
    part = lambda rows: [
      of[rows] for of in (one.probability, one.mass_above, one.rank, known.labels)
    ]
    for kind, counts in totals.items():
      sets = promises.sets_of(kind, COVERAGE, *part(first))
      assert sets is not None
      inside = promises.covered(sets, *part(second))
      counts[0] += np.bincount(known.labels[second], inside, FEW)
      counts[1] += np.bincount(known.labels[second], minlength=FEW)
  return {kind: float(np.min(sums / n)) for kind, (sums, n) in totals.items()}


def with_negatives(
  encoder: Encoder,
  known_BxE: np.ndarray,
  novel_BxE: np.ndarray,
  names: Sequence[str],
  others: Sequence[str],
  prompt: Any,
) -> dict[str, float]:
  """AUROC of the probability of all known names, beside random other names."""
  rng = np.random.default_rng(0)
  negatives = sorted(set(others) - set(names))
  chosen = rng.choice(len(negatives), NEGATIVES, replace=False)
  more = [negatives[i] for i in chosen]
  rows = heads.rows_of(encoder.class_features([*names, *more], prompt), "float32")
  scale = encoder.clip.logit_scale
  mass = [
    heads.probabilities(features, rows, scale)[:, : len(names)].sum(axis=1)
    for features in (known_BxE, novel_BxE)
  ]
  return {"auroc": unknown.auroc(*mass), "fpr95": unknown.fpr_at(*mass)}


if __name__ == "__main__":
  main()
