"""Trains every combination of some fields' values, many of them in one program.

The training of one combination is a cell. A restart runs the cells that are missing or
have failed. A cell that fails is marked with its error, and the others continue. The
processes of one run train every cell together, and only the first process reads and
writes the folder. Separate runs can divide the cells by `config.ablate.part`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import logging
import os
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip.text import activation_bytes
from pomp_jax.config.errors import require
from pomp_jax.errors import InputError
from pomp_jax.evaluate import opening
from pomp_jax.files.pieces import Pieces
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, writing
from pomp_jax.files.terminal import Progress
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.ablation import vmapped_training
from pomp_jax.rooms.ablation.ablation_report import write_cells
from pomp_jax.rooms.ablation.fields import Ablate, AblateConfig
from pomp_jax.rooms.ablation.grid import Cell, make_cells
from pomp_jax.rooms.ablation.plots import kind_of
from pomp_jax.rooms.ablation.shared_inputs import SharedInputs
from pomp_jax.rooms.ablation.vmapped_training import Trained, curve_steps, train_lanes
from pomp_jax.train import pretrain
from pomp_jax.train.memory import activation_memory
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import LossMonitor, TrainingError

log = logging.getLogger(__name__)

_FOLDER = "cells"


def check(config: AblateConfig, workdir: str) -> None:
  """Checks each cell as the pretrain job does.

  Raises:
    InputError: a cell can't be trained.
  """
  every = config.ablate.curve_every
  fits = not every or opening.has_validation(config.data)
  require(fits, "ablate.curve_every", every, "0 for data without validation images")
  for cell in make_cells(config.ablate.grid, config.replace):
    training = config.replace(cell.overrides)
    with _named(cell):
      accepted = "'pomp'; job='baselines' compares the others"
      require(training.method == "pomp", "method", training.method, accepted)
      values = training.flat()
      for field, fixed in {"roll_backs": 0, "checkpoint.select": "last"}.items():
        accepted = f"{fixed!r}: cells have no checkpoints"
        require(values[field] == fixed, field, values[field], accepted)
      pretrain.check(training, os.path.join(workdir, _FOLDER, cell.key))


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
  """Puts the cell's name in front of the message of an InputError."""
  try:
    yield
  except InputError as error:
    error.args = (f"cell {cell.name}: {error}",)
    raise


def run(config: AblateConfig, workdir: str) -> dict[str, Any]:
  """Runs the missing cells, and writes and returns the content of `results.json`.

  Raises:
    TrainingError: cells of this part have failed; all results are written first.
    InputError: a cell can't be trained; nothing is written.
  """
  start = time.monotonic()
  ablate = config.ablate
  folder = RunFolder(workdir)
  cells = make_cells(ablate.grid, config.replace)
  shared = SharedInputs(folder, config.replace)
  index, count = ablate.part or (1, 1)
  groups = vmapped_training.program_groups(cells)[index - 1 :: count]
  missing = []
  for group in groups:
    missing_cells = _missing(folder, group, ablate.curve_every)
    if missing_cells:
      missing.append(missing_cells)
  for group in missing:
    _check_group(shared, group)
  if hosts.is_first():
    folder.create(config.to_dict())
  n_cells = sum(len(group) for group in groups)
  n_missing = sum(len(group) for group in missing)
  log.info("%d cells, %d of them to do here", len(cells), n_missing)
  n_done = n_cells - n_missing
  with Progress(n_cells, n_done, "ablation", "cells", warmup=False) as progress:
    for group in missing:
      _run_group(shared, ablate, group)
      n_done += len(group)
      progress.update(n_done)
  step_times = []
  if ablate.curve_every:
    step_times = _step_times(shared, cells, ablate.curve_every)
  results = None
  if hosts.is_first():
    facts = {
      "grid": ablate.grid,
      "step_times": step_times,
      "seconds_of_last_start": round(time.monotonic() - start, 1),
    }
    results = _write_results(config.to_dict(), folder, cells, facts)
  # Barrier: process 0 has written the results.
  results = hosts.from_first(results, "the ablation's results")
  keys = {cell.key for group in groups for cell in group}
  failed = [cell for cell in results["cells"] if cell["error"] and cell["key"] in keys]
  if failed:
    raise TrainingError(
      f"{len(failed)} of {len(keys)} cells failed, the first, {failed[0]['name']}:"
      f" {failed[0]['error']}; the same command runs them again"
    )
  return results


