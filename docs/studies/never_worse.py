"""Is what `own` learns ever worse than the words that it chose?
docs/reproduce/better_than_words.md.

  python -m docs.studies.never_worse FOLDER            # by the weight of consistency, then defaults
  python -m docs.studies.never_worse FOLDER defaults   # `own`'s defaults alone, at full length

Three CLIPs, which differ in logit scale, and pictures for each:

- `world`: the embedded CLIP, scale 100; 16 pictures of each of 400 classes. Tested on
  the world's splits and the three example sets.
- `glyphs`: a CLIP trained on characters, kept at the scale of its training, 15; 4 to 40
  pictures of each of 400 characters. Tested on these, on characters that the prompt
  never saw, and on two renderings that no picture of its training has
  (`docs.studies.glyphs`). `glyphs, careful` has the openings of careful captions among
  the candidates, so that the words are hard to beat.
- `siglip`: a text tower as SigLIP's, scale 17 (`docs.studies.siglip_context`), on the
  pictures and sets of the world; candidates that fit its 20 positions.

Each table compares on the same images, with a 95% interval of the paired difference: of
prompts as good as the words, 2.5% have an interval below 0 by chance. An interrupted
study resumes with the same command. After a change of `own`, remove the defaults' runs,
`FOLDER/*/runs/defaults_*`. `FOLDER/never_worse.json` has all figures.

Shapes: n images of a set, N classes, E embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any
from unittest import mock

import numpy as np

from docs.generators import train_clip
from docs.generators.example_sets import write_example_sets
from docs.studies import better_than_words, glyphs, siglip_context
from pomp_jax.data.class_lists import ClassList
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.class_features import features_under
from pomp_jax.evaluate.metrics import paired_difference, ranks
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.evaluate.sets_to_evaluate import sets_to_evaluate
from pomp_jax.evaluate.split_features import SplitFeatures, split_features
from pomp_jax.files.paths import to_path
from pomp_jax.files.run_folder import RunFolder
from tests.support.clips import with_logit_scale
from tests.support.small_run import settings

SEEDS = (0, 1, 2)
WEIGHTS = (0, 1, 3, 8)  # consistency_squared
# Fields of the trainings by weight: 36 of them at full length would take hours.
SHORT = "negatives=sampled,k=128,epochs=3"
SIGLIP = "siglip"  # the name of the CLIP in configs
# No caption is longer than 18 tokens but for about one in a hundred.
GLYPH_RECIPE = train_clip.Recipe(
  steps=1200,
  clean_until=0.6,
  noisy_from=0.7,
  short_tokens=18,
  vocabulary=2600,
  spelled=8000,
)
GLYPH_SCALE = 15  # of the glyphs' CLIP at the end of its training
GLYPH_CLASSES, MOST_GLYPHS = 400, 40
CAREFUL = ";".join(("hand_written", "ensemble:imagenet_7", "{}.", *glyphs.CAREFUL))
VALIDATION = "validation"
_ROWS = 512  # images that are scored at a time


@dataclasses.dataclass(frozen=True)
class World:
  """A CLIP, pictures to train on, and sets to test on."""

  name: str
  clip: str
  pictures: pathlib.Path
  # Fields of an evaluation's config by what its sets are called in front of their
  # names.
  sets: Mapping[str, Mapping[str, str]]
  # Fields of all its trainings.
  fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
  short: str = SHORT  # fields of the trainings by weight


def prepared(folder: pathlib.Path) -> list[World]:
  """Writes pictures and trains the glyphs' CLIP, unless they are there; returns the
  worlds."""
  pictures = folder / "world" / "pictures"
  example_sets = folder / "world" / "sets" / "sets.toml"
  if not example_sets.exists():
    better_than_words.write_pictures(pictures)
    write_example_sets(example_sets.parent, n_classes=100, images_per_class=16)
  of_world = {
    "world/": {"evaluate.suite": "world"},
    "sets/": {"evaluate.sets_file": str(example_sets)},
  }
  worlds = [World("world", "world", pictures, of_world)]
  clip = folder / "glyphs" / "clip"
  if not (clip / "flax_model.msgpack").exists():
    pairs = train_clip.Pairs(glyphs.training_batch, glyphs.test_images)
    train_clip.train(GLYPH_RECIPE, clip, pairs=pairs)
  with_logit_scale(clip, GLYPH_SCALE)
  drawn = folder / "glyphs" / "pictures"
  sets_file = folder / "glyphs" / "sets" / "sets.toml"
  if not sets_file.exists():
    base = glyphs.names("base")
    known = [base[i * len(base) // GLYPH_CLASSES] for i in range(GLYPH_CLASSES)]
    glyphs.write_uneven_pictures(drawn, known, MOST_GLYPHS)
    glyphs.write_sets(sets_file.parent, known)
  of_glyphs = {"": {"evaluate.sets_file": str(sets_file)}}
  worlds.append(World("glyphs", str(clip), drawn, of_glyphs))
  careful = {"prompt__candidates": CAREFUL}
  worlds.append(World("glyphs, careful", str(clip), drawn, of_glyphs, careful))
  # The tower has 20 positions, too few for the longer sentences of the default
  # candidates.
  that_fit = {"prompt__candidates": ";".join(siglip_context.SENTENCES)}
  # A bidirectional text tower computes all of a class's positions, so few classes a
  # step.
  short = "negatives=sampled,k=64,epochs=2"
  worlds.append(World("siglip", SIGLIP, pictures, of_world, that_fit, short=short))
  return worlds


@contextlib.contextmanager
def named_siglip(folder: pathlib.Path) -> Iterator[None]:
  """Makes SIGLIP a name of `clip.model`, of a tokenizer that no file describes."""
  own = functools.cache(
    lambda: dataclasses.replace(siglip_context.train_text_tower(folder), name=SIGLIP)
  )
  with contextlib.ExitStack() as stack:
    for name in ("load_clip", "read_clip"):
      usual: Any = getattr(opening, name)

      def reader(source: str, *given: Any, usual: Any = usual, **more: Any) -> Any:
        return own() if source == SIGLIP else usual(source, *given, **more)

      stack.enter_context(mock.patch.object(opening, name, reader))
    yield


class TestSet:
  """Images of a set with their features, and which of them a prompt has right."""

  __test__ = False  # no test of pytest's

  def __init__(self, encoder: Encoder, classes: ClassList, split: SplitFeatures):
    """Takes the features of the images; those of the classes follow the prompt."""
    self._encoder, self._classes, self._split = encoder, classes, split
    self.labels = split.labels

  def right(self, prompt: str) -> np.ndarray:
    """Whether each image's class is the most similar under a name of
    `evaluate.prompts`."""
    named = read_prompts([prompt], "evaluate.prompts")[0]
    features_NxE = features_under(self._encoder, self._classes, named.prompt)
    images_nxE, found = self._split.features, []
    for start in range(0, len(images_nxE), _ROWS):
      scores_BxN = images_nxE[start : start + _ROWS] @ features_NxE.T
      found.append(
        np.asarray(ranks(scores_BxN, self.labels[start : start + _ROWS])) == 0
      )
    return np.concatenate(found)


def opened_sets(world: World, store: pathlib.Path) -> dict[str, TestSet]:
  """The validation images of a world's pictures, and its test sets."""
  config = settings(**{"clip.model": world.clip})
  encoder = opening.open_encoder(config.clip)
  own = {
    "data.source": "folder",
    "data.root": str(world.pictures),
    "data.upright": True,
  }
  source = opening.open_source(settings(**own).data, "validation")
  classes = opening.class_list(config.data, config.eval.template, source.names)
  opened = [(VALIDATION, source, classes)]
  for prefix, fields in world.sets.items():
    config = settings(job="evaluate", **{"eval.images": 4096}, **fields)
    for item in sets_to_evaluate(config.evaluate, config.data, config.eval):
      source, classes, _ = item.open()
      opened.append((prefix + item.name, source, classes))
  return {
    name: TestSet(
      encoder,
      classes,
      split_features(encoder, encoder.sized(source), store=to_path(store)),
    )
    for name, source, classes in opened
  }


