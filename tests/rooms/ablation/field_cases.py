"""Runs and cases of the fields of `ablate`, see `tests/rooms/test_each_field.py`."""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib
from typing import Any

import numpy as np

from pomp_jax.config import Config
from pomp_jax.rooms.ablation import ablate, shared_inputs, vmapped_training
from pomp_jax.train import batches, pretrain, results, setup
from pomp_jax.train.training import PromptRun
from tests.support.field_cases import TRAINING
from tests.support.recorded_calls import Calls, Case, check_and_run, clip_case

CELLS = TRAINING | {
  "job": "ablate",
  "ablate.grid": "batch_size=4|6|8;seed=0|1",
}


def ablate_cells(calls: Calls, config: Config, folder: pathlib.Path) -> None:
  """Cells without a training: losses of 1, but the 25th of 9."""
  seen = calls.seen
  calls.open_encoder()
  calls.note_split(batches, "split_features")
  calls.note(pretrain, "check", lambda *args: None)
  calls.note(setup, "prepare")
  calls.note(ablate, "activation_memory")
  calls.note(ablate, "LossMonitor")
  calls.note(ablate, "_step_times", lambda *args: [])
  calls.note(ablate, "_write_results")
  calls.note(ablate, "train_lanes", _untrained)
  calls.note(results, "open_splits")
  calls.note(shared_inputs.SharedInputs, "stream", lambda _, run: None)
  calls.note(shared_inputs, "evaluate", lambda *args: {})
  calls.note(shared_inputs, "topk_accuracy", lambda *args, **kwargs: {"top1": 0.5})
  calls.skip(ablate, "write_cells", "finish_run")
  with contextlib.suppress(ablate.TrainingError):
    check_and_run(config, folder)
  seen["grid"] = seen["_write_results.facts"]["grid"]
  seen["batches"] = [run.loop.batch_size for run in seen["stream.run*"]]
  seen["images"] = set(seen.get("open_splits.n_images*", ()))
  templates = set()
  for prompts in seen.get("evaluate.prompts*", ()):
    templates |= {prompt for prompt in prompts.values() if isinstance(prompt, str)}
  seen["templates"] = templates


def _untrained(
  runs: Sequence[PromptRun], streams: Any, size: int, curve_every: int
) -> Iterator[vmapped_training.Trained]:
  """What the cells have learned: contexts of zeros."""
  losses = np.ones(30, np.float32)
  losses[24] = 9
  for run in runs:
    context = np.zeros((run.prompt.m, run.encoder.clip.text_width), np.float32)
    steps = vmapped_training.curve_steps(curve_every, run.total_steps)
    curve = dict.fromkeys(steps, context)
    yield vmapped_training.Trained(context, losses, 1.0, 1.0, curve)


CASES = {
  "the CLIP of ablate": clip_case("ablate", CELLS),
  "cells": Case(
    run=ablate_cells,
    fields=CELLS,
    rows={
      "ablate.grid": (
        "batch_size=10|12;seed=0|1",
        {"batches": [12, 12], "grid": "batch_size=10|12;seed=0|1"},
      ),
      "ablate.part": ((2, 2), "batches", [12, 12]),
      "ablate.lanes": (1, "train_lanes.size"),
      "ablate.curve_every": (4, {"train_lanes.curve_every": 4, "_step_times.every": 4}),
    },
  ),
  "the end of cells": Case(
    run=ablate_cells,
    fields=CELLS,
    rows={
      "eval.images": (12, "images", {12}),
      "eval.template": ("my {}.", "templates", {"my {}.", "{}."}),
      "data.max_corrupt": (0.5, "split_features.max_corrupt"),
    },
  ),
  "lanes of cells": Case(
    run=ablate_cells,
    fields=CELLS,
    rows={
      "clip.memory_gib": (1e-4, "train_lanes.size", 1),
    },
  ),
}
