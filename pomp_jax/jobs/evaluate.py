"""Prompts over data sets, a suite's or a user's own: accuracy, calibration, nearness of errors.

Leaves in the run's folder `sets/<set>.json` with every figure of a set, its classes one by one, and
`results.csv`, `classes.csv` and `confusions.csv` of all sets;
`results.json` that sums them up; `results.md` and `results.tex`, tables with published figures
beside ours; `clip_benchmark/` and `clip_benchmark.csv`, the same in the form of CLIP_benchmark;
plots; `report.html`, all of it on one page. A set that is done is not done again, as long as
nothing that its figures depend on has changed. A restart resumes with the first set that is
missing.

With several processes all of them work on each set together, and the first writes.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts, inputs
from pomp_jax.analysis import plots
from pomp_jax.analysis.class_tables import class_summary, write_class_tables
from pomp_jax.analysis.clip_benchmark import benchmark_csv, benchmark_records
from pomp_jax.analysis.html_report import write_run_report
from pomp_jax.analysis.reports import evaluation_report
from pomp_jax.analysis.tables import (
  SetFigures,
  accuracy_by_group,
  counts_by_group,
  evaluation_tables,
  figure_by_group,
  latex,
  markdown,
  published,
  title_of,
)
from pomp_jax.config import Settings
from pomp_jax.config.registry import GROUPS
from pomp_jax.data.images import PREPROCESSING_VERSION
from pomp_jax.data.source import LabelledSet, StoredImages
from pomp_jax.data.wordnet import load_tree
from pomp_jax.encoder import Encoder
from pomp_jax.files.array_cache import fingerprint
from pomp_jax.files.atomic import replacing
from pomp_jax.files.class_features import ClassFeatures
from pomp_jax.files.paths import exists, remove_folder
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.files.run_folder import (
  RunFolder,
  read_keyed,
  with_provenance,
  write_json,
  writing,
)
from pomp_jax.files.terminal import steps_of
from pomp_jax.inference.evaluate import tally
from pomp_jax.inference.metrics import Hierarchy
from pomp_jax.inference.named_prompts import (
  NamedPrompt,
  check_lengths,
  describe,
  features_under,
  read_prompts,
)
from pomp_jax.inputs.evaluation_sets import (
  EvaluationSet,
  evaluation_sets,
  file_name,
  open_each,
  open_everywhere,
)

log = logging.getLogger(__name__)

# Of what a set's file means; part of what its figures depend on.
_VERSION = f"3, pixels {PREPROCESSING_VERSION}"
# What `results.json` holds of a set beside its prompts.
_OF_SET = ("seconds", "unreadable", "split", "listed_classes", "missing_classes")
_BENCHMARK, _BENCHMARK_CSV = "clip_benchmark", "clip_benchmark.csv"


def check(config: Settings, workdir: str) -> None:
  """Opens every set and every prompt; writes nothing.

  Raises:
    ConfigError, ClipError, PromptFileError, CheckpointError, RunFolderError, SourceError,
      TokenizeError, VocabularyError: one line each.
  """
  RunFolder(workdir).check(config.job)
  check_prompts(config, config.evaluate.prompts, "evaluate.prompts")


def check_prompts(config: Settings, names: Sequence[str], field: str) -> None:
  """Checks that the prompts that a field names (see `read_prompts`) fit `config.evaluate`'s sets.

  Raises:
    As `check`.
  """
  clip_config, tokenizer = inputs.clip_config_and_tokenizer(config.clip.model)
  text_config = clip_config.text_config
  prompts = read_prompts(names, field)
  sets = evaluation_sets(config, clip_config.vision_config.image_size)
  opened, _ = open_each(sets, config.evaluate.skip_missing)
  for name, labelled in opened.items():
    classes = labelled.classes
    for label, prompt, _ in prompts:
      where = f"{label}, set {name}"
      if isinstance(prompt, Prompt):
        check_fits(prompt, text_config.hidden_size, config.clip.model, len(classes), where)
      elif isinstance(prompt, ClassFeatures):
        prompt.check_fits(len(classes), clip_config.projection_dim, where)
      check_lengths(prompt, classes, tokenizer, text_config, where)


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Evaluates what is missing, and sums up: returns what `results.json` holds.

  Processes other than the first return an empty dict: the folder need not be theirs as well.

  Raises:
    EvaluationError: images that can't be told apart.
    CorruptDataError: more images than `data.max_corrupt` allows can't be read.
  """
  folder = RunFolder(workdir)
  first = hosts.is_first()
  encoder = inputs.open_encoder(config)
  prompts = read_prompts(config.evaluate.prompts, "evaluate.prompts")
  sets = evaluation_sets(config, encoder.clip.image_size)
  opened, missing = open_everywhere(sets, config.evaluate.skip_missing)
  clip = encoder.clip
  settings = (_VERSION, config.clip.text_tower, config.clip.dtype, clip.settings)
  clip_key = fingerprint([*settings, *jax.tree.leaves(clip.params)])
  if first:
    folder.create()
    with writing(folder.sets):
      folder.sets.mkdir(exist_ok=True)
    write_json(folder.config, config.to_dict())
  counts = {
    item.name: item.count_classes(opened[item.name], sampled=config.evaluate.images > 0)
    for item in sets
    if item.name in opened
  }
  if first:
    _log_missing_classes(counts, opened)
  done = {}
  for name, labelled in steps_of(list(opened.items()), "evaluation", "sets"):
    key = _key(clip_key, name, labelled, prompts)
    done[name] = read_keyed(_file(folder, name), key) if first else None
    # What the first process says: the others may not see its folder.
    if not hosts.from_first(done[name] is not None, f"whether {name} is done"):
      figures = _evaluate(config, encoder, labelled, prompts)
      if first:
        done[name] = {"key": key, "set": name, **figures}
        write_json(_file(folder, name), done[name])
        _log_set(name, done[name])
    elif first:
      log.info("%s: done before", name)
  if not first:
    return {}
  done = {name: of_set | counts[name] for name, of_set in done.items()}
  results = _results(config, encoder, prompts, sets, done, missing)
  # Without these files it is the evaluation of an earlier version.
  complete = all(
    exists(folder.path / name) for name in (_BENCHMARK_CSV, "results.csv", "report.html")
  )
  if complete and folder.read_results() == results:
    log.info("%s: this evaluation has finished; nothing to do", workdir)
    return results
  with writing(folder.path):
    _write_report(folder, results)
    write_class_tables(folder, done)
    _write_benchmark(folder, results)
    stored = with_provenance(results)
    write_run_report(folder, config, stored, evaluation_report(folder, stored))
  # Last: a folder with results is a finished run.
  folder.write_results(stored)
  log.info("tables, plots and every figure are in %s", folder.path)
  return results


