"""How sure answers are on the example sets: the figures of docs.studies.certainty, of
learned prompts beside sentences. Tables of docs/how-to/certainty.md.

python -m docs.studies.certainty_sets --runs=runs/demo_seeds --workdir=runs/certainty_sets

RUNS is the folder of `pomp --config=demo_seeds`. The study draws the pictures of the
three sets itself (docs.generators.example_sets). The prompts are `a photo of a {}.`, the
sentence that is best on the world's validation images, or `--sentence`, and the runs'.

Each random half of a set's pictures does what `calibrate` does with its validation
images: one half of it fixes the temperature, the other the floor and the sets. The other
half of the pictures is measured. Against unknown classes half of a set's names is taken
off the list: in `mixed` the novel ones, in the others every second.

Shapes: B images, N classes, E embedding.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from docs.generators.captions import REGISTERS
from docs.studies import certainty, trees
from pomp_jax.clip.load import load_clip
from pomp_jax.data.class_lists import load_templates
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate.metrics import wilson_interval
from pomp_jax.evaluate.ranking import topk_accuracy
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.rooms.certainty import unknown
from pomp_jax.rooms.certainty.calibrate import halves
from pomp_jax.rooms.certainty.outputs import Outputs, is_right, outputs, set_sizes
from pomp_jax.rooms.certainty.temperature import calibration_figures, fit_temperature
from pomp_jax.rooms.certainty.trees import load_class_tree
from pomp_jax.world import source

# Of the trees' cells, which begin with top-1 and the bits of a name.
GUARANTEE = 0.9
CELL = 2 + trees.GUARANTEES.index(GUARANTEE)
PROMISES = {"floor": "refused", "pooled": "pooled sets", "raps": "RAPS"}


class Half(NamedTuple):
  """What one random half of a set's pictures says of the other."""

  temperature: float
  before: float  # ECE
  after: float
  by_chance: float  # ECE of answers that are right as often as they say
  promises: certainty.OtherHalf
  set_size: float  # names in a pooled set


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the tables, and writes every figure."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--sentence", default="")
  options = parser.parse_args(argv)
  encoder = Encoder(load_clip("world"))
  sentence = options.sentence or best_sentence(encoder)
  sentences = dict.fromkeys([certainty.WORDS, sentence])
  prompts = certainty.prompts_of(options.runs, list(sentences))
  results: dict[str, Any] = {}
  for set_name in trees.SETS:
    folder = options.workdir / set_name
    folder.mkdir(parents=True, exist_ok=True)
    pictures = trees.pictures_of(encoder, set_name)
    results[set_name] = {
      label: of_set(encoder, set_name, pictures, prompt, folder)
      for label, prompt in prompts.items()
    }
  text = json.dumps(results, indent=1)
  (options.workdir / "certainty_sets.json").write_text(text)
  show(results)


def best_sentence(encoder: Encoder) -> str:
  """The sentence with the best top-1 on the world's validation images: of those that
  its CLIP's captions open with, CLIP's seven, and the bare name."""
  images = source("validation", n_images=certainty.IMAGES)
  split = split_features(encoder, images)
  captions = [text for row in REGISTERS.values() for text in row.templates]
  candidates = dict.fromkeys([*captions, *load_templates("imagenet_7"), "{}."])
  top1 = {}
  for sentence in candidates:
    rows_NxE = encoder.class_features(split.names, sentence)
    accuracy = topk_accuracy(split.features, rows_NxE, split.labels)
    top1[sentence] = accuracy["top1"]
  order = sorted(top1, key=lambda sentence: -top1[sentence])
  best = [f"{sentence!r} {100 * top1[sentence]:.1f}" for sentence in order[:5]]
  print(
    f"Top-1 (%) of {len(split.labels):,} validation images over"
    f" {len(split.names):,} classes, the best of {len(order)} sentences:"
    f" {', '.join(best)}; {certainty.WORDS!r} {100 * top1[certainty.WORDS]:.1f}.",
    flush=True,
  )
  return order[0]