def compared(
  tested: TestSet, prompt: str, words: str, known: dict[str, np.ndarray]
) -> Any:
  """Top-1 of a prompt, that of the words, and their paired difference; also as class
  means."""
  for name in (prompt, words):
    if name not in known:
      known[name] = tested.right(name)
  right_n, words_n = known[prompt], known[words]
  gained, lost = int(np.sum(right_n & ~words_n)), int(np.sum(words_n & ~right_n))
  labels_n = tested.labels
  images_N = np.maximum(np.bincount(labels_n), 1)
  has_images_N = np.bincount(labels_n) > 0
  macro = lambda one_n: float(
    np.mean((np.bincount(labels_n, one_n) / images_N)[has_images_N])
  )
  return {
    "images": len(labels_n),
    "top1": float(right_n.mean()),
    "words_top1": float(words_n.mean()),
    "difference": paired_difference(gained, lost, len(labels_n)),
    "macro_top1": macro(right_n),
    "words_macro_top1": macro(words_n),
    "macro_interval": _interval_of_macro(right_n, words_n, labels_n),
  }


def _interval_of_macro(
  right_n: np.ndarray, words_n: np.ndarray, labels_n: np.ndarray
) -> list:
  """95% interval of the difference of class means: of Gaussian errors of the
  classes' means."""
  each_n = right_n.astype(float) - words_n
  found = [each_n[labels_n == label] for label in np.unique(labels_n)]
  mean = np.mean([one.mean() for one in found])
  # The classes are given, so the error is that of the images within them. Of a class
  # with a single image it is the error of the average class.
  variances = [one.var(ddof=1) / len(one) if len(one) > 1 else np.nan for one in found]
  variances = np.where(np.isnan(variances), each_n.var(ddof=1), variances)
  reach = 1.96 * np.sqrt(variances.sum()) / len(found)
  return [float(mean - reach), float(mean + reach)]


