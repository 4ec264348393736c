"""Every job tells how far it is, in lines with the local time, and mentions each
compilation."""

import re

import numpy as np
from PIL import Image
import pytest

from pomp_jax import registry, world
from pomp_jax.evaluate import opening
from pomp_jax.evaluate.opening import open_encoder as open_anew
from pomp_jax.files import compilation, terminal
from pomp_jax.registry import METHODS
from tests.rooms.regions.region_jobs import regions_config
from tests.support.command_line import handlers_kept
from tests.support.small_run import run_job, small_config

SMALL = {
  "data.n_classes": 30,
  "k": 10,
  "batch_size": 8,
  "steps": 2,
  "checkpoint.every": 2,
}
SMALL |= {"eval.images": 40, "epochs": 1, "probe.iterations": 5}
SMALL |= {"tip.beta_steps": 3, "tip.alpha_steps": 3}
# By name: the changes to the config, and what the lines begin with.
JOBS = {
  "pretrain": (
    {"data.features": "stored"},
    (
      "loading ",
      "features of tr",
      "step ",
      "features of images",
      "class features",
      "scoring",
    )
    + (
      "compiling train step",
      "compiled train step in ",
      "trained; evaluating",
      "done; open the report: ",
    ),
  ),
  "evaluate": (
    {"evaluate.sets": "novel"},
    ("loading ", "evaluation", "scoring images", "compiling", "compiled answers in "),
  ),
  "analyse": (
    {"evaluate.sets": "novel"},
    ("analysis", "features of images", "class features"),
  ),
  "gradient_bias": (
    {"gradient_bias.k": (8,), "gradient_bias.images": 4, "gradient_bias.rows": 100}
    | {"gradient_bias.samplers": "uniform", "gradient_bias.corrections": "log"},
    ("gradient bias", "gradients"),
  ),
  "ablate": (
    {"ablate.grid": "seed=0|1"},
    ("ablation", "2 cells", "features of training images", "scoring")
    + ("compiling step of cells", "compiled step of cells in "),
  ),
  "segment": (
    {"segment.n_images": 2, "regions.source": "truth", "regions.crop": "context"},
    ("segmentation", "class features", "compiling", "compiled"),
  ),
  "tip_adapter_f": (
    {"job": "pretrain", "method": "tip_adapter_f"},
    (
      "features of images",
      "features of the training's views",
      "search of alpha and beta",
    ),
  ),
  "linear_probe": (
    {"job": "pretrain", "method": "linear_probe"},
    ("fitting linear probes",),
  ),
  "predict": (
    {"predict.prompt": "a {}.", "predict.names": "NAMES"},
    ("predicting", "image features", "class features"),
  ),
  "repeat": (
    {"repeat.seeds": (3,)},
    ("seeds 0/1", "step 2/2", "scoring", "trained; evaluating", "seeds 1/1"),
  ),
  "baselines": (
    {"baselines.methods": (("words", {"method": "zero_shot"}),)}
    | {"repeat.seeds": (3,), "data.n_classes": 5},
    ("baselines 0/1", "words: zero_shot", "baselines 1/1"),
  ),
  "calibrate": (
    {"calibrate.prompt": "a {}.", "calibrate.test": "base", "eval.images": 100},
    ("loading ", "features of images", "class features", "compiled outputs in "),
  ),
  "near_names": (
    {"near_names.names": "NAMES"},
    ("loading ", "class features of 2"),
  ),
  "export": (
    {"export.prompt": "a {}.", "export.format": "detic", "export.names": "NAMES"},
    ("loading ", "class features of 2"),
  ),
}
REGION_JOBS = {
  "detect": (
    {"regions.source": "truth", "regions.crop": "context"},
    ("class features", "compiling", "compiled"),
  ),
  "propose": (
    {"regions.source": "none", "propose.images": "detect", "propose.size": 48}
    | {"propose.stride": 1, "propose.batch_size": 1, "propose.prompt": "network"},
    ("checking all images", "class features", "regions 1/1", "recall 5/5"),
  ),
  "train_masks": (
    {},
    ("class features of texts", "step 4/4", "compiled train step in "),
  ),
}
# Jobs that are not run here, and why.
NOT_RUN = {
  "benchmark": "takes minutes",
  "page": "serves until it is stopped",
  "prepare": "takes a data set as it is distributed",
  "reproduce": "takes the paper's data sets",
}
# What a job prints as its result has no time.
RESULT = re.compile(r"one\.png: |/.*class_features\.npy: |\d\.\d{4}  cat  \|  dog")
_NUMBER = r"\d+(\.\d+)?(e[+-]\d+)?"
STEP = (
  rf"step \d+/2  loss {_NUMBER}  accuracy \d+\.\d%  data wait \d+%"
  rf"(  {_NUMBER} steps/s)?(  eta [\d:]+)?(  running for [\d:]+)?"
)


