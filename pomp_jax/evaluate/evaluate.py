"""Prompts over data sets, a suite's or a user's own: accuracy, calibration, nearness of
errors.

docs/how-to/evaluation.md lists the files that the job writes. A restart evaluates the
sets that are missing or whose prompts, images or CLIP have changed. All processes work
on each set together; process 0 writes.
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
from pomp_jax.evaluate.class_features import classifier_under
from pomp_jax.evaluate.named_prompts import NamedPrompt
from pomp_jax.evaluate.ranking import tally
from pomp_jax.evaluate.sets_to_evaluate import (
  EvaluationSet,
  file_name,
  open_each,
  open_everywhere,
  sets_to_evaluate,
)
from pomp_jax.files.paths import Path
from pomp_jax.files.pieces import Pieces, fingerprint
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report import evaluation_report as report
from pomp_jax.report import plots
from pomp_jax.report.labels import prompt_labels
from pomp_jax.report.run_report import finish_run

log = logging.getLogger(__name__)

# Version of a set's file, part of the file's cache key.
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"
# Fields of a set in `results.json`, beside those of its prompts.
_OF_SET = ("seconds", "unreadable", "split", "listed_classes", "missing_classes")


def check(config: EvaluateConfig, workdir: str) -> None:
  """Opens every set and every prompt; writes nothing."""
  names = config.evaluate.prompts
  field = "evaluate.prompts"
  check_prompts(
    names,
    field,
    clip=config.clip,
    settings=config.evaluate,
    data=config.data,
    evaluation=config.eval,
    chosen=True,
  )
  prompts = named_prompts.read_prompts(names, field, chosen=True)
  weights = _open_weights(prompts, config.clip, config.data, config.eval)
  if weights:
    weights.check()


def check_prompts(
  names: Sequence[str],
  field: str,
  clip: Clip,
  settings: Evaluate,
  data: Data,
  evaluation: Eval,
  chosen: bool = False,
) -> None:
  """Checks that the prompts of a field fit the sets to evaluate; reads no weights.

  Args:
    names: names of the prompts in the field, see `read_prompts`.
    field: dotted name of the field, for messages.
    clip: `config.clip`.
    settings: `config.evaluate`, which names the sets.
    data: `config.data`.
    evaluation: `config.eval`.
    chosen: whether a mixture may lack its weights because the caller chooses them.

  Raises:
    ConfigError: a name is unknown, or a prompt needs images but a set has features.
    PromptFileError: a prompt does not fit the CLIP or a set's classes.
    TokenizeError: a text is too long.
    SourceError: a set can't be opened.
  """
  clip_config, tokenizer = opening.clip_config_and_tokenizer(
    clip.model, clip.image_tower
  )
  prompts = named_prompts.read_prompts(names, field, chosen)
  sets = sets_to_evaluate(settings, data, evaluation)
  opened, _ = open_each(sets, settings.skip_missing)
  if any(isinstance(labelled.source, StoredImages) for labelled in opened.values()):
    named_prompts.warn_of_turns(prompts, data.upright, f"data.upright={data.upright}")
  for name, (source, classes, _) in opened.items():
    opening.check_features(source, clip.model, clip_config)
    lacks_images = isinstance(source, FeatureSource)
    class_names = [(class_name,) for class_name in classes.names]
    for named in prompts:
      needs_pixels = getattr(named.prompt, "needs_pixels", False)
      expected = (
        f"prompts of the text tower alone: the set {name} has features, and no images"
      )
      require(not (lacks_images and needs_pixels), field, named.label, expected)
      where = f"{named.label}, set {name}"
      named_prompts.check_prompt(
        named._replace(label=where), class_names, clip_config, clip.model
      )
      named_prompts.check_lengths(
        named.prompt, classes, tokenizer, clip_config.text_config, where
      )


def run(config: EvaluateConfig, workdir: str) -> dict[str, Any]:
  """Evaluates the sets that are missing, and returns what `results.json` holds.

  Processes other than process 0 return an empty dict, unless the run had already
  finished.

  Raises:
    EvaluationError: features are not finite.
    CorruptDataError: too many images can't be read.
  """
  folder = RunFolder(workdir)
  settings = config.evaluate
  encoder = opening.open_encoder(
    config.clip, config.mesh.class_size, config.data.feature_store
  )
  prompts = named_prompts.read_prompts(
    settings.prompts, "evaluate.prompts", chosen=True
  )
  weights = _open_weights(prompts, config.clip, config.data, config.eval)
  weights_key = weights.key(encoder) if weights else ()
  all_sets = sets_to_evaluate(settings, config.data, config.eval)
  opened, missing = open_everywhere(all_sets, settings.skip_missing)
  sets = [item for item in all_sets if item.name in opened]
  sampled = settings.images > 0
  counts = {
    item.name: _count_classes(item, opened[item.name], sampled) for item in sets
  }

  facts = _facts(config.job, settings, encoder, prompts, missing)
  key_of_file = _keys(config.clip, encoder, opened, prompts, weights_key)
  key_of_run = _key_of_run(key_of_file, facts, sets, settings.images)
  pieces = Pieces(folder.sets, key_of_file)
  # A set whose file is damaged is evaluated again, even if the run had finished.
  files_to_do = pieces.missing(key_of_file)
  if not files_to_do:
    finished = folder.finished(key=key_of_run)
    if finished is not None:
      return finished
  if hosts.is_first():
    folder.create(config.to_dict())
    _warn_of_missing_classes(counts, opened)
  n_done = len(key_of_file) - len(files_to_do)
  if n_done:
    log.info("%d of %d sets were evaluated before", n_done, len(key_of_file))

  if weights:
    prompts, facts["prompts"] = weights.choose(encoder)
  names_to_do = [name for name in opened if file_name(name) in files_to_do]
  for name in steps_of(names_to_do, "evaluation", "sets"):
    figures = _evaluate(
      encoder, opened[name], prompts, settings.batch_size, config.data
    )
    if hosts.is_first():
      piece = pieces.save(file_name(name), {"set": name, **figures})
      _log_set(name, piece.facts)
  if not hosts.is_first():
    return {}

  done = {name: pieces.read(file_name(name)).facts | counts[name] for name in opened}
  results = {"key": key_of_run, **facts, **_sums(sets, done, sampled)}
  if any(isinstance(labelled.source, StoredImages) for labelled in opened.values()):
    upright = config.data.upright
    labels = named_prompts.turned_otherwise(prompts, upright)
    if labels:
      results["turned_otherwise"] = {"upright": upright, "prompts": labels}
  _write_tables_and_plots(folder, done, results)
  finish_run(folder, config.to_dict(), results)
  log.info("tables, plots and every figure are in %s", folder.path)
  return results


def _open_weights(
  prompts: Sequence[NamedPrompt], clip: Clip, data: Data, evaluation: Eval
) -> hooks.MixtureWeights | None:
  """Opens what chooses the weights of mixtures; None without the room mixtures."""
  if not hooks.MIXTURE_WEIGHTS:
    return None
  open_weights = hooks.MIXTURE_WEIGHTS.open()
  return open_weights(prompts, clip, data, evaluation)


def _facts(
  job: str,
  settings: Evaluate,
  encoder: Encoder,
  prompts: Sequence[NamedPrompt],
  missing: Mapping[str, str],
) -> dict[str, Any]:
  """Members of `results.json` that are known before any image is read."""
  facts: dict[str, Any] = {"job": job}
  if hooks.NAMED_SETS:
    facts |= hooks.NAMED_SETS.open().facts(settings)
  return facts | {
    "clip_model": encoder.clip.name,
    "logit_scale": encoder.clip.logit_scale,
    "prompts": [{"label": named.label, "step": named.step} for named in prompts],
    "missing": missing,
  }


def _key_of_run(
  key_of_file: Mapping[str, str],
  facts: Mapping[str, Any],
  sets: Sequence[EvaluationSet],
  n_images: int,
) -> str:
  """Key by which `results.json` is known to be of this evaluation.

  Args:
    key_of_file: key of each set's file.
    facts: result of `_facts`, before weights are chosen.
    sets: sets that have images.
    n_images: `evaluate.images`.
  """
  tables = [
    (item.name, item.group, item.column, item.part, item.reader) for item in sets
  ]
  parts = [*key_of_file.values(), json.dumps(facts), repr((tables, n_images))]
  return fingerprint(parts)


def _write_tables_and_plots(
  folder: RunFolder, done: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
  """Writes the tables by class, the plots and the rows for CLIP_benchmark."""
  with writing(folder.path):
    if hooks.BY_CLASS:
      hooks.BY_CLASS.open().write(folder, done)
    _draw(folder.plots, results)
    if hooks.CLIP_BENCHMARK:
      hooks.CLIP_BENCHMARK.open()(folder.path, results)


def _warn_of_missing_classes(
  counts: Mapping[str, Mapping[str, Any]], opened: Mapping[str, LabelledSet]
) -> None:
  """Logs each set in which some listed classes have no image."""
  for name, count in counts.items():
    if count["missing_classes"]:
      log.warning(
        "missing: %s: %d of the %d classes in its list have no image; %d classes are told apart",
        name,
        count["missing_classes"],
        count["listed_classes"],
        len(opened[name].classes),
      )


def _evaluate(
  encoder: Encoder,
  labelled: LabelledSet,
  prompts: Sequence[NamedPrompt],
  batch_size: int,
  data: Data,
) -> dict[str, Any]:
  """Computes every figure of a set under every prompt."""
  start = time.monotonic()
  source, classes, split = labelled
  tree_errors = None
  if classes.synsets is not None and hooks.TREE_ERRORS:
    tree_errors = hooks.TREE_ERRORS.open()(classes.synsets)
  classifiers = {
    named.label: classifier_under(encoder, classes, named.prompt) for named in prompts
  }
  reference = prompts[0].label
  tallies = tally(
    encoder,
    source,
    classifiers,
    more=tree_errors,
    reference=reference,
    batch_size=batch_size,
    threads=data.threads,
    max_corrupt=data.max_corrupt,
  )
  figures = {
    label: counts.figures() | counts.by_class() for label, counts in tallies.items()
  }
  return {
    "seconds": round(time.monotonic() - start, 2),
    # Every prompt has seen the same images.
    "unreadable": len(source) - figures[reference]["images"],
    "split": split,
    "classes": classes.names,
    "reference": reference,
    "prompts": figures,
  }


def _sums(
  items: Sequence[EvaluationSet], done: Mapping[str, Any], sampled: bool
) -> dict[str, Any]:
  """Figures of the sets by group, with published figures beside them, and of each
  set."""
  sets = {}
  rows = []
  # Groups that can't be compared with published figures, because the images of some set
  # are others.
  unlike_published = set()
  for item in items:
    facts = done[item.name]
    summary = _summary(facts)
    sets[item.name] = summary
    rows.append(
      report.SetFigures(
        item.group, item.column, item.part, summary["prompts"], summary["split"]
      )
    )
    is_whole = not sampled and not facts["unreadable"]
    is_test = facts["split"] in ("test", "validation")
    is_published = item.reader in report.group_of(item.group).readers
    if not (is_whole and is_test and is_published):
      unlike_published.add(item.group)
  accuracy = report.accuracy_by_group(rows)
  intervals, differences = report.comparisons_by_group(rows, accuracy)
  splits: dict[str, dict[str, str]] = {group: {} for group in accuracy}
  for row in rows:
    if row.group in splits:
      splits[row.group][row.column] = row.split
  published: dict[str, dict[str, Any]] = {}
  for group, kinds in accuracy.items():
    if group not in unlike_published:
      published[group] = _published(group, kinds)
  return {
    "accuracy": accuracy,
    "intervals": intervals,
    "differences": differences,
    "images": report.counts_by_group(rows, "images"),
    "classes": report.counts_by_group(rows, "classes"),
    "splits": splits,
    "published": published,
    "sets": sets,
  }


def _summary(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a set in `results.json`: those of its file without the class tables."""
  by_class = {}
  if hooks.BY_CLASS:
    by_class = hooks.BY_CLASS.open().summary(facts)
  prompts = {}
  for label, figures in facts["prompts"].items():
    prompts[label] = {
      name: figure
      for name, figure in figures.items()
      if name not in ("per_class", "confusions")
    }
  summary = {name: facts[name] for name in _OF_SET}
  return {**summary, "by_class": by_class, "prompts": prompts}


