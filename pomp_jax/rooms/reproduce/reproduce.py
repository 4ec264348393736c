"""Says whether a table of the paper is reproduced, and which stage is to blame if not.

The stages are Inputs, Controls, Published prompts and Retrained. A failure stops what
depends on it: a set that fails Inputs or Controls, for example, skips the later stages.
A restart measures only what is missing. If a row fails, the exit status is 1, and
everything is written nevertheless. docs/reproduce/index.md lists the tables.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
import functools
import logging
import os
from typing import Any

import numpy as np

from pomp_jax.clip.load import Clip
from pomp_jax.config.command_line import load_config
from pomp_jax.config.errors import ConfigError, require
from pomp_jax.config.fields import Clip as ClipFields
from pomp_jax.config.from_file import unpack
from pomp_jax.data.source import LabelledSet, SourceError
from pomp_jax.errors import InputError, RunError
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.named_prompts import (
  AnyPrompt,
  NamedPrompt,
  check_lengths,
  check_prompt,
)
from pomp_jax.evaluate.sets_to_evaluate import EvaluationSet, sets_to_evaluate
from pomp_jax.files.paths import Path, exists, is_dir, join
from pomp_jax.files.pieces import fingerprint
from pomp_jax.files.prompt_file import Prompt, load_prompt
from pomp_jax.files.run_folder import RunFolder, write_json
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.reproduce import accuracies, finished_folder, verify, world_sets
from pomp_jax.rooms.reproduce.digests import packaged_record
from pomp_jax.rooms.reproduce.fields import WORLD_TABLE, Reproduce, ReproduceConfig
from pomp_jax.rooms.reproduce.findings import joined
from pomp_jax.rooms.reproduce.findings import to_dict as finding_to_dict
from pomp_jax.rooms.reproduce.measure import Measurer
from pomp_jax.rooms.reproduce.region_cases import (
  STAGES_OF_CASES,
  RegionReproduction,
)
from pomp_jax.rooms.reproduce.region_tables import REGION_TABLES
from pomp_jax.rooms.reproduce.reproduction_report import succeeded, verdict_of
from pomp_jax.rooms.reproduce.retrained_stage import (
  Training,
  TrainingGroup,
  read_training,
  read_trainings,
)
from pomp_jax.rooms.reproduce.rows import to_dict
from pomp_jax.rooms.reproduce.tables import (
  ACCURACIES,
  ARMS,
  RELEASED,
  WORLD_RECIPE,
  Accuracies,
  Method,
  arm_of,
  method_name,
)

log = logging.getLogger(__name__)

_PIECES, _TRAININGS, _DATA = "pieces", "trainings", "data"


class NotReproducedError(RunError):
  """A reproduction failed; the message is the verdict."""


def check(config: ReproduceConfig, workdir: str) -> None:
  """Checks that prompts, runs and sets can be opened; writes nothing."""
  settings = config.reproduce
  if settings.verify:
    return
  if settings.table in REGION_TABLES:
    return _check_regions(settings, config.clip, workdir)
  table = ACCURACIES[settings.table]
  fits = table.recipe or not settings.train
  expected = f"0 where reproduce.table={table.name!r}: hand over finished trainings"
  require(fits, "reproduce.train", settings.train, expected)
  clip = opening.clip_config(config.clip.model)
  for path in settings.prompts:
    prompt = load_prompt(path)
    width = prompt.context.shape[-1]
    expected = f"a prompt of width {clip.text_config.hidden_size}, as the CLIP's"
    fits = prompt.context.ndim == 2 and width == clip.text_config.hidden_size
    require(fits, "reproduce.prompts", path, expected)
  expected = f"'' where reproduce.table={table.name!r}: it compares reproduce.runs"
  fits = not settings.prompts or not (table.methods or table.arms)
  require(fits, "reproduce.prompts", settings.prompts, expected)
  by_length: dict[int, AnyPrompt] = {}
  for training in _finished(table, settings.runs):
    if isinstance(training.prompt, Prompt):
      by_length[training.prompt.context.shape[-2]] = training.prompt
    named = NamedPrompt(training.label, training.prompt)
    check_prompt(named, (), clip, config.clip.model)
  # Check the trainings now, finished seeds included: the earlier stages take hours.
  recipe = _recipe(table, settings.root, config.clip.model)
  _trainings(settings, recipe, config.replace, workdir)
  if table.suite:
    items = _items(settings, table, config.replace)
    if all(_problem(item.open) for item in items):
      expected = "a folder with at least one of the table's sets"
      raise ConfigError("reproduce.root", settings.root, expected)
    _, tokenizer = opening.clip_config_and_tokenizer(config.clip.model)
    prompts: list[AnyPrompt] = [*table.controls]
    prompts += [load_prompt(path) for path in settings.prompts]
    # Which names are too long depends only on the length of the context, so check one
    # training per length.
    prompts += by_length.values()
    for item in items:
      if not _problem(item.open):
        for one in prompts:
          check_lengths(
            one, item.open().classes, tokenizer, clip.text_config, f"set {item.name}"
          )


def run(config: ReproduceConfig, workdir: str) -> dict[str, Any]:
  """Runs the stages that are missing, and writes report and verdict.

  Returns:
    Content of `results.json`.

  Raises:
    NotReproducedError: a row failed; everything is written nevertheless.
  """
  settings = config.reproduce
  if settings.verify:
    return _verify(settings.verify)
  folder = RunFolder(workdir)
  if settings.table in REGION_TABLES:
    folder.create(config.to_dict())
    encoder = opening.open_encoder(config.clip, config.mesh.class_size)
    regions = _regions(settings, config.clip, workdir)
    _run_regions(regions, encoder.clip)
    if settings.recorded_by:
      _write_record(folder.path, regions, settings.recorded_by)
    return _finish(folder, config.to_dict(), regions)
  table = ACCURACIES[settings.table]
  record = packaged_record(table.name)
  folder.create(config.to_dict())
  encoder = opening.open_encoder(config.clip, config.mesh.class_size)
  if table.suite:
    sets = _named_sets(_items(settings, table, config.replace))
  else:
    root = settings.root or os.path.join(workdir, _DATA)
    if not settings.root:
      world_sets.write_sets(root)
    sets = _world_sets(root)
  measurer = Measurer(
    encoder, folder.path / _PIECES, dtype=config.clip.dtype, quick=settings.quick
  )
  released = _released(settings.prompts, record, encoder.clip)
  finished = _finished(table, settings.runs)
  state = accuracies.Reproduction(
    table=table,
    sets=sets,
    measurer=measurer,
    dtype=config.clip.dtype,
    record=record,
    quick=settings.quick,
    prepared={**released, **{one.label: one.prompt for one in finished}},
  )
  state.inputs()
  state.controls()
  state.published(released)
  recipe = _recipe(table, settings.root, config.clip.model)
  why_not = "no training was asked for: reproduce.train=3, or reproduce.runs"
  if settings.train and set(sets.names) <= state.stopped.keys():
    why_not = "stopped: every set was stopped before"
  elif settings.train:
    runs = accuracies.retrain(_trainings(settings, recipe, config.replace, workdir))
    finished = [read_training(one) for one in runs]
  if table.arms:
    state.orders(_arms(table, finished))
  else:
    for group in _groups(table, finished, recipe, why_not):
      state.retrained(group)
  if settings.recorded_by:
    _write_record(folder.path, state, settings.recorded_by)
  return _finish(folder, config.to_dict(), state)


def _check_regions(settings: Reproduce, clip: ClipFields, workdir: str) -> None:
  """Checks a table of regions; ConfigError if a field is set that the table does not
  read."""
  where = f"where reproduce.table={settings.table!r}"
  for name in ("prompts", "runs"):
    value = getattr(settings, name)
    require(
      not value, f"reproduce.{name}", value, f"'' {where}: the root has all files"
    )
  expected = f"0 {where}: no network is trained here"
  require(not settings.train, "reproduce.train", settings.train, expected)
  expected = f"False {where}: IoU and AP of 200 images have no interval"
  require(not settings.quick, "reproduce.quick", settings.quick, expected)
  _regions(settings, clip, workdir).check()


def _regions(settings: Reproduce, clip: ClipFields, workdir: str) -> RegionReproduction:
  table = REGION_TABLES[settings.table]
  return RegionReproduction(
    table=table,
    root=settings.root,
    workdir=workdir,
    clip=clip,
    record=packaged_record(table.name),
  )


def _run_regions(state: RegionReproduction, clip: Clip) -> None:
  """Runs the stages of a table of regions."""
  state.inputs(clip)
  for stage in STAGES_OF_CASES:
    state.compare(stage)
  state.retrained()


def _finish(
  folder: RunFolder,
  config: Mapping[str, Any],
  state: accuracies.Reproduction | RegionReproduction,
) -> dict[str, Any]:
  """Writes the report and reproduction.json; NotReproducedError if a row failed."""
  findings = [finding_to_dict(one) for one in joined(state.findings)]
  verdict = verdict_of(state.rows, findings)
  results = {
    "job": config["job"],
    "table": state.table.name,
    "verdict": verdict,
    "quick": state.quick,
    "rows": [to_dict(row) for row in state.rows],
    "findings": findings,
    "means": {name: list(sets) for name, sets in state.table.means.items()},
    "answers": state.answers,
    "figures": state.figures,
    "digests": _summary(state.digests, config["reproduce"]["table"] in REGION_TABLES),
  }
  clip = config["clip"]["model"]
  finish_run(folder, config, results)
  finished_folder.write(folder.path, results, clip)
  for one in findings:
    place = f"{one['stage']}: {one['kind']} ({one['subject']})"
    log.info("%s: %s; check %s", place, one["sentence"], one["first"])
  if not succeeded(state.rows):
    raise NotReproducedError(verdict)
  log.info("%s", verdict)
  return results


def _verify(folder: str) -> dict[str, Any]:
  """Checks a finished folder; NotReproducedError names what differs."""
  problems = verify.problems_of(folder)
  for problem in problems:
    log.warning("%s", problem)
  if problems:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    raise NotReproducedError(f"{folder}: {problems[0]}{more}")
  log.info("%s: digests and arithmetic are right", folder)
  return {}


def _summary(digests: Mapping[str, Any], table_of_regions: bool) -> dict[str, Any]:
  """Digests for the results: one of the CLIP, and one of each part of a set."""
  clip = fingerprint([repr(sorted(digests["clip"].items(), key=lambda item: item[0]))])
  keys = ("ids", "pairs", "names", "content")
  sets = {
    name: {key: value for key, value in one.items() if key in keys or table_of_regions}
    for name, one in digests["sets"].items()
  }
  return {"clip": clip, "sets": sets}


def _write_record(
  path: Path,
  state: accuracies.Reproduction | RegionReproduction,
  recorded_by: str,
) -> None:
  """Writes digests.json, a record with which other reproductions can be compared."""
  date = datetime.datetime.now(datetime.UTC).date().isoformat()
  head = {"recorded_by": recorded_by, "date": date}
  write_json(path / "digests.json", {**head, **state.record_of()})


def _released(
  paths: Sequence[str], record: Mapping[str, Any], clip: Clip
) -> dict[str, Prompt]:
  """Released prompts by label, from the files, or the record's if there are none."""
  if not paths and "released" in record:
    released = record["released"]
    context_MxD = np.asarray(released["context"], np.float32)
    return {f"released, M = {len(context_MxD)}": Prompt(context_MxD, clip.name, "end")}
  prompts = {}
  for path in paths:
    prompt = load_prompt(path)
    label = f"released, M = {len(prompt.context)}"
    # A second prompt of the same length is labelled by its path.
    prompts[label if label not in prompts else path] = prompt
  return prompts