def trained(
  folder: pathlib.Path, world: World, seed: int, weight: float | None
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Trains with `own` unless it is done; returns the run's folder and results."""
  kind = "defaults" if weight is None else f"consistency_{weight}"
  slug = world.name.replace(", ", "_")
  workdir = folder / slug / "runs" / f"{kind}_{seed}"
  argument = f"root={world.pictures},clip={world.clip},seed={seed}"
  argument += f",store={folder / slug / 'features'}"
  if weight is not None:
    argument += f",{world.short},consistency={weight}"
  return workdir, better_than_words.run(f"own:{argument}", workdir, **world.fields)


def last(workdir: pathlib.Path) -> str:
  """The prompt at the last step, whichever is the run's result."""
  other = RunFolder(workdir).other_prompts["last"]
  return str(other if other.exists() else RunFolder(workdir).prompt)


def mixture(prompt: str, words: str) -> str:
  """The mean of class vectors of a prompt and of the words."""
  return f"0.5*{prompt} + 0.5*{words}"


def by_weight(folder: pathlib.Path, world: World) -> list[dict[str, Any]]:
  """Trains with each weight of consistency and seed; compares the trained prompts with
  the words.

  A row is a set, a weight, a seed, and a prompt: `trained`, or `mixture` of it with the
  words.
  """
  runs = {}
  for weight in WEIGHTS:
    for seed in SEEDS:
      runs[weight, seed] = trained(folder, world, seed, weight)
  rows = []
  for name, tested in opened_sets(world, folder / "features").items():
    known: dict[str, np.ndarray] = {}
    for (weight, seed), (workdir, results) in runs.items():
      words, prompt = results["words"]["best"], last(workdir)
      for kind, one in {"trained": prompt, "mixture": mixture(prompt, words)}.items():
        row = {
          "world": world.name,
          "set": name,
          "weight": weight,
          "seed": seed,
          "prompt": kind,
        }
        rows.append(row | {"words": words} | compared(tested, one, words, known))
  return rows


def of_defaults(folder: pathlib.Path, world: World) -> list[dict[str, Any]]:
  """Trains with `own`'s defaults, and compares what the run's folder stands for with
  the words."""
  runs = {seed: trained(folder, world, seed, None) for seed in SEEDS}
  for seed, (_, results) in runs.items():
    chosen = results["words"]
    print(
      f"{world.name}, seed {seed}: {chosen['best']!r} were the words, {chosen['saved']!r} is left"
    )
  rows = []
  for name, tested in opened_sets(world, folder / "features").items():
    known: dict[str, np.ndarray] = {}
    for seed, (workdir, results) in runs.items():
      words, saved = results["words"]["best"], results["words"]["saved"]
      row = {
        "world": world.name,
        "set": name,
        "seed": seed,
        "words": words,
        "saved": saved,
      }
      rows.append(row | compared(tested, str(workdir), words, known))
  return rows


def _cell(row: Mapping[str, Any]) -> str:
  low, high = (100 * end for end in row["difference"]["interval"])
  mark = "**" if high < 0 or low > 0 else ""
  return (
    f"{100 * row['difference']['top1']:+.1f} ({mark}{low:+.1f} to {high:+.1f}{mark})"
  )


def print_tables(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
  """Prints a line for each combination of the fields in `by`, with a column a seed."""
  columns = [
    *by,
    "images",
    "words",
    "prompt",
    *(f"less words, seed {seed}" for seed in SEEDS),
  ]
  print("| " + " | ".join(columns) + " |")
  print("| --- " * len(columns) + "|")
  groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[field] for field in by), []).append(row)
  for key, group in groups.items():
    of_seed = {row["seed"]: _cell(row) for row in group}
    means = [
      100 * np.mean([row[name] for row in group]) for name in ("words_top1", "top1")
    ]
    cells = [
      *map(str, key),
      f"{group[0]['images']:,}",
      *(f"{mean:.1f}" for mean in means),
    ]
    cells += [of_seed.get(seed, "") for seed in SEEDS]
    print("| " + " | ".join(cells) + " |")


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
  """Says how many intervals lie above 0, and which lie below."""
  below = [row for row in rows if row["difference"]["interval"][1] < 0]
  above = sum(row["difference"]["interval"][0] > 0 for row in rows)
  line = f"of {len(rows)} intervals {above} are above 0"
  if not below:
    return f"{line}, NONE IS BELOW 0"
  names = [
    f"{row['world']} {row['set']}, seed {row['seed']}: {_cell(row)}" for row in below
  ]
  return f"{line}, {len(below)} BELOW 0: {'; '.join(names)}"