def _published(group: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
  """Published figures for each table of a group; empty without the room data_sets."""
  if not hooks.PUBLISHED:
    return {kind: {} for kind in kinds}
  published = hooks.PUBLISHED.open()
  return {kind: published(group, kind, rows) for kind, rows in kinds.items()}


def _draw(folder: Path, results: Mapping[str, Any]) -> None:
  """Plots the accuracies of each group of sets, and the calibration on each set."""
  for group, kinds in results["accuracy"].items():
    published_kinds = results["published"].get(group, {})
    interval_kinds = results["intervals"].get(group, {})
    for kind, rows in kinds.items():
      published = {
        method: facts["figures"]
        for method, facts in published_kinds.get(kind, {}).items()
      }
      plots.accuracy_panels(
        folder / f"accuracy_{group}_{kind}.png",
        rows,
        prompt_labels(list(rows)),
        title=report.title_of(group, kind),
        images=results["images"][group][kind],
        classes=results["classes"][group][kind],
        intervals=interval_kinds.get(kind, {}),
        published=published,
      )
  figures = {name: facts["prompts"] for name, facts in results["sets"].items()}
  plots.calibration_panels(folder / "calibration.png", figures)


def _keys(
  settings: Clip,
  encoder: Encoder,
  opened: Mapping[str, LabelledSet],
  prompts: Sequence[NamedPrompt],
  weights_key: Sequence[str],
) -> dict[str, str]:
  """Cache key of each set's figures, by the name of the set's file.

  A key covers everything that the figures depend on. Stored images enter it with the
  sizes and times of their files, not with their pixels.
  """
  clip = encoder.clip
  weights = jax.tree.leaves(clip.params)
  clip_key = fingerprint(
    [_VERSION, settings.text_tower, settings.dtype, clip.settings, *weights]
  )
  keys = {}
  for name, (source, classes, split) in opened.items():
    parts: list[Any] = [clip_key, name, split, np.asarray(source.labels)]
    parts.append(json.dumps(classes.names))
    parts.append(json.dumps(classes.synsets))
    if isinstance(source, StoredImages):
      parts.append("\n".join(source.keys))
      # Another folder may hold other images under the same keys. The path of the first
      # image tells the folders apart.
      place = source.where(0)
      if source.upright:
        place += ", upright"
      parts.append(place)
      # A file may be replaced under its old name, so sizes and times count too.
      parts.append(source.stamps())
    else:
      parts.append("")  # generated images have no files
    if isinstance(source, FeatureSource):
      parts.append(source.checksums)
    for named in prompts:
      description = named_prompts.describe(named.prompt, classes)
      parts += ["prompt", named.label, *description]
    parts += weights_key
    keys[file_name(name)] = fingerprint(parts)
  return keys


def _count_classes(
  item: EvaluationSet, labelled: LabelledSet, sampled: bool
) -> dict[str, Any]:
  """Counts the listed classes, and the listed classes without an image.

  The second count is None if the images are a sample, or those of the embedded world.
  """
  listed = item.n_listed or len(labelled.classes)
  missing = None
  if item.reader and not sampled:
    missing = listed - len(np.unique(labelled.source.labels))
  return {"listed_classes": listed, "missing_classes": missing}


def _log_set(name: str, facts: Mapping[str, Any]) -> None:
  for label, figures in facts["prompts"].items():
    log.info(
      "%s (%s): %s: top-1 %.1f%%, macro %.1f%%, ECE %.1f%% (%d images, %d classes)",
      name,
      facts["split"],
      label,
      100 * figures["top1"],
      100 * figures["macro_top1"],
      100 * figures["ece"],
      figures["images"],
      figures["classes"],
    )
