"""Targets of the rehearsal, `pomp --config=reproduce:table=world`: written once, as the
paper's are.

  python -m docs.studies.reproduce_world FOLDER

Writes `pomp_jax/rooms/reproduce/records/world.json`: digests of the world's sets and
CLIP, right answers of the controls, accuracies of ten trainings (seeds 100 to 109),
and the released prompt, that of seed 100. Prints the share of the controls' answers
that bfloat16 moves, by which `tolerances.MOVED_BY_FLOAT16` is chosen. Minutes on 2 cores.
"""

from collections.abc import Mapping
import datetime
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

from pomp_jax.config import defaults
from pomp_jax.evaluate.opening import open_encoder
from pomp_jax.files.prompt_file import Prompt, load_prompt
from pomp_jax.files.run_folder import with_checksum
from pomp_jax.registry import load_job
from pomp_jax.rooms.reproduce import reproduce, world_sets
from pomp_jax.rooms.reproduce.accuracies import Reproduction, Sets
from pomp_jax.rooms.reproduce.measure import Measurer
from pomp_jax.rooms.reproduce.tables import ACCURACIES, WORLD_RECIPE

SEEDS = range(100, 110)
RECORD = pathlib.Path(reproduce.__file__).with_name("records") / "world.json"


def trained_prompts(folder: pathlib.Path, seeds: range) -> dict[int, Prompt]:
  """Trains the seeds as lanes of one program; prompts by seed."""
  grid = "seed=" + "|".join(map(str, seeds))
  fields = {"job": "ablate", "ablate.grid": grid, **WORLD_RECIPE}
  config = defaults("ablate").replace(fields)
  job = load_job("ablate")
  job.check(config, str(folder))
  job.run(config, str(folder))
  prompts = map(load_prompt, sorted((folder / "cells").glob("*.npz")))
  return {int(prompt.config["seed"]): prompt for prompt in prompts}


def reproduction(folder: pathlib.Path, root: pathlib.Path, dtype: str) -> Reproduction:
  """The rehearsal's first two stages, without a record."""
  clip = defaults("reproduce").clip
  encoder = open_encoder(clip.changed({"dtype": dtype}))
  measurer = Measurer(encoder, folder / dtype, dtype=dtype)
  sets = Sets(tuple(world_sets.SETS), lambda name: world_sets.open_set(root, name))
  table = ACCURACIES["world"]
  state = Reproduction(table, sets, measurer, "float32", record={}, quick=False)
  state.inputs()
  state.controls()
  return state


def moved(first: Reproduction, second: Reproduction) -> float:
  """Share of the answers to the controls that differ."""
  shares = []
  for piece, measured in first.measured.items():
    for label, one in measured.items():
      shares.append(np.mean(one.answers != second.measured[piece][label].answers))
  return float(np.mean(shares))


def trained_figures(
  state: Reproduction, prompts: Mapping[int, Prompt]
) -> dict[str, dict[int, int]]:
  """Right answers of each set by seed."""
  labels = {f"seed {seed}": prompt for seed, prompt in prompts.items()}
  figures = {}
  for name, labelled in state.opened.items():
    measured = state.measurer.measure(f"trained-{name}", "", labelled, labels)
    figures[name] = {seed: measured[f"seed {seed}"].right for seed in sorted(prompts)}
  return figures


def main(folder: pathlib.Path) -> None:
  """Writes the record."""
  root = folder / "data"
  world_sets.write_sets(root)
  state = reproduction(folder, root, "float32")
  record: dict[str, Any] = state.record_of()
  prompts = trained_prompts(folder / "seeds", SEEDS)
  right = trained_figures(state, prompts)
  images = {name: of["images"] for name, of in record["sets"].items()}
  record["trained"] = {
    name: [right[name][seed] / images[name] for seed in SEEDS] for name in right
  }
  released = prompts[SEEDS[0]].context
  record["released"] = {
    "m": len(released),
    "context": [[float(f"{value:.8g}") for value in row] for row in released],
    "right": {name: right[name][SEEDS[0]] for name in right},
  }
  date = datetime.datetime.now(datetime.UTC).date().isoformat()
  head = {"recorded_by": "docs.studies.reproduce_world", "date": date}
  content = json.loads(json.dumps({**head, **record}))
  RECORD.write_text(json.dumps(with_checksum(content)) + "\n", encoding="utf-8")
  for name, values in record["trained"].items():
    print(f"{name}: {100 * np.mean(values):.2f} +- {100 * np.std(values, ddof=1):.2f}")
  share = moved(state, reproduction(folder, root, "bfloat16"))
  print(f"bfloat16 moves {100 * share:.2f}% of the answers; {os.path.relpath(RECORD)}")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