def _check_group(shared: SharedInputs, group: Sequence[Cell]) -> None:
  """Opens the inputs that a group's cells share; InputError if one is unusable.

  The inputs stay open. Checking the first cell is enough: no check reads a field in
  which the cells of a group differ.
  """
  try:
    with _named(group[0]):
      shared.prepare(group[0])
  except InputError:
    raise
  except Exception:
    # With one process, continue: the error is raised again when the cell is trained,
    # and is stored as the cell's error then.
    if jax.process_count() > 1:
      raise


def _run_group(shared: SharedInputs, fields: Ablate, group: Sequence[Cell]) -> None:
  """Trains and evaluates a group's missing cells, as lanes of one program."""
  group = _missing(shared.folder, group, fields.curve_every)
  if not group:
    return
  try:
    runs = [shared.prepare(group[0])]
    for cell in group[1:]:
      # The cells of a group have equal frozen arrays: share those of the first.
      runs.append(dataclasses.replace(shared.prepare(cell), frozen=runs[0].frozen))
    streams = [shared.stream(run) for run in runs]
    most = fields.lanes or _most_lanes(runs[0])
    n_lanes = vmapped_training.lanes_of_program(len(group), most)
    trainings = train_lanes(runs, streams, n_lanes, fields.curve_every)
    for cell, run, trained in zip(group, runs, trainings, strict=True):
      _finish(shared, cell, run, trained, n_lanes)
  except RunFolderError:
    # End the run: the folder of all cells is unusable, which is no cell's error.
    raise
  except Exception as error:
    if jax.process_count() > 1:
      # The other processes may be computing the cell, and would wait for this process.
      raise
    if len(group) == 1:
      # The other cells continue.
      _fail(shared.folder, group[0], error)
      return
    log.warning("%s: %s; these cells one by one", type(error).__name__, error)
    for cell in group:
      _run_group(shared, fields, [cell])


