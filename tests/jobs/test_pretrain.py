"""The main job: what it leaves, that it resumes exactly, and that it stops in time."""

import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import scipy.stats

from pomp_jax import inputs
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.hosts import Preempted
from pomp_jax.inference.metrics import wilson_interval
from pomp_jax.jobs import pretrain, repeat
from pomp_jax.prompt.mesh import make_mesh
from pomp_jax.train import loop, methods, setup
from pomp_jax.train.watch import TrainingError
from tests.support.report_page import Page
from tests.support.small_run import small_config, trained

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder of a run that was never stopped."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  pretrain.check(small_config(), str(workdir))
  pretrain.run(small_config(), str(workdir))
  return workdir


def context(workdir):
  return load_prompt(workdir / "prompt.npz").context


def test_a_run_leaves_its_folder(finished):
  names = {path.name for path in finished.iterdir() if "tfevents" not in path.name}
  assert names == {
    *("config.json", "checkpoints", "features", "metrics.jsonl", "prompt.npz", "results.json"),
    *("plots", "report.html"),
  }
  plots = {path.name for path in (finished / "plots").iterdir()}
  assert plots == {"training.png", "accuracy.png", "predictions.png"}
  results = json.loads((finished / "results.json").read_text())
  assert results["provenance"]["devices"]["number"] == jax.device_count()
  assert (results["job"], results["seed"], results["steps"]) == ("pretrain", 0, 12)
  assert (results["n_classes"], results["k"], results["correction"]) == (300, 20, "log")
  assert results["seconds"] > 0
  for split in ("base", "novel", "shifted"):
    for prompt in ("prompt", "hand_written", "class_name"):
      scores = results["eval"][split][prompt]
      assert 0 <= scores["top1"] <= scores["top5"] <= 1
  scalars = RunFolder(finished).scalars()
  assert scalars["loss"][0] == [2, 4, 6, 8, 10, 12]
  assert scalars["validation_top1"][0] == [4, 8, 12]
  for split, scores in results["eval"].items():
    for prompt, score in scores.items():
      assert scalars[f"test_top1/{split}/{prompt}"] == ([12], [score["top1"]])
  events = [path.read_bytes() for path in finished.glob("events.out.tfevents.*")]
  assert sum(b"test_top1/novel/prompt" in data for data in events) == 1
  prompt = load_prompt(finished / "prompt.npz")
  assert prompt.context.shape[0] == 4
  assert prompt.clip_model == "world"
  assert prompt.config["k"] == 20


@pytest.mark.parametrize(("method", "shared"), [("pomp", False), ("zero_shot", True)])
def test_a_restart_computes_no_feature_of_an_evaluation_image(
  method, shared, tmp_path, monkeypatch
):
  # The ensembles take most of the time.
  monkeypatch.setattr(methods, "_ZERO_SHOT", {"hand_written": "{}."})
  config = small_config(method=method)
  if shared:
    config = config.replace({"eval.cache": str(tmp_path / "cache")})
  first = pretrain.run(config, str(tmp_path / "run"))
  assert (tmp_path / "run" / "features").exists() == (not shared)
  # The last four steps are taken again, validated and evaluated.
  (tmp_path / "run" / "results.json").unlink()
  if method == "pomp":
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
  if shared:
    # Another run of the same images.
    shutil.rmtree(tmp_path / "run")
  monkeypatch.setattr(Encoder, "features_of_images", None)
  second = pretrain.run(config, str(tmp_path / "run"))
  assert second["eval"] == first["eval"]


def test_a_finished_run_does_nothing(finished):
  before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
  results = pretrain.run(small_config(), str(finished))
  assert results["steps"] == 12
  assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_config_is_refused(finished):
  with pytest.raises(ConfigError, match=r"config\.k: got 30, expected 20, with which"):
    pretrain.check(small_config(k=30), str(finished))
  pretrain.check(small_config(**{"log.every": 1}), str(finished))
  for changes in (
    {"on_bad_loss": "roll_back", "loss_spike": 2.0, "checkpoint.on_failure": "retry"},
    # Other devices may need them.
    {"accumulate": 2, "mesh.class_size": 2},
  ):
    pretrain.check(small_config(**changes), str(finished))