def _evaluate(
  config: Settings, encoder: Encoder, labelled: LabelledSet, prompts: Sequence[NamedPrompt]
) -> dict[str, Any]:
  """Every figure of a set under every prompt."""
  start = time.monotonic()
  source, classes, split = labelled
  hierarchy = None
  if classes.synsets is not None:
    tree = load_tree()
    hierarchy = Hierarchy(tree, tree.nodes(classes.synsets))
  tallies = tally(
    encoder,
    source,
    {named.label: features_under(encoder, classes, named.prompt) for named in prompts},
    hierarchy=hierarchy,
    reference=prompts[0].label,
    batch_size=config.evaluate.batch_size,
    threads=config.data.threads,
    max_corrupt=config.data.max_corrupt,
  )
  figures = {}
  for label, one in tallies.items():
    figures[label] = one.figures() | one.by_class()
  return {
    "seconds": round(time.monotonic() - start, 2),
    "unreadable": len(source) - next(iter(figures.values()))["images"],
    "split": split,
    "classes": classes.names,
    "reference": prompts[0].label,
    "prompts": figures,
  }


def _results(
  config: Settings,
  encoder: Encoder,
  prompts: Sequence[NamedPrompt],
  items: Sequence[EvaluationSet],
  done: Mapping[str, Any],
  missing: Mapping[str, str],
) -> dict[str, Any]:
  sets = {
    name: {key: of_set[key] for key in _OF_SET}
    | {
      "by_class": class_summary(of_set),
      "prompts": {
        label: {k: v for k, v in figures.items() if k not in ("per_class", "confusions")}
        for label, figures in of_set["prompts"].items()
      },
    }
    for name, of_set in done.items()
  }
  there = [item for item in items if item.name in sets]
  found = [
    SetFigures(item.group, item.column, item.part, own["prompts"], own["split"])
    for item in there
    for own in [sets[item.name]]
  ]
  accuracy = accuracy_by_group(found)
  same = {group: _is_published_data(config, group, there, sets) for group in accuracy}
  return {
    "job": config.job,
    "suite": config.evaluate.suite,
    "clip_model": encoder.clip.name,
    "logit_scale": encoder.clip.logit_scale,
    "prompts": [{"label": named.label, "step": named.step} for named in prompts],
    "missing": dict(missing),
    "accuracy": accuracy,
    "intervals": figure_by_group(found, "top1_interval"),
    "images": counts_by_group(found, "images"),
    "classes": counts_by_group(found, "classes"),
    "splits": {
      group: {one.column: one.split for one in found if one.group == group} for group in accuracy
    },
    "published": {
      group: {kind: published(group, kind, rows) for kind, rows in kinds.items()}
      for group, kinds in accuracy.items()
      if same[group]
    },
    "sets": sets,
  }