def _most_lanes(run: PromptRun) -> int:
  """Number of lanes whose activations fit into the memory for activations."""
  step_bytes = activation_bytes(
    run.encoder.clip.config.text_config,
    run.n_prefix,
    run.token_budget,
    run.encoder.block,
    run.clip.dtype,
    run.encoder.platform,
  )
  return int(activation_memory(run.clip) // step_bytes)


def _finish(
  shared: SharedInputs,
  cell: Cell,
  run: PromptRun,
  trained: Trained,
  n_lanes: int,
) -> None:
  """Evaluates a trained lane on all processes, and writes its cell on the first."""
  try:
    monitor = LossMonitor(0.0)
    for step, loss in enumerate(trained.losses.tolist(), 1):
      monitor(step, {"loss": loss})
    if not np.isfinite(trained.context).all():
      raise TrainingError("the prompt is not finite after the last step")
  except TrainingError as error:
    _fail(shared.folder, cell, error)
    return
  start = time.monotonic()
  clip_name = run.encoder.clip.name
  prompt = Prompt(trained.context, clip_name, run.module.position, config=run.config)
  scores = shared.evaluate(run, prompt)
  by_hand = shared.references(run.encoder, run.data, run.eval)
  outcome: dict[str, Any] = {}
  for figure in ("top1", "top1_interval", "top5", "images"):
    outcome[figure] = {
      split: score["prompt"][figure] for split, score in scores.items()
    }
  outcome["by_hand"] = _figure_of_prompts(by_hand, "top1")
  outcome["by_hand_interval"] = _figure_of_prompts(by_hand, "top1_interval")
  outcome |= {
    "loss": float(np.mean(trained.losses[-10:])),
    "steps": len(trained.losses),
    "seconds": trained.seconds,
    "eval_seconds": time.monotonic() - start,
    "memory_mib": trained.memory_mib,
    "lanes": n_lanes,
    "error": None,
  }
  if trained.curve:
    outcome["curve"] = shared.curve(run, trained.curve)
  if not hosts.is_first():
    return
  store = _store(shared.folder, cell)
  with writing(store.folder):
    store.folder.mkdir(exist_ok=True)
  save_prompt(store.path(cell.stem, "npz"), prompt)
  # Save the piece last: a cell counts as finished as soon as it has a piece.
  store.save(cell.stem, {"name": cell.name, "values": cell.values, **outcome})
  top1 = ", ".join(
    f"{split} {100 * value:.1f}%" for split, value in outcome["top1"].items()
  )
  log.info(
    "%s: top-1 %s (%.1f s, one of %d lanes)", cell.name, top1, trained.seconds, n_lanes
  )


def _figure_of_prompts(
  scores_of_splits: Mapping[str, Mapping[str, Mapping[str, Any]]], figure: str
) -> dict[str, dict[str, Any]]:
  """One figure of each prompt, by split and by the prompt's label."""
  figures = {}
  for split, prompts in scores_of_splits.items():
    figures[split] = {label: score[figure] for label, score in prompts.items()}
  return figures


def _step_times(
  shared: SharedInputs, cells: Sequence[Cell], every: int
) -> list[dict[str, Any]]:
  """Times a step of each kind of cells; returns [] while a cell is missing.

  Cells of one kind differ only in the seed.
  """
  missing = _missing(shared.folder, cells, every)
  if missing:
    log.info("%d cells are missing or have failed: no step is timed", len(missing))
    return []
  first_cells: dict[str, Cell] = {}
  for cell in cells:
    first_cells.setdefault(repr(kind_of(cell.values)), cell)
  runs = [shared.prepare(cell) for cell in first_cells.values()]
  streams = [shared.stream(run) for run in runs]
  rows = []
  for cell, times in zip(
    first_cells.values(), vmapped_training.step_times(runs, streams), strict=True
  ):
    rows.append({"values": kind_of(cell.values), **times})
  return rows


def _fail(folder: RunFolder, cell: Cell, error: Exception) -> None:
  text = f"{type(error).__name__}: {' '.join(str(error).split())}"
  log.warning("%s failed: %s", cell.name, text)
  if hosts.is_first():
    _store(folder, cell).save(
      cell.stem, {"name": cell.name, "values": cell.values, "error": text}
    )


def _write_results(
  config: Mapping[str, Any],
  folder: RunFolder,
  cells: Sequence[Cell],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes the results of the finished cells.

  Runs of other parts may finish cells meanwhile: the results are then written again.
  """
  store = _store(folder, *cells)

  def stored() -> dict[str, dict[str, Any]]:
    facts_by_key = {}
    for cell in cells:
      piece = store.load(cell.stem)
      if piece:
        facts_by_key[cell.key] = piece.facts
    return facts_by_key

  while True:
    finished = stored()
    results = {
      "job": "ablate",
      **facts,
      "cells": list(finished.values()),
      "missing": [cell.name for cell in cells if cell.key not in finished],
    }
    if finished:
      with writing(folder.path):
        write_cells(folder, results)
      finish_run(folder, config, results)
    else:
      folder.write_results(results)
    if len(finished) == len(stored()):
      log.info("table, plot and report are in %s", folder.path)
      return results


def _missing(folder: RunFolder, cells: Sequence[Cell], curve_every: int) -> list[Cell]:
  """Lists the cells that are missing or have failed; called on all processes together.

  A cell without the validations that `curve_every` asks for is missing, too.
  """

  def fits(facts: dict[str, Any]) -> bool:
    if facts["error"]:
      return False
    validated_steps = curve_steps(curve_every, facts["steps"])
    if not validated_steps:
      return True
    return facts.get("curve", {}).get("steps") == validated_steps

  stems = set(_store(folder, *cells).missing([cell.stem for cell in cells], fits))
  return [cell for cell in cells if cell.stem in stems]


def _store(folder: RunFolder, *cells: Cell) -> Pieces:
  return Pieces(folder.path / _FOLDER, {cell.stem: cell.key for cell in cells})
