"""Prompts over data sets, a suite's or a user's own: accuracy, calibration, nearness of
errors.

docs/how-to/evaluation.md lists the files that it leaves. A restart evaluates the sets
that are missing or whose prompts, images or CLIP have changed. Processes work on each
set together; the first writes.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hooks, hosts
from pomp_jax.config.errors import require
from pomp_jax.config.fields import Clip, Data, Eval, Evaluate
from pomp_jax.config.jobs import EvaluateConfig
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.source import FeatureSource, LabelledSet, StoredImages
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import named_prompts, opening
from pomp_jax.evaluate.evaluation_sets import (
  EvaluationSet,
  evaluation_sets,
  file_name,
  open_each,
  open_everywhere,
)
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.evaluate.prompt_features import classifier_under
from pomp_jax.evaluate.ranking import tally
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report import evaluation_report as report
from pomp_jax.report import plots
from pomp_jax.report.labels import prompt_labels
from pomp_jax.report.run_report import finish_run

log = logging.getLogger(__name__)

# Version of a set's file; a part of its key.
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"
# What `results.json` holds of a set beside its prompts.
_OF_SET = ("seconds", "unreadable", "split", "listed_classes", "missing_classes")


def check(config: EvaluateConfig, workdir: str) -> None:
  """Opens every set and every prompt; writes nothing."""
  settings, field = config.evaluate, "evaluate.prompts"
  given = settings.prompts, field, config.clip, settings, config.data, config.eval
  check_prompts(*given, chosen=True)
  if hooks.MIXTURE_WEIGHTS:
    prompts = named_prompts.read_prompts(settings.prompts, field, chosen=True)
    hooks.MIXTURE_WEIGHTS.open()(prompts, config.clip, config.data, config.eval).check()


def check_prompts(
  names: Sequence[str],
  field: str,
  clip: Clip,
  settings: Evaluate,
  data: Data,
  evaluation: Eval,
  chosen: bool = False,
) -> None:
  """Checks that the prompts that a field names (see `read_prompts`) fit the sets to
  evaluate."""
  clip_config, tokenizer = opening.clip_config_and_tokenizer(
    clip.model, clip.image_tower
  )
  prompts = named_prompts.read_prompts(names, field, chosen)
  sets = evaluation_sets(settings, data, evaluation)
  opened, _ = open_each(sets, settings.skip_missing)
  if any(isinstance(labelled.source, StoredImages) for labelled in opened.values()):
    named_prompts.warn_of_turns(prompts, data.upright, f"data.upright={data.upright}")
  for name, (source, classes, _) in opened.items():
    opening.check_features(source, clip.model, clip_config)
    for named in prompts:
      pixels = isinstance(source, FeatureSource) and getattr(
        named.prompt, "needs_pixels", False
      )
      expected = (
        f"prompts of the text tower alone: the set {name} has features, and no images"
      )
      require(not pixels, field, named.label, expected)
      where = f"{named.label}, set {name}"
      single = [(own,) for own in classes.names]
      named_prompts.check_prompt(
        named._replace(label=where), single, clip_config, clip.model
      )
      named_prompts.check_lengths(
        named.prompt, classes, tokenizer, clip_config.text_config, where
      )


def run(config: EvaluateConfig, workdir: str) -> dict[str, Any]:
  """Evaluates the sets that are missing, and sums up: returns what `results.json`
  holds.

  Processes other than the first return an empty dict unless the run had finished
  before. EvaluationError if features are not finite, CorruptDataError if too many
  images can't be read.
  """
  folder, first, settings = RunFolder(workdir), hosts.is_first(), config.evaluate
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  prompts = named_prompts.read_prompts(
    settings.prompts, "evaluate.prompts", chosen=True
  )
  weights = None
  if hooks.MIXTURE_WEIGHTS:
    weights = hooks.MIXTURE_WEIGHTS.open()(
      prompts, config.clip, config.data, config.eval
    )
  sets = evaluation_sets(settings, config.data, config.eval)
  opened, missing = open_everywhere(sets, settings.skip_missing)
  sets = [item for item in sets if item.name in opened]
  keys = _keys(
    config.clip, encoder, opened, prompts, weights.key(encoder) if weights else ()
  )
  run = {
    "job": config.job,
    **(hooks.NAMED_SETS.open().facts(settings) if hooks.NAMED_SETS else {}),
    "clip_model": encoder.clip.name,
    "logit_scale": encoder.clip.logit_scale,
    "prompts": [{"label": named.label, "step": named.step} for named in prompts],
    "missing": missing,
  }
  tables = [
    (item.name, item.group, item.column, item.part, item.reader) for item in sets
  ]
  key = fingerprint([*keys.values(), json.dumps(run), repr((tables, settings.images))])
  sampled = settings.images > 0
  counts = {
    item.name: _count_classes(item, opened[item.name], sampled) for item in sets
  }
  pieces = Pieces(folder.sets, keys)
  # A damaged set is evaluated again, also of a finished run.
  todo = pieces.missing(keys)
  if not todo and (results := folder.finished(key=key)) is not None:
    return results
  if first:
    folder.create(config.to_dict())
    for name, count in counts.items():
      if count["missing_classes"]:
        log.warning(
          "missing: %s: %d of the %d classes in its list have no image; %d classes are told apart",
          *(
            name,
            count["missing_classes"],
            count["listed_classes"],
            len(opened[name].classes),
          ),
        )
  if len(todo) < len(keys):
    log.info("%d of %d sets were evaluated before", len(keys) - len(todo), len(keys))
  if weights:
    prompts, run["prompts"] = weights.choose(encoder)
  for name in steps_of(
    [name for name in opened if file_name(name) in todo], "evaluation", "sets"
  ):
    figures = _evaluate(
      encoder, opened[name], prompts, settings.batch_size, config.data
    )
    if first:
      _log_set(name, pieces.save(file_name(name), {"set": name, **figures}).facts)
  if not first:
    return {}
  done = {name: pieces.read(file_name(name)).facts | counts[name] for name in opened}
  results = {"key": key, **run, **_sums(sets, done, sampled)}
  if any(isinstance(labelled.source, StoredImages) for labelled in opened.values()):
    upright = config.data.upright
    if others := named_prompts.turned_otherwise(prompts, upright):
      results["turned_otherwise"] = {"upright": upright, "prompts": others}
  with writing(folder.path):
    if hooks.BY_CLASS:
      hooks.BY_CLASS.open().write(folder, done)
    _draw(folder.plots, results)
    if hooks.CLIP_BENCHMARK:
      hooks.CLIP_BENCHMARK.open()(folder.path, results)
  finish_run(folder, config.to_dict(), results)
  log.info("tables, plots and every figure are in %s", folder.path)
  return results


def _evaluate(
  encoder: Encoder,
  labelled: LabelledSet,
  prompts: Sequence[NamedPrompt],
  batch_size: int,
  data: Data,
) -> dict[str, Any]:
  """Computes every figure of a set under every prompt."""
  start, more = time.monotonic(), None
  source, classes, split = labelled
  if classes.synsets is not None and hooks.TREE_ERRORS:
    more = hooks.TREE_ERRORS.open()(classes.synsets)
  tallies = tally(
    encoder,
    source,
    {one.label: classifier_under(encoder, classes, one.prompt) for one in prompts},
    more=more,
    reference=prompts[0].label,
    batch_size=batch_size,
    threads=data.threads,
    max_corrupt=data.max_corrupt,
  )
  figures = {label: one.figures() | one.by_class() for label, one in tallies.items()}
  return {
    "seconds": round(time.monotonic() - start, 2),
    "unreadable": len(source) - next(iter(figures.values()))["images"],
    "split": split,
    "classes": classes.names,
    "reference": prompts[0].label,
    "prompts": figures,
  }


def _sums(
  items: Sequence[EvaluationSet], done: Mapping[str, Any], sampled: bool
) -> dict[str, Any]:
  """Figures of the sets by their groups, with published ones beside them, and set by
  set."""
  sets, found = {}, []
  # Groups with a set whose images are not those of the published figures.
  other = set()
  for item in items:
    of_set = done[item.name]
    prompts = {
      label: {k: v for k, v in figures.items() if k not in ("per_class", "confusions")}
      for label, figures in of_set["prompts"].items()
    }
    by_class = hooks.BY_CLASS.open().summary(of_set) if hooks.BY_CLASS else {}
    own = {key: of_set[key] for key in _OF_SET} | {
      "by_class": by_class,
      "prompts": prompts,
    }
    sets[item.name] = own
    found.append(
      report.SetFigures(item.group, item.column, item.part, prompts, own["split"])
    )
    of_test = (
      own["split"] in ("test", "validation") and not sampled and not own["unreadable"]
    )
    if not of_test or item.reader not in report.group_of(item.group).readers:
      other.add(item.group)
  accuracy = report.accuracy_by_group(found)
  intervals, differences = report.comparisons_by_group(found, accuracy)
  compared = hooks.PUBLISHED.open() if hooks.PUBLISHED else lambda *_: {}
  return {
    "accuracy": accuracy,
    "intervals": intervals,
    "differences": differences,
    "images": report.counts_by_group(found, "images"),
    "classes": report.counts_by_group(found, "classes"),
    "splits": {
      group: {one.column: one.split for one in found if one.group == group}
      for group in accuracy
    },
    "published": {
      group: {kind: compared(group, kind, rows) for kind, rows in kinds.items()}
      for group, kinds in accuracy.items()
      if group not in other
    },
    "sets": sets,
  }


def _draw(folder: Path, results: Mapping[str, Any]) -> None:
  """Plots the accuracies of each group of sets, and the calibration on each set."""
  for group, kinds in results["accuracy"].items():
    for kind, rows in kinds.items():
      others = results["published"].get(group, {}).get(kind, {})
      plots.accuracy_panels(
        folder / f"accuracy_{group}_{kind}.png",
        rows,
        prompt_labels(list(rows)),
        report.title_of(group, kind),
        results["images"][group][kind],
        results["classes"][group][kind],
        results["intervals"].get(group, {}).get(kind, {}),
        {name: method["figures"] for name, method in others.items()},
      )
  figures = {name: of_set["prompts"] for name, of_set in results["sets"].items()}
  plots.calibration_panels(folder / "calibration.png", figures)


def _keys(
  own: Clip,
  encoder: Encoder,
  opened: Mapping[str, LabelledSet],
  prompts: Sequence[NamedPrompt],
  more: Sequence[str],
) -> dict[str, str]:
  """By the file of each set: fingerprint of all that its figures depend on, but the
  pixels."""
  clip = encoder.clip
  settings = (_VERSION, own.text_tower, own.dtype, clip.settings)
  clip_key = fingerprint([*settings, *jax.tree.leaves(clip.params)])
  keys = {}
  for name, (source, classes, split) in opened.items():
    parts: list[Any] = [clip_key, name, split, np.asarray(source.labels)]
    parts += [json.dumps(classes.names), json.dumps(classes.synsets)]
    if isinstance(source, StoredImages):
      # Other images may have the same keys.
      parts += ["\n".join(source.keys), source.where(0) + ", upright" * source.upright]
    else:
      parts.append("")
    parts += [source.checksums] if isinstance(source, FeatureSource) else []
    for label, prompt, _ in prompts:
      parts += ["prompt", label, *named_prompts.describe(prompt, classes)]
    keys[file_name(name)] = fingerprint([*parts, *more])
  return keys


def _count_classes(
  item: EvaluationSet, labelled: LabelledSet, sampled: bool
) -> dict[str, Any]:
  """Counts the listed classes, and those without an image; None if the images are a
  sample."""
  listed = item.n_listed or len(labelled.classes)
  missing = listed - len(np.unique(labelled.source.labels)) if item.reader else None
  return {"listed_classes": listed, "missing_classes": None if sampled else missing}


def _log_set(name: str, of_set: Mapping[str, Any]) -> None:
  for label, figures in of_set["prompts"].items():
    log.info(
      "%s (%s): %s: top-1 %.1f%%, macro %.1f%%, ECE %.1f%% (%d images, %d classes)",
      *(name, of_set["split"], label),
      *(100 * figures[key] for key in ("top1", "macro_top1", "ece")),
      *(figures["images"], figures["classes"]),
    )