def _is_published_data(
  config: Settings, group: str, there: Sequence[EvaluationSet], sets: Mapping[str, Any]
) -> bool:
  """Whether the sets of a group are of the images that the published figures are of."""
  return not config.evaluate.images and all(
    item.reader in GROUPS[group].readers
    and sets[item.name]["split"] in ("test", "validation")
    and not sets[item.name]["unreadable"]
    for item in there
    if item.group == group
  )


def _write_report(folder: RunFolder, results: Mapping[str, Any]) -> None:
  tables = evaluation_tables(results)
  lines = _missing_lines(results)
  for name, text in (
    ("results.md", "".join(f"{line}\n\n" for line in lines) + markdown(tables)),
    ("results.tex", "".join(f"% {line}\n\n" for line in lines) + latex(tables)),
  ):
    with replacing(folder.path / name) as file:
      file.write(text.encode())
  for group, kinds in results["accuracy"].items():
    for kind, rows in kinds.items():
      others = results["published"].get(group, {}).get(kind, {})
      plots.accuracy_panels(
        folder.plots / f"accuracy_{group}_{kind}.png",
        rows,
        {name: method["figures"] for name, method in others.items()},
        title_of(group, kind),
        results["images"][group][kind],
        results["intervals"].get(group, {}).get(kind, {}),
        results["classes"][group][kind],
      )
  figures = {name: of_set["prompts"] for name, of_set in results["sets"].items()}
  plots.calibration_panels(folder.plots / "calibration.png", figures)


def _missing_lines(results: Mapping[str, Any]) -> list[str]:
  """Sets that are missing, and classes that have no image in a set."""
  lines = []
  if results["missing"]:
    lines.append(f"{len(results['missing'])} sets are missing: {', '.join(results['missing'])}")
  for name, of_set in results["sets"].items():
    if of_set["missing_classes"]:
      lines.append(
        f"{name}: {of_set['missing_classes']} of the {of_set['listed_classes']} classes in its list"
        " have no image"
      )
  return lines


def _write_benchmark(folder: RunFolder, results: Mapping[str, Any]) -> None:
  records = benchmark_records(results)
  files = folder.path / _BENCHMARK
  remove_folder(files)  # records of other prompts
  files.mkdir()
  for name, record in records.items():
    write_json(files / f"{name}.json", record, checksum=False)
  with replacing(folder.path / _BENCHMARK_CSV) as file:
    file.write(benchmark_csv(records.values()).encode())


def _key(clip_key: str, name: str, labelled: LabelledSet, prompts: Sequence[NamedPrompt]) -> str:
  """Of all that a set's figures depend on, but the pixels."""
  source, classes, split = labelled
  parts: list[Any] = [clip_key, name, split, np.asarray(source.labels)]
  parts += [json.dumps(classes.names), json.dumps(classes.synsets)]
  if isinstance(source, StoredImages):
    # Other images may have the same keys.
    parts += ["\n".join(source.keys), source.where(0) + ", upright" * source.upright]
  else:
    parts.append("")
  for label, prompt, _ in prompts:
    parts += ["prompt", label, *describe(prompt, classes)]
  return fingerprint(parts)


def _file(folder: RunFolder, name: str):
  return folder.sets / f"{file_name(name)}.json"


def _log_set(name: str, of_set: Mapping[str, Any]) -> None:
  for label, figures in of_set["prompts"].items():
    log.info(
      "%s (%s): %s: top-1 %.1f%%, macro %.1f%%, ECE %.1f%% (%d images, %d classes)",
      *(name, of_set["split"], label),
      *(100 * figures[key] for key in ("top1", "macro_top1", "ece")),
      *(figures["images"], figures["classes"]),
    )


def _log_missing_classes(
  counts: Mapping[str, Mapping[str, int | None]], opened: Mapping[str, LabelledSet]
) -> None:
  """Logs the classes without images before anything is computed."""
  for name, count in counts.items():
    if count["missing_classes"]:
      log.warning(
        "missing: %s: %d of the %d classes in its list have no image; %d classes are told apart",
        *(name, count["missing_classes"], count["listed_classes"], len(opened[name].classes)),
      )
