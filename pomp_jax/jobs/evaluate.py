"""Prompts over a suite of data sets: accuracy, calibration, and how near the errors are.

Leaves in the run's folder `sets/<set>.json` with every figure of a set, its classes one by one;
`results.json` that sums them up; `results.md` and `results.tex`, tables with published figures
beside ours; plots. A set that is done is not done again, as long as nothing that its figures depend
on has changed: started again, an evaluation goes on with the first set that is missing.

With several processes all of them work on each set together, and the first writes.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from pomp_jax import hosts
from pomp_jax.analysis import evaluation_plots
from pomp_jax.analysis.tables import evaluation_tables, latex, markdown, published
from pomp_jax.data.images import PREPARATION
from pomp_jax.data.source import Source
from pomp_jax.data.suites import SUITES
from pomp_jax.data.vocabularies import ClassList
from pomp_jax.data.wordnet import load_tree
from pomp_jax.files.array_cache import fingerprint
from pomp_jax.files.atomic import replacing
from pomp_jax.files.progress import steps_of
from pomp_jax.files.prompt_file import Prompt, check_fits
from pomp_jax.files.run_folder import RunFolder, read_json, read_keyed, write_json, writing
from pomp_jax.jobs import inputs
from pomp_jax.jobs.evaluation_sets import EvaluationSet, evaluation_sets
from pomp_jax.jobs.named_prompts import NamedPrompt, describe, features_under, read_prompts
from pomp_jax.transfer import Encoder
from pomp_jax.transfer.hierarchy import Hierarchy
from pomp_jax.transfer.metrics import harmonic_mean
from pomp_jax.transfer.scoring import tally

log = logging.getLogger(__name__)

# Of what a set's file means; part of what its figures depend on.
_VERSION = f"1, pixels {PREPARATION}"


def check(config: ConfigDict, workdir: str) -> None:
  """Opens every set and every prompt; writes nothing.

  Raises:
    ConfigError, ClipError, PromptFileError, CheckpointError, RunFolderError, SourceError,
      VocabularyError: one line each.
  """
  RunFolder(workdir).check(config.job)
  check_prompts(config, config.evaluate.prompts, "evaluate.prompts")


def check_prompts(config: ConfigDict, text: str, field: str) -> None:
  """Opens every set and every prompt, and finds out whether they fit.

  Args:
    config: the whole config; `config.evaluate` names the sets.
    text: the prompts, as `read_prompts` has them.
    field: where the text stands in the config.

  Raises:
    As `check`.
  """
  clip_config = inputs.clip_config(config.clip.model)
  width = clip_config.text_config.hidden_size
  prompts = read_prompts(text, field)
  for item in evaluation_sets(config, clip_config.vision_config.image_size):
    _, classes = item.open()
    for label, prompt, _ in prompts:
      if isinstance(prompt, Prompt):
        check_fits(prompt, width, config.clip.model, len(classes), f"{label}, set {item.name}")


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
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
  clip = encoder.clip
  clip_key = fingerprint(
    [
      _VERSION,
      config.clip.text_tower,
      config.clip.dtype,
      clip.settings,
      *jax.tree.leaves(clip.params),
    ]
  )
  if first:
    folder.create()
    with writing(folder.sets):
      folder.sets.mkdir(exist_ok=True)
    write_json(folder.config, config.to_dict())
  done = {}
  for item in steps_of(sets, "evaluation", "sets"):
    source, classes = item.open()
    key = _key(clip_key, item, source, classes, prompts)
    done[item.name] = read_keyed(_file(folder, item.name), key) if first else None
    # What the first process says: the others may not see its folder.
    if not hosts.from_first(done[item.name] is not None, f"whether {item.name} is done"):
      figures = _evaluate(config, encoder, source, classes, prompts)
      if first:
        done[item.name] = {"key": key, "set": item.name, **figures}
        write_json(_file(folder, item.name), done[item.name])
        _log_set(item.name, done[item.name])
    elif first:
      log.info("%s: done before", item.name)
  if not first:
    return {}
  results = _results(config, encoder, prompts, done)
  if folder.results.exists() and read_json(folder.results) == results:
    log.info("%s: this evaluation has finished; nothing to do", workdir)
    return results
  with writing(folder.path):
    _write_report(folder, results)
  # Last: a folder with results is a finished run.
  write_json(folder.results, results)
  log.info("tables, plots and every figure are in %s", folder.path)
  return results


def _evaluate(
  config: ConfigDict,
  encoder: Encoder,
  source: Source,
  classes: ClassList,
  prompts: Sequence[NamedPrompt],
) -> dict[str, Any]:
  """Every figure of a set under every prompt."""
  start = time.monotonic()
  hierarchy = None
  if classes.synsets is not None:
    tree = load_tree()
    hierarchy = Hierarchy(tree, tree.nodes(classes.synsets))
  tallies = tally(
    encoder,
    source,
    {named.label: features_under(encoder, classes, named.prompt) for named in prompts},
    hierarchy=hierarchy,
    batch_size=config.evaluate.batch_size,
    threads=config.data.threads,
    max_corrupt=config.data.max_corrupt,
  )
  figures = {}
  for label, one in tallies.items():
    images_N, top1_N = one.per_class()
    figures[label] = {**one.figures(), "per_class": {"images": images_N, "top1": top1_N}}
  return {
    "seconds": round(time.monotonic() - start, 2),
    "unreadable": len(source) - int(images_N.sum()),
    "classes": classes.names,
    "prompts": figures,
  }


def _results(
  config: ConfigDict, encoder: Encoder, prompts: Sequence[NamedPrompt], done: Mapping[str, Any]
) -> dict[str, Any]:
  sets = {
    name: {
      "seconds": of_set["seconds"],
      "unreadable": of_set["unreadable"],
      "prompts": {
        label: {key: value for key, value in figures.items() if key != "per_class"}
        for label, figures in of_set["prompts"].items()
      },
    }
    for name, of_set in done.items()
  }
  suite = config.evaluate.suite
  accuracy = accuracy_by_kind(suite, sets, [named.label for named in prompts])
  # A mean over some of the sets, or over some of the images, is no published one's equal.
  whole = not config.evaluate.images and {n.split("/")[0] for n in sets} >= set(SUITES[suite].sets)
  return {
    "job": config.job,
    "suite": suite,
    "clip_model": encoder.clip.name,
    "logit_scale": encoder.clip.logit_scale,
    "prompts": [{"label": named.label, "step": named.step} for named in prompts],
    "accuracy": accuracy,
    "published": {kind: published(suite, kind) for kind in accuracy} if whole else {},
    "sets": sets,
  }


def accuracy_by_kind(
  suite: str, sets: Mapping[str, Any], labels: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
  """Top-1 as tables have it: kind -> prompt -> set, or the mean -> fraction.

  Kinds: `top1`; where sets are evaluated in halves `base`, `new`, and their `harmonic` mean. That
  of the means is the harmonic mean of the mean accuracies, as CoCoOp's tables have it.

  Args:
    suite: its name.
    sets: set -> "prompts" -> prompt -> its figures.
    labels: the prompts.
  """

  def table(names: Mapping[str, str]) -> dict[str, dict[str, float]]:
    rows = {}
    for label in labels:
      top1 = {shown: sets[name]["prompts"][label]["top1"] for shown, name in names.items()}
      mean = {"mean": float(np.mean(list(top1.values())))} if SUITES[suite].mean else {}
      rows[label] = top1 | mean
    return rows

  if not SUITES[suite].halves:
    return {"top1": table({name: name for name in sets})}
  whole = dict.fromkeys(name.split("/")[0] for name in sets)
  base, new = (table({name: f"{name}/{half}" for name in whole}) for half in ("base", "new"))
  harmonic = {
    label: {column: harmonic_mean(row[column], new[label][column]) for column in row}
    for label, row in base.items()
  }
  return {"base": base, "new": new, "harmonic": harmonic}


def _write_report(folder: RunFolder, results: Mapping[str, Any]) -> None:
  tables = evaluation_tables(results)
  for name, text in (("results.md", markdown(tables)), ("results.tex", latex(tables))):
    with replacing(folder.path / name) as file:
      file.write(text.encode())
  for table, (kind, rows) in zip(tables, results["accuracy"].items(), strict=False):
    others = results["published"].get(kind, {})
    others = {name: method["figures"] for name, method in others.items()}
    name = "accuracy.png" if kind == "top1" else f"accuracy_{kind}.png"
    evaluation_plots.accuracy_panels(folder.plots / name, rows, others, table.title)
  figures = {name: of_set["prompts"] for name, of_set in results["sets"].items()}
  evaluation_plots.calibration_panels(folder.plots / "calibration.png", figures)


def _key(
  clip_key: str,
  item: EvaluationSet,
  source: Source,
  classes: ClassList,
  prompts: Sequence[NamedPrompt],
) -> str:
  """Of all that a set's figures depend on, but the pixels."""
  parts: list[Any] = [clip_key, item.name, json.dumps(classes.names), np.asarray(source.labels)]
  parts.append("\n".join(getattr(source, "keys", ())))
  for label, prompt, _ in prompts:
    parts += ["prompt", label, *describe(prompt, classes)]
  return fingerprint(parts)


def _file(folder: RunFolder, name: str):
  return folder.sets / f"{name.replace('/', '-')}.json"


def _log_set(name: str, of_set: Mapping[str, Any]) -> None:
  for label, figures in of_set["prompts"].items():
    log.info(
      "%s: %s: top-1 %.1f%%, macro %.1f%%, ECE %.1f%% (%d images, %d classes)",
      *(name, label, 100 * figures["top1"], 100 * figures["macro_top1"], 100 * figures["ece"]),
      *(figures["images"], figures["classes"]),
    )