def _finished(table: Accuracies, folders: Sequence[str]) -> list[Training]:
  """Reads finished trainings; the label names the method or arm if a table has several.

  Raises:
    ConfigError: a training belongs to no arm of the ablation.
  """
  trainings = []
  for folder in folders:
    for one in read_trainings(folder):
      label = one.label
      if table.methods:
        label = f"{method_name(one.fields)}, {label}"
      if table.arms:
        label = f"{_arm(folder, one)}, {label}"
      trainings.append(one._replace(label=label))
  return trainings


def _arm(folder: str, training: Training) -> str:
  """The arm of a training; ConfigError if the training belongs to no arm."""
  arm = arm_of(training.fields)
  if arm is None:
    names = ("k", "correction", "margin", "sampling.name")
    found = ", ".join(f"{name}={training.fields.get(name)}" for name in names)
    expected = f"trainings of {', '.join(ARMS)}"
    raise ConfigError("reproduce.runs", f"{folder} ({found})", expected)
  return arm


def _arms(table: Accuracies, trainings: Sequence[Training]) -> list[TrainingGroup]:
  """Groups trainings by arm, with the arm's recipe; omits arms without trainings."""
  packaged = unpack(load_config(table.recipe_of_runs), "pretrain")
  groups = []
  for name, changes in table.arms.items():
    of_arm = [one for one in trainings if arm_of(one.fields) == name]
    if of_arm:
      recipe = dict(packaged.replace(changes).flat())
      groups.append(TrainingGroup(name, of_arm, recipe, None))
  return groups