def with_marks(jobs):
  """Names of the jobs, those that compile or train for long in the second tier."""
  slow = pytest.mark.slow("compiles or trains for ten seconds")
  long = ("baselines", "train_masks")
  return [pytest.param(name, marks=slow if name in long else ()) for name in jobs]


@pytest.fixture(autouse=True)
def talkative(monkeypatch, few_texts):
  """No time between two lines, and silence is looked for at once."""
  monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
  monkeypatch.setattr(compilation, "_SHOWN_SECONDS", 0.0)
  monkeypatch.setattr(terminal, "_start_thread", lambda: terminal._open[-1].tick())


@pytest.fixture
def clip(one_layer, tmp_path, monkeypatch):
  """A CLIP in the test's folder, opened anew: what is compiled already would not be
  mentioned."""
  monkeypatch.setattr(opening, "open_encoder", open_anew)
  (tmp_path / "clip").symlink_to(one_layer)
  return {"clip.model": str(tmp_path / "clip")}


def lines_of(config, tmp_path, capsys):
  """Lines of the log without their times; what a job prints as its result has none."""
  folder = tmp_path / "run"
  with handlers_kept():
    terminal.set_up_logging()
    with compilation.shown_compilations():
      run_job(config, folder)
  assert not terminal._open
  assert not (folder / "plots").exists() or any((folder / "plots").iterdir())
  out, err = capsys.readouterr()
  lines = err.splitlines() + [
    line for line in out.splitlines() if not RESULT.match(line)
  ]
  found = []
  for line in lines:
    started = re.fullmatch(r"[0-2]\d:[0-5]\d:[0-5]\d  (.+)", line)
    assert started or line.startswith(" " * 10), line
    found.append(started[1] if started else line)
  return found


@pytest.mark.parametrize("name", with_marks(JOBS))
def test_a_job(name, clip, tmp_path, capsys):
  changes, descriptions = JOBS[name]
  (tmp_path / "names.txt").write_text("cat\ndog\n")
  changes = {
    field: str(tmp_path / "names.txt") if value == "NAMES" else value
    for field, value in changes.items()
  }
  if name == "predict":
    pixels = world.source("novel", n_images=1).images(np.arange(1))[0]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    changes["predict.images"] = str(tmp_path / "one.png")
  config = small_config(**SMALL | clip | {"job": name} | changes)
  lines = lines_of(config, tmp_path, capsys)
  assert missing(descriptions, lines) == []
  steps = [line for line in lines if re.match(r"step [1-9]", line)]
  assert bool(steps) == (name in ("pretrain", "repeat"))
  for line in steps:
    assert re.fullmatch(STEP, line), line


@pytest.mark.parametrize("name", with_marks(REGION_JOBS))
def test_a_job_of_regions(name, region_set, tmp_path, capsys):
  changes, descriptions = REGION_JOBS[name]
  lines = lines_of(regions_config(region_set, name, **changes), tmp_path, capsys)
  assert missing(descriptions, lines) == []


def missing(descriptions, lines):
  """Descriptions with which no line begins."""
  return [
    text for text in descriptions if not any(line.startswith(text) for line in lines)
  ]


def test_every_job_is_run_or_has_a_reason():
  assert {*JOBS, *REGION_JOBS, *NOT_RUN} - METHODS.keys() == set(registry.JOBS)
  assert not NOT_RUN.keys() & {*JOBS, *REGION_JOBS}