def of_set(
  encoder: Encoder,
  set_name: str,
  pictures: trees.Pictures,
  prompt: Any,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """All figures of a prompt on a set.

  Args:
    encoder: the CLIP.
    set_name: name of the set.
    pictures: its pictures.
    prompt: learned prompt, or sentence.
    folder: folder that gets the tree's file.
  """
  scale = encoder.clip.logit_scale
  n_images = len(pictures.labels_B)
  split = SplitFeatures(
    names=pictures.names,
    labels=pictures.labels_B,
    features=pictures.features_BxE,
    indices=np.arange(n_images),
  )
  rows_NxE = encoder.class_features(split.names, prompt)
  plain = outputs(split.features, rows_NxE, split.labels, scale)
  top1 = float(np.mean(is_right(plain, split.labels)))
  measured = [
    of_half(split, rows_NxE, plain, scale, seed) for seed in range(certainty.SPLITS)
  ]
  file = trees.write_ranks(folder, pictures)
  tree = load_class_tree(str(file), pictures.names, str(file))
  cells = trees.measured(scale, pictures, rows_NxE, tree)
  return {
    "images": n_images,
    "classes": len(split.names),
    "top1": top1,
    "top1_interval": wilson_interval(top1, n_images),
    "temperature": spread([half.temperature for half in measured]),
    "ece_before": spread([half.before for half in measured]),
    "ece_after": spread([half.after for half in measured]),
    "ece_by_chance": spread([half.by_chance for half in measured]),
    "set_size": spread([half.set_size for half in measured]),
    "promises": certainty.summaries(
      [half.promises for half in measured], n_images - n_images // 2
    ),
    "unknown": against_others(set_name, split, rows_NxE, scale),
    "rows": certainty.fewer_bits(split, rows_NxE),
    "depth": cells[CELL],
  }


def of_half(
  split: SplitFeatures, rows_NxE: np.ndarray, plain: Outputs, scale: float, seed: int
) -> Half:
  """Calibrates on a random half, and measures the other.

  Args:
    split: pictures of a set.
    rows_NxE: unit features of its classes.
    plain: outputs without a temperature.
    scale: the CLIP's factor on cosines.
    seed: number of the half.
  """
  first, second = halves(len(split.labels), seed)
  of_temperature, of_promises = (first[part] for part in halves(len(first), seed))
  temperature = fit_temperature(
    split.features[of_temperature], rows_NxE, split.labels[of_temperature], scale
  )
  factor = scale / temperature
  calibrated = outputs(split.features, rows_NxE, split.labels, factor)
  confidence_b = calibrated.confidence[second]
  right_b = is_right(calibrated, split.labels)[second]
  drawn_b = np.random.default_rng(seed).random(len(second)) < confidence_b
  promised = certainty.of_other_half(calibrated, split.labels, of_promises, second)
  least_N = np.full(len(rows_NxE), 1 - promised.sets["pooled"].threshold)
  sizes_b = set_sizes(split.features[second], rows_NxE, factor, least_N)
  return Half(
    temperature=temperature,
    before=calibration_figures(plain.confidence[second], right_b)["ece"],
    after=calibration_figures(confidence_b, right_b)["ece"],
    by_chance=calibration_figures(confidence_b, drawn_b)["ece"],
    promises=promised,
    set_size=float(np.mean(sizes_b)),
  )


def against_others(
  set_name: str, split: SplitFeatures, rows_NxE: np.ndarray, scale: float
) -> dict[str, Any]:
  """AUROC and FPR at 95% of each score, of pictures whose names are on a list of half
  of the classes against the others, over random halves of the former."""
  n_classes = len(split.names)
  is_listed_N = np.arange(n_classes) % 2 == 0
  if set_name == "mixed":
    is_listed_N = np.arange(n_classes) < trees.SETS["mixed"][0].n_classes
  known = np.flatnonzero(is_listed_N[split.labels])
  novel_BxE = split.features[~is_listed_N[split.labels]]
  labels_B = (np.cumsum(is_listed_N) - 1)[split.labels[known]]
  features_BxE = split.features[known]
  listed_NxE = rows_NxE[is_listed_N]
  of_halves_of_known = []
  for seed in range(certainty.SPLITS):
    first, second = halves(len(known), seed)
    temperature = fit_temperature(
      features_BxE[first], listed_NxE, labels_B[first], scale
    )
    tested = SplitFeatures(
      names=[],
      labels=labels_B[second],
      features=features_BxE[second],
      indices=np.arange(len(second)),
    )
    of_known = certainty.known_outputs(tested, listed_NxE, scale, temperature)
    figures = certainty.against_novel(
      of_known, novel_BxE, listed_NxE, scale, temperature
    )
    of_halves_of_known.append(figures)
  scores = {
    name: {
      figure: spread([figures[name][figure] for figures in of_halves_of_known])
      for figure in ("auroc", "fpr95")
    }
    for name in unknown.LABELS
  }
  return {
    "names": len(listed_NxE),
    "known_images": len(known) - len(known) // 2,
    "unknown_images": len(novel_BxE),
    "scores": scores,
  }


def spread(values: Sequence[float]) -> dict[str, float]:
  """Mean and ends over the halves."""
  return {
    "mean": float(np.mean(values)),
    "least": float(min(values)),
    "most": float(max(values)),
  }


def show(results: dict[str, Any]) -> None:
  """Prints the tables: a row for each set and sentence, one for the learned prompts."""
  tables = {
    "Calibration": (calibration_cells, ["top-1", "T", "ECE", "chance"]),
    "Promises": (promise_cells, [*PROMISES.values(), "names in a pooled set"]),
    "Unknown": (unknown_cells, list(unknown.LABELS.values())),
    "Rows, depth": (row_cells, ["float16", "int8", "depth: sums; DARTS"]),
  }
  for title, (cells_of, columns) in tables.items():
    print(f"\n{title}\n\n| set | prompt | {' | '.join(columns)} |")
    print("| --- " * (2 + len(columns)) + "|")
    for set_name, of_prompts in results.items():
      for label, of_row in grouped(of_prompts).items():
        by_prompt = [cells_of(figures) for figures in of_row]
        cells = [", ".join(texts) for texts in zip(*by_prompt, strict=True)]
        print(f"| {set_name} | {label} | {' | '.join(cells)} |")
  for set_name, of_prompts in results.items():
    figures = next(iter(of_prompts.values()))
    others = figures["unknown"]
    print(
      f"\n{set_name}: {figures['images']} pictures, {figures['classes']} classes;"
      f" unknown: {others['names']} names, {others['known_images']} and"
      f" {others['unknown_images']} pictures"
    )


def grouped(of_prompts: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """Figures by row of a table: each sentence alone, the learned prompts together."""
  groups: dict[str, list[dict[str, Any]]] = {}
  for label, figures in of_prompts.items():
    row = "learned" if label.startswith("seed_") else f"`{label}`"
    groups.setdefault(row, []).append(figures)
  return groups


def calibration_cells(figures: dict[str, Any]) -> list[str]:
  """Top-1 with its interval, temperature, ECE before and after, and of chance."""
  low, high = figures["top1_interval"]
  before, after = (
    of_halves(figures[f"ece_{when}"], 100) for when in ("before", "after")
  )
  return [
    f"{100 * figures['top1']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
    f"{figures['temperature']['mean']:.2f}",
    f"{before} > {after}",
    f"{100 * figures['ece_by_chance']['mean']:.1f}",
  ]


def promise_cells(figures: dict[str, Any]) -> list[str]:
  """Error and coverage over the halves, intervals that hold them, and sets' sizes."""
  cells = []
  for kind in PROMISES:
    promise = figures["promises"][kind]
    cells.append(f"{of_halves(promise, 100)}, {promise['intervals_that_hold_it']}")
  cells.append(f"{figures['set_size']['mean']:.2f}")
  return cells


def unknown_cells(figures: dict[str, Any]) -> list[str]:
  """AUROC and FPR at 95% of each score."""
  cells = []
  for score in figures["unknown"]["scores"].values():
    auroc = score["auroc"]
    ends = f"{auroc['least']:.2f} to {auroc['most']:.2f}"
    fpr95 = 100 * score["fpr95"]["mean"]
    cells.append(f"{auroc['mean']:.2f} [{ends}] ({fpr95:.0f})")
  return cells


def row_cells(figures: dict[str, Any]) -> list[str]:
  """Agreement with float32 and its interval; accuracy and bits in the tree."""
  cells = []
  for kind in ("float16", "int8"):
    share = figures["rows"][kind]["agreement"]
    low, high = wilson_interval(share, figures["images"])
    cells.append(f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})")
  cells.append(figures["depth"])
  return cells


def of_halves(figure: dict[str, float], factor: float) -> str:
  """Mean and range over the halves."""
  mean, least, most = (factor * figure[key] for key in ("mean", "least", "most"))
  return f"{mean:.1f} ({least:.1f} to {most:.1f})"


if __name__ == "__main__":
  main()