def _groups(
  table: Accuracies,
  trainings: Sequence[Training],
  recipe: Mapping[str, Any],
  why_not: str,
) -> list[TrainingGroup]:
  """Groups trainings by the row that they are compared with.

  Args:
    table: table of the reproduction.
    trainings: finished trainings.
    recipe: recipe of a table with one method.
    why_not: why there are no trainings, for a table with one method.
  """
  if not table.methods:
    return [TrainingGroup("retrained", trainings, recipe, table.paper, why_not)]
  by_method: dict[str, list[Training]] = {one.name: [] for one in table.methods}
  for training in trainings:
    by_method.setdefault(method_name(training.fields), []).append(training)
  known = {one.name: one for one in table.methods}
  groups = []
  for name, of_method in by_method.items():
    if name not in known:
      why = f"table 2 has no row of {name}"
      groups.append(TrainingGroup(name, of_method, {}, None, why))
      continue
    method = known[name]
    why = f"no training of {name}: reproduce.runs has folders of finished ones"
    if not method.recipe:
      why = f"there is no trainer of {name} here"
    group = TrainingGroup(name, of_method, _fields_of(method), ("2", name), why)
    groups.append(group)
  return groups


def _fields_of(method: Method) -> dict[str, Any]:
  """A method's recipe by dotted name, without fields that the table does not state."""
  if not method.recipe:
    return {}
  packaged = unpack(load_config(method.recipe), "pretrain").replace(method.changes)
  fields = dict(packaged.flat())
  return {name: value for name, value in fields.items() if name not in method.unstated}