def print_summary(rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints, for each world, prompt and weight, what test sets and validation images
  say.

  Of these the difference over images and that of the class means, with intervals, for
  each seed.
  """
  columns = (
    "world",
    "prompt",
    "weight",
    "below 0 / above / of",
    "mean gain",
    "validation",
  )
  print("| " + " | ".join(columns) + " |")
  print("| --- " * len(columns) + "|")
  for world in dict.fromkeys(row["world"] for row in rows):
    for kind in ("trained", "mixture"):
      for weight in WEIGHTS:
        own = [
          r
          for r in rows
          if (r["world"], r["prompt"], r["weight"]) == (world, kind, weight)
        ]
        test = [row for row in own if row["set"] != VALIDATION]
        below = sum(row["difference"]["interval"][1] < 0 for row in test)
        above = sum(row["difference"]["interval"][0] > 0 for row in test)
        gain = 100 * np.mean([row["difference"]["top1"] for row in test])
        validation = ", ".join(
          f"{_cell(row)} / {100 * (row['macro_top1'] - row['words_macro_top1']):+.1f}"
          f" ({100 * row['macro_interval'][0]:+.1f} to {100 * row['macro_interval'][1]:+.1f})"
          for row in own
          if row["set"] == VALIDATION
        )
        counts = f"{below} / {above} / {len(test)}"
        print(
          f"| {world} | {kind} | {weight} | {counts} | {gain:+.2f} | {validation} |"
        )


def main(folder: pathlib.Path, part: str = "") -> None:
  """Runs the study in `folder` and prints its tables."""
  worlds, found = prepared(folder), {}
  with named_siglip(folder / "siglip"):
    if part != "defaults":
      found["by_weight"] = [row for world in worlds for row in by_weight(folder, world)]
      print_tables(found["by_weight"], ("world", "set", "prompt", "weight"))
      print_summary(found["by_weight"])
    found["defaults"] = [row for world in worlds for row in of_defaults(folder, world)]
  print_tables(found["defaults"], ("world", "set", "words"))
  test = [row for row in found["defaults"] if row["set"] != VALIDATION]
  print(f"own's defaults less the words that it chose: {verdict(test)}")
  (folder / "never_worse.json").write_text(
    json.dumps(found, indent=1), encoding="utf-8"
  )


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