@pytest.mark.parametrize("accumulate, differ", [(1, True), (2, False)])
def test_half_the_devices_draw_otherwise_unless_each_draws_twice(
  finished, tmp_path, caplog, accumulate, differ
):
  """Eight devices, then four; what then differs is said."""
  config = small_config(accumulate=accumulate)
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  for step in (8, 12):
    shutil.rmtree(tmp_path / "checkpoints" / str(step))
  half = inputs.open_encoder(config, make_mesh(devices=jax.devices()[:4]))
  job = setup.prepare(config, RunFolder(tmp_path), encoder=half)
  with caplog.at_level("INFO"):
    logging.getLogger("pomp_jax").propagate = True
    done = loop.train(job)
  found = np.asarray(done.state.params["context"])
  assert ("DRAWS DIFFER" in caplog.text) == differ
  assert np.allclose(found, context(finished), rtol=0, atol=1e-6) != differ
  if differ:
    assert "4 groups of a batch" in caplog.text and "config.accumulate=2 keeps them" in caplog.text


def test_devices_that_do_not_divide_the_batch_are_refused(finished):
  message = (
    r"config\.batch_size: got 16, expected a multiple of 24 \(data axis 8 x accumulate 3\), or"
  )
  with pytest.raises(ConfigError, match=message):
    pretrain.check(small_config(accumulate=3), str(finished))


def test_the_seed_and_the_correction_matter(finished, tmp_path):
  for name, changes in [("seed", {"seed": 1}), ("correction", {"correction": "none"})]:
    found = trained(small_config(**changes), tmp_path / name)
    assert found.shape == context(finished).shape
    assert not np.array_equal(found, context(finished))


_RUN = """
import signal, sys
sys.path[:0] = [{root!r}]
from tests.support.small_run import small_config
from pomp_jax.jobs import pretrain
from pomp_jax.train.watch import Watch
step = Watch.step
def told(self, number, metrics):
  print(number, flush=True)
  if {killed} and number == 12:
    signal.pause()
  step(self, number, metrics)
Watch.step = told
pretrain.run(small_config(), {workdir!r})
"""


def start(workdir, killed=False):
  """The small run in a process of its own, which prints each step that it starts.

  One that is killed waits for it before its last step, however late it comes.
  """
  script = _RUN.format(root=str(ROOT), workdir=str(workdir), killed=killed)
  return subprocess.Popen(
    [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
  )


def test_killed_at_a_random_step_it_goes_on_bit_for_bit(finished, tmp_path):
  rng = random.Random(0)
  workdir = tmp_path / "killed"
  stops = [rng.randrange(3, 8), rng.randrange(9, 12)]
  first_steps = []
  for stop in stops:
    process = start(workdir, killed=True)
    steps = []
    for line in process.stdout:
      steps.append(int(line))
      if steps[-1] >= stop:
        # Somewhere in the step, or in the saving of the one before.
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        break
    assert process.wait() == -signal.SIGKILL
    first_steps.append(steps[0])
    assert not (workdir / "results.json").exists()
  process = start(workdir)
  first_steps.append(int(process.stdout.readline()))
  process.stdout.read()
  assert process.wait() == 0
  # It went on from a checkpoint, not from the start, once one was written.
  assert first_steps[0] == 1
  assert first_steps[-1] in (5, 9)
  np.testing.assert_array_equal(context(workdir), context(finished))
  whole, resumed = RunFolder(finished).scalars(), RunFolder(workdir).scalars()
  assert resumed["loss"] == whole["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  real = setup.make_train_step

  def poisoned(**arguments):
    step = real(**arguments)

    def poisoned_step(state, frozen, batch):
      if int(state.step) == 6:
        state = state.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))
      return step(state, frozen, batch)

    return poisoned_step

  monkeypatch.setattr(setup, "make_train_step", poisoned)
  with pytest.raises(TrainingError, match=r"is nan at step 7.*last good checkpoint"):
    pretrain.run(small_config(), str(workdir))
  assert not (workdir / "results.json").exists()
  assert not (workdir / "prompt.npz").exists()
  assert [path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()] == ["4"]
  monkeypatch.undo()
  results = pretrain.run(small_config(), str(workdir))
  assert results["steps"] == 12


