"""Trains every combination of some fields' values, many of them in one program.

A restart runs the cells that are missing or have failed. A cell that fails is marked with its
error, and the others continue. With several processes all of them train every cell together, and
the first reads the folder and writes; runs of their own share the cells by `config.ablate.part`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import logging
import os
import time
from typing import Any

import jax
import numpy as np

from pomp_jax import hosts
from pomp_jax.clip import ClipError, TokenizeError
from pomp_jax.clip.text import activation_bytes
from pomp_jax.config import METHODS, ConfigError, Settings
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import inputs
from pomp_jax.files.pieces import Pieces
from pomp_jax.files.prompt_file import Prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, write_json, writing
from pomp_jax.files.terminal import steps_of
from pomp_jax.report.run_report import finish_run
from pomp_jax.rooms.ablation.ablation_report import write_cells
from pomp_jax.rooms.ablation.grid import Cell, make_cells
from pomp_jax.rooms.ablation.lanes import (
  Trained,
  curve_steps,
  lane_groups,
  lanes_at_a_time,
  measure_step_times,
  train_lanes,
)
from pomp_jax.rooms.ablation.plots import kind_of
from pomp_jax.rooms.ablation.shared import Shared
from pomp_jax.train import pretrain, setup
from pomp_jax.train.memory import activation_memory
from pomp_jax.train.watch import LossMonitor, TrainingError

log = logging.getLogger(__name__)

_FOLDER = "cells"
# Errors that make a cell bad input.
_REFUSED = (ClipError, ConfigError, SourceError, TokenizeError, VocabularyError)


def check(config: Settings, workdir: str) -> None:
  """Checks each cell as the pretrain job does; InputErrors of one line."""
  RunFolder(workdir).check(config.job)
  every = config.ablate.curve_every
  if every and not inputs.has_validation(config.data):
    raise ConfigError("ablate.curve_every", every, "0 for data without validation images")
  for cell in make_cells(config):
    with _named(cell):
      if not METHODS[cell.config.method].saves_prompt:
        takes = "'pomp'; job='baselines' compares the others"
        raise ConfigError("method", cell.config.method, takes)
      for field, value in {"on_bad_loss": "stop", "checkpoint.select": "last"}.items():
        if (found := cell.config.flat()[field]) != value:
          raise ConfigError(field, found, f"{value!r}: cells have no checkpoints")
      pretrain.check(cell.config, os.path.join(workdir, _FOLDER, cell.key))


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
  """Puts the cell's name in front of what is refused in it."""
  try:
    yield
  except _REFUSED as error:
    error.args = (f"cell {cell.name}: {error}",)
    raise


def run(config: Settings, workdir: str) -> dict[str, Any]:
  """Runs the cells that are missing, and sums up: returns what `results.json` holds.

  Raises:
    TrainingError: cells of this part have failed; everything is written nevertheless.
    One of `_REFUSED`: a cell that can't be, before anything is written.
  """
  start = time.monotonic()
  folder = RunFolder(workdir)
  cells = make_cells(config)
  index, count = config.ablate.part or (1, 1)
  groups = lane_groups(cells)[index - 1 :: count]
  missing, shared = list(filter(None, _missing(folder, groups))), Shared(folder)
  for group in missing:
    # CLIP and images stay open. Their checks read no field in which cells of a group differ.
    try:
      with _named(group[0]):
        shared.prepare(group[0].config, folder)
    except _REFUSED:
      raise
    except Exception:  # met again in the cell's turn, and marked
      if jax.process_count() > 1:
        raise
  if hosts.is_first():
    folder.create()
    write_json(folder.config, config.to_dict())
  log.info("%d cells, %d of them to do here", len(cells), sum(map(len, missing)))
  for group in steps_of(groups, "ablation", "programs"):
    _run_group(shared, folder, group)
  times = _step_times(shared, folder, cells) if config.ablate.curve_every else []
  seconds = time.monotonic() - start
  results = _write_results(config, folder, cells, times, seconds) if hosts.is_first() else None
  # Barrier: process 0 has written the results.
  results = hosts.from_first(results, "the ablation's results")
  own = {cell.key for group in groups for cell in group}
  failed = [cell for cell in results["cells"] if cell["error"] and cell["key"] in own]
  if failed:
    raise TrainingError(
      f"{len(failed)} of {len(own)} cells failed, the first, {failed[0]['name']}:"
      f" {failed[0]['error']}; the same command runs them again"
    )
  return results


def _run_group(shared: Shared, folder: RunFolder, group: Sequence[Cell]) -> None:
  """Trains and evaluates what is missing of some cells that can be lanes of one program."""
  [group] = _missing(folder, [group])
  if not group:
    return
  try:
    run = shared.prepare(group[0].config, folder)
    streams = [shared.stream(shared.prepare(cell.config, folder)) for cell in group]
    size = lanes_at_a_time(len(group), group[0].lanes or _most_lanes(run))
    trained = train_lanes(run, group, streams, size)
    for cell, one in zip(group, trained, strict=True):
      _finish(shared, folder, cell, one, size)
  except RunFolderError:  # not the cell's own
    raise
  except Exception as error:  # the other cells continue
    if jax.process_count() > 1:
      # The other processes may be computing the cell, and would wait for this one.
      raise
    if len(group) == 1:
      _fail(folder, group[0], error)
      return
    log.warning("%s: %s; these cells one by one", type(error).__name__, error)
    for cell in group:
      _run_group(shared, folder, [cell])


