"""POMP beside every baseline on the same classes: one table of accuracy, time and
memory.

Each method has a folder with one run folder per seed. On the CPU backend each method
runs in its own process, so that its peak memory is measured alone. A method that fails
is marked with its error, and the others continue. A restart skips finished runs.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import os
import tempfile
from typing import Any

import jax

from pomp_jax.config import METHODS, ConfigError, fields, validate, value_of_text
from pomp_jax.files.run_folder import RunFolder, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.hosts import peak_mib
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.baselines.fields import BaselinesConfig, RepeatConfig
from pomp_jax.rooms.baselines.own_process import ProcessError, in_own_process
from pomp_jax.rooms.baselines.repeat import (
  Replace,
  Runs,
  of_seeds,
  runs_of_seeds,
  summary,
)
from pomp_jax.rooms.baselines.reports import method_dots, top1_of_prompts
from pomp_jax.train import pretrain
from pomp_jax.train.watch import TrainingError

log = logging.getLogger(__name__)

_EXPECTED = "one or more methods (label, {field: value}), no label twice"


def check(config: BaselinesConfig, workdir: str) -> None:
  """Checks each method and seed as the pretrain job does."""
  for runs in method_runs(config.baselines.methods, config.replace, workdir).values():
    for training, folder in runs.values():
      pretrain.check(training, folder)


def run(config: BaselinesConfig, workdir: str) -> dict[str, Any]:
  """Runs the methods that have not finished yet, and writes the comparison.

  Args:
    config: config of the job.
    workdir: folder of the comparison, with a folder for each method.

  Returns:
    The content of `results.json`.

  Raises:
    TrainingError: methods have failed. The results of the others are written.
  """
  folder = RunFolder(workdir)
  runs_by_label = method_runs(config.baselines.methods, config.replace, workdir)
  folder.create()
  methods: dict[str, Any] = {}
  failed: dict[str, str] = {}
  with tempfile.TemporaryDirectory() as programs:
    items = runs_by_label.items()
    for label, runs in steps_of(items, "baselines", "methods", len(items)):
      first_training, _ = next(iter(runs.values()))
      method = first_training.method
      log.info("%s: %s", label, method)
      method_folder = RunFolder(os.path.join(workdir, label))
      outcome = _outcome(method_folder, runs, programs)
      if "error" in outcome:
        failed[label] = outcome["error"]
        log.info("%s failed: %s", label, outcome["error"])
      else:
        methods |= _rows(label, method, outcome)

  results = {
    "job": config.job,
    "seeds": list(config.repeat.seeds),
    "settings": config.baselines.methods,
    "methods": methods,
    "failed": failed,
  }
  if methods:
    top1_by_label = {label: row["top1"] for label, row in methods.items()}
    with writing(folder.plots):
      method_dots(folder.plots / "accuracy.png", top1_by_label)
  finish_run(folder, config.to_dict(), results)
  for label, row in methods.items():
    figures = []
    for name, top1 in row["top1"].items():
      figures.append(f"{name} {100 * top1['mean']:.1f}%")
    log.info("%s: %s", label, ", ".join(figures))
  if failed:
    label, error = next(iter(failed.items()))
    raise TrainingError(
      f"{len(failed)} methods failed, the first, {label}: {error}; the same command runs them again"
    )
  return results


def method_runs(
  methods: Sequence[tuple[str, Mapping[str, Any]]], replace: Replace, workdir: str
) -> dict[str, Runs]:
  """Makes the trainings of each row of `config.baselines.methods`, by label.

  Args:
    methods: label of each row, and its fields that differ from the job's config.
    replace: copies the job's config with other values.
    workdir: folder that gets a folder for each label.

  Raises:
    ConfigError: there is no row, or a row has a wrong label or value.
  """
  runs_by_label: dict[str, Runs] = {}
  for label, values in methods:
    if not label.replace("_", "").isalnum() or label in runs_by_label:
      raise ConfigError("baselines.methods", label, _EXPECTED)
    if "job" in values:
      raise ConfigError(
        "baselines.methods", label, "rows without a job: each is a training"
      )
    config = _config_of_row(values, replace)
    validate(config.replace({"job": "pretrain"}))
    folder = os.path.join(workdir, label)
    runs_by_label[label] = runs_of_seeds(config.repeat.seeds, config.replace, folder)
  if not runs_by_label:
    raise ConfigError("baselines.methods", methods, _EXPECTED)
  return runs_by_label


def _config_of_row(values: Mapping[str, Any], replace: Replace) -> RepeatConfig:
  """Makes a row's config, as the job repeat, which has the seeds.

  `runs_of_seeds` turns it into one pretrain job per seed.
  """
  changes: dict[str, Any] = {"job": "repeat"}
  for field, value in values.items():
    changes[field] = value_of_text(field, value) if isinstance(value, str) else value
  config: RepeatConfig = replace(changes)
  method = METHODS.get(config.method)
  if method is None:
    # The caller's `validate` raises an error that names the unknown method.
    return config
  if method.pixels and config.data.features == "stored":
    # Stored features serve only the methods that leave the image tower as it is.
    config = config.replace({"data.features": "online"})
  starts_from_best = config.prompt.init == fields.BEST and "prompt.init" not in values
  if starts_from_best and not method.saves_prompt:
    # A method that saves no prompt can't start from the best words of
    # `configs/own.py:best`: give it its usual initial context.
    m = config.prompt.m or fields.Prompt.m
    config = config.replace({"prompt.init": "", "prompt.m": m})
  return config


def _outcome(folder: RunFolder, runs: Runs, programs: str) -> dict[str, Any]:
  """Runs a method, or reads the outcome that an earlier start has stored.

  Returns:
    {"seeds": .., "runs": results of each seed, "peak_mib": ..}, or {"error": ..}.
  """
  all_ran = all(RunFolder(workdir).results.exists() for _, workdir in runs.values())
  if all_ran:
    stored = folder.finished(seeds=list(runs))
    if stored is not None:
      return stored
  outcome: dict[str, Any]
  if jax.default_backend() == "cpu":
    try:
      outcome = in_own_process(_run_seeds, runs, programs)
    except ProcessError as error:
      outcome = {"error": str(error)}
  else:
    # A second process could not open the device.
    outcome = _run_seeds(runs, programs) | {"peak_mib": None}
  if "error" not in outcome:
    outcome["seeds"] = list(runs)
    if all_ran:
      # Every seed had finished before: the peak would be that of reading files.
      outcome["peak_mib"] = None
    folder.write_results(outcome)
  return outcome


def _run_seeds(runs: Runs, programs: str) -> dict[str, Any]:
  """Runs all seeds of a method; on the CPU backend it is called in a new process.

  Args:
    runs: config and folder of each seed's training.
    programs: folder of compiled programs, which the seeds share.

  Returns:
    {"runs": results of each seed, "peak_mib": peak memory of this process}, or
    {"error": the first failure in one line}.
  """
  _share_programs(programs)
  results = []
  try:
    for training, workdir in runs.values():
      results.append(pretrain.run(training, workdir))
  except Exception as error:  # the other methods continue
    message = f"{type(error).__name__}: {error}"
    return {"error": " ".join(message.split())}
  # Convert the results through JSON, so that they equal those that a restart reads.
  plain_results = json.loads(json.dumps(results, default=float))
  return {"runs": plain_results, "peak_mib": round(peak_mib(), 1)}


def _share_programs(folder: str) -> None:
  """Lets later seeds load the programs that the first seed has compiled."""
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _rows(label: str, method: str, outcome: dict[str, Any]) -> dict[str, Any]:
  """Rows of the table by label: one for a method, but one a prompt for zero-shot."""
  runs = outcome["runs"]
  first = runs[0]
  row = {
    "method": method,
    "n_runs": len(runs),
    "n_classes": first["n_classes"],
    "steps": first.get("steps"),
    "not_evaluated": first.get("not_evaluated", []),
    "seconds": summary([run["seconds"] for run in runs]),
    "peak_mib": outcome["peak_mib"],
  }
  top1 = top1_of_prompts(
    {"eval": of_seeds(runs), "eval_classes": first["eval_classes"]}
  )
  if method == "zero_shot":
    return {f"{label}_{text}": row | {"top1": top1[text]} for text in top1}
  # A method that learns no prompt has its scores under the method's name.
  name = "prompt" if "prompt" in top1 else method
  return {label: row | {"top1": top1[name]}}