def test_class_specific_contexts_are_evaluated_on_their_classes_alone(tmp_path):
  config = small_config(**{"prompt.class_specific": True, "steps": 2, "checkpoint.every": 2})
  results = pretrain.run(config, str(tmp_path))
  assert context(tmp_path).shape[:2] == (300, 4)
  assert set(results["eval"]) == {"base"}


def test_all_negatives_are_k_equal_to_n_in_any_number_of_chunks(tmp_path):
  short = {"steps": 3, "checkpoint.every": 3}
  runs = {
    "n": {"k": 300},
    "all": {"negatives": "all", "k": 5},
    "chunks": {"negatives": "all", "clip.n_chunks": 3, "clip.remat": "chunks"},
  }
  for name, changes in runs.items():
    results = pretrain.run(small_config(**short, **changes), str(tmp_path / name))
    assert results["k"] == results["n_classes"] == 300
  np.testing.assert_array_equal(context(tmp_path / "all"), context(tmp_path / "n"))
  np.testing.assert_allclose(context(tmp_path / "chunks"), context(tmp_path / "n"), atol=1e-6)


@pytest.mark.parametrize("values", [[0.3, 0.5], [0.61, 0.58, 0.6, 0.62, 0.55]])
def test_the_interval_over_seeds_is_students(values):
  expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  assert repeat.summary(values)["t_interval"] == pytest.approx(list(expected))
  assert repeat.summary(values[:1])["t_interval"] is None


def test_repeat_sums_the_seeds_up(tmp_path, monkeypatch):
  config = small_config(job="repeat", steps=2, **{"repeat.seeds": (3, 4)})
  repeat.check(config, str(tmp_path))
  starts = []

  def step(watch, number, metrics, real=loop.Watch.step):
    starts.append(number)
    if starts == [1, 2, 1]:
      os.kill(os.getpid(), signal.SIGTERM)
    real(watch, number, metrics)

  monkeypatch.setattr(loop.Watch, "step", step)
  with pytest.raises(Preempted, match="everything is saved at step 1 of 2"):
    repeat.run(config, str(tmp_path))
  assert not (tmp_path / "seed_4" / "results.json").exists()
  results = repeat.run(config, str(tmp_path))
  # What had finished, and the step that was saved, are not done again.
  assert starts == [1, 2, 1, 2]
  values = [
    json.loads((tmp_path / f"seed_{seed}" / "results.json").read_text())["eval"]["novel"]["prompt"][
      "top1"
    ]
    for seed in (3, 4)
  ]
  summary = results["eval"]["novel"]["prompt"]["top1"]
  assert summary["values"] == values
  assert summary["mean"] == pytest.approx(np.mean(values))
  assert summary["std"] == pytest.approx(np.std(values, ddof=1))
  n_images = results["eval"]["novel"]["prompt"]["images"]
  assert n_images == len(inputs.open_source(config.data, "novel", n_images=config.eval.images))
  found = results["eval"]["novel"]["prompt"]["top1_interval"]
  assert found == pytest.approx(wilson_interval(summary["mean"], n_images))
  by_hand = max(results["eval"]["novel"][p]["top1"]["mean"] for p in ("hand_written", "class_name"))
  assert results["gain"]["novel"]["gain"] == pytest.approx(summary["mean"] - by_hand)
  assert (tmp_path / "plots" / "accuracy.png").exists()
  page = Page((tmp_path / "report.html").read_text())
  assert f"{100 * summary['mean']:.1f} ± {100 * summary['std']:.1f}" in page.text
  assert len(page.images) == 1