def _most_lanes(run: setup.PromptRun) -> int:
  """As many as their activations leave room for."""
  text_config = run.encoder.clip.config.text_config
  of_step = activation_bytes(text_config, run.n_prefix, run.token_budget)
  return int(activation_memory(run.clip) // of_step)


def _finish(shared: Shared, folder: RunFolder, cell: Cell, trained: Trained, n_lanes: int) -> None:
  """Evaluates a lane, all processes together, and writes its cell."""
  try:
    check = LossMonitor(cell.config.loss_spike)
    for step, loss in enumerate(trained.losses.tolist(), 1):
      check(step, {"loss": loss})
    if not np.isfinite(trained.context).all():
      raise TrainingError("the prompt is not finite after the last step")
  except TrainingError as error:
    _fail(folder, cell, error)
    return
  config, start = cell.config, time.monotonic()
  prompt = Prompt(
    trained.context, config.clip.model, config.prompt.position, config=config.to_dict()
  )
  scores, by_hand = shared.evaluate(config, prompt), shared.references(config)
  outcome = {
    figure: {split: score["prompt"][figure] for split, score in scores.items()}
    for figure in ("top1", "top1_interval", "top5", "images")
  }
  for name, figure in (("by_hand", "top1"), ("by_hand_interval", "top1_interval")):
    outcome[name] = {
      split: {label: score[figure] for label, score in prompts.items()}
      for split, prompts in by_hand.items()
    }
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
    outcome["curve"] = shared.curve(config, trained.curve)
  if not hosts.is_first():
    return
  store = _store(folder, cell)
  with writing(store.folder):
    store.folder.mkdir(exist_ok=True)
  save_prompt(store.path(cell.stem, "npz"), prompt)
  # Last: a cell with a piece is a finished cell.
  store.save(cell.stem, {"name": cell.name, "values": cell.values, **outcome})
  top1 = ", ".join(f"{split} {100 * value:.1f}%" for split, value in outcome["top1"].items())
  log.info("%s: top-1 %s (%.1f s, one of %d lanes)", cell.name, top1, trained.seconds, n_lanes)


def _step_times(shared: Shared, folder: RunFolder, cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """Times the kinds of cells, which differ in more than the seed, once all cells are there."""
  [missing] = _missing(folder, [cells])
  kinds: dict[str, Cell] = {}
  for cell in cells:
    kinds.setdefault(repr(kind_of(cell.values)), cell)
  if missing:
    log.info("%d cells are missing or have failed: no step is timed", len(missing))
    return []
  runs = [shared.prepare(cell.config, folder) for cell in kinds.values()]
  times = measure_step_times(runs, [shared.stream(run) for run in runs])
  return [
    {"values": kind_of(cell.values), **time._asdict()}
    for cell, time in zip(kinds.values(), times, strict=True)
  ]


def _fail(folder: RunFolder, cell: Cell, error: Exception) -> None:
  text = f"{type(error).__name__}: {' '.join(str(error).split())}"
  log.warning("%s failed: %s", cell.name, text)
  if hosts.is_first():
    found = {"name": cell.name, "values": cell.values, "error": text}
    _store(folder, cell).save(cell.stem, found)


def _write_results(
  config: Settings,
  folder: RunFolder,
  cells: Sequence[Cell],
  times: list[dict[str, Any]],
  seconds: float,
) -> dict[str, Any]:
  """Sums up the cells that are there; another part's process may add some meanwhile."""
  store = _store(folder, *cells)
  stored = lambda: {cell.key: piece.facts for cell in cells if (piece := store.load(cell.stem))}
  while True:
    found = stored()
    results = {
      "job": config.job,
      "grid": config.ablate.grid,
      "cells": list(found.values()),
      "missing": [cell.name for cell in cells if cell.key not in found],
      "step_times": times,
      "seconds_of_last_start": round(seconds, 1),
    }
    if found:
      with writing(folder.path):
        write_cells(folder, results)
      finish_run(folder, config.to_dict(), results)
    else:
      folder.write_results(results)
    if len(found) == len(stored()):
      log.info("table, plot and report are in %s", folder.path)
      return results


def _missing(folder: RunFolder, groups: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
  """The cells that are missing or have failed; all processes call it together."""
  cells = [cell for group in groups for cell in group]

  def fits(facts: dict[str, Any]) -> bool:
    if facts["error"]:
      return False
    shown = curve_steps(cells[0].curve_every, facts["steps"])
    return not shown or facts.get("curve", {}).get("steps") == shown

  todo = set(_store(folder, *cells).missing([cell.stem for cell in cells], fits))
  return [[cell for cell in group if cell.stem in todo] for group in groups]


def _store(folder: RunFolder, *cells: Cell) -> Pieces:
  return Pieces(folder.path / _FOLDER, {cell.stem: cell.key for cell in cells})