def _trainings(
  settings: Reproduce,
  recipe: Mapping[str, Any],
  replace: Callable[[Mapping[str, Any]], Any],
  workdir: str,
) -> dict[str, Any]:
  """Configs of the trainings of `reproduce.train`, by their folders."""
  return accuracies.seeds_to_train(
    replace,
    recipe=recipe,
    n_seeds=settings.train,
    folder=os.path.join(workdir, _TRAININGS),
  )


def _recipe(table: Accuracies, root: str, clip_model: str) -> Mapping[str, Any]:
  """Fields of the target's training by dotted name."""
  if table.name == WORLD_TABLE:
    return {
      **WORLD_RECIPE,
      "correction": "log",
      "prompt.m": 4,
      "prompt.position": "end",
      "clip.dtype": "float32",
      "negatives": "sampled",
      "sampling.name": "uniform",
      "data.source": WORLD_TABLE,
      "method": "pomp",
    }
  packaged = unpack(load_config(f"{_RECIPE}:m={min(RELEASED)}"), "pretrain")
  fields = dict(packaged.flat())
  fields |= {"data.root": root, "clip.model": clip_model}
  return {name: value for name, value in fields.items() if name not in ("job", "seed")}


_RECIPE = "imagenet21k_vit_b16"  # packaged config of the paper's training


def _fields_of_sets(suite: str, root: str) -> dict[str, Any]:
  """Fields of the job evaluate that open a suite in a folder."""
  fields: dict[str, Any] = {"job": "evaluate", "evaluate.suite": suite}
  fields["evaluate.root"] = root
  if suite == "imagenet21k":
    # TFDS keeps its records in a folder with the data set's name.
    records = is_dir(join(root, "imagenet21k"))
    fields["evaluate.source"] = "tfds" if records else "folder"
  return fields


def _items(
  settings: Reproduce,
  table: Accuracies,
  replace: Callable[[Mapping[str, Any]], Any],
) -> list[EvaluationSet]:
  """The sets of a table, unopened.

  Args:
    settings: folders of the data.
    table: table with suites of sets.
    replace: `replace` of the job's config, which sets the fields of an evaluation.
  """
  found: list[EvaluationSet] = []
  for field, suite in {"root": table.suite, **table.other_suites}.items():
    fields = _fields_of_sets(suite, getattr(settings, field))
    evaluation = replace(fields)
    found += sets_to_evaluate(evaluation.evaluate, evaluation.data, evaluation.eval)
  return found


def _problem(opened: Any) -> str:
  """Reason why a set can't be opened; "" if the set can be opened."""
  try:
    opened()
  except InputError as error:
    return str(error)
  return ""


def _named_sets(unopened: Sequence[EvaluationSet]) -> accuracies.Sets:
  """The sets of a table of the paper, which suites define."""
  items = {item.name: item for item in unopened}
  names = list(items)
  return accuracies.Sets(names, lambda name: items[name].open())


def _world_sets(root: str) -> accuracies.Sets:
  """The sets of the rehearsal."""

  def opened(part: str, name: str) -> LabelledSet:
    if not exists(join(root, name)):
      raise SourceError(f"{root}: no folder {name}")
    return world_sets.open_set(root, name, part)

  return accuracies.Sets(
    list(world_sets.SETS),
    functools.partial(opened, "test"),
    functools.partial(opened, "train"),
  )
