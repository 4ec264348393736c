"""The main job: what it leaves, and that it resumes exactly; see tests/faults for
real kills."""

import random
import shutil
from unittest import mock

import numpy as np
import pytest

from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import opening
from pomp_jax.files.checkpoints import Checkpoints, read_checkpoint
from pomp_jax.files.prompt_file import PromptFileError, load_prompt
from pomp_jax.files.run_folder import RunFolder, RunFolderError, read_json
from pomp_jax.report.labels import prompt_labels
from pomp_jax.train import batches, loop, pretrain, resume
from pomp_jax.train.results import finish, open_splits, writing_results
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import TrainingError, Watch
from tests.support.data_files import damage
from tests.support.small_run import small_config, trained

# Of a validation: the mean over classes decides, whatever the share of the images.
WRONG = {"top1": 1.0, "macro_top1": 0.0}


def test_a_run_leaves_its_folder(pretrained):
  names = {path.name for path in pretrained.iterdir() if "tfevents" not in path.name}
  assert names == {
    *(
      "config.json",
      "checkpoints",
      "features",
      "metrics.jsonl",
      "prompt.npz",
      "results.json",
    ),
    "class_names.json",
    *(
      "plots",
      "report.html",
      "prompt_best.npz",
      "results.csv",
      "classes.csv",
      "confusions.csv",
    ),
    *("results.md", "results.tex"),
  }
  plots = {path.name for path in (pretrained / "plots").iterdir()}
  assert plots == {"training.png", "accuracy.png", "predictions.png", "mistakes.png"}
  results = read_json(pretrained / "results.json")
  assert results["provenance"]["devices"]["number"] == 1
  same = {
    "job": "pretrain",
    "method": "pomp",
    "seed": 0,
    "steps": 12,
    "evaluated_step": 12,
  }
  same |= {"clip_model": "world", "n_classes": 300, "k": 20, "correction": "log"}
  same |= {"margin": 0.0}
  same |= {
    "reference": "hand_written",
    "roll_backs": 0,
    "unreadable_images": 0,
    "unreadable": {},
  }
  # Of 64 images an evaluation has one of each class at least.
  for key, count in (
    ("eval_images", 300),
    ("eval_classes", 300),
    ("eval_unreadable", 0),
  ):
    same[key] = dict.fromkeys(("base", "novel", "shifted"), count)
  same["top1"] = {
    split: scores["prompt"]["top1"] for split, scores in results["eval"].items()
  }
  timed = {"seconds", "eval_seconds", "images_per_second", "productive_share"}
  assert same == {key: results[key] for key in same}
  assert results.keys() == same.keys() | timed | {"eval", "by_class", "provenance"}
  seconds = read_checkpoint(pretrained / "checkpoints" / "12").meta["seconds"]
  assert results["seconds"] == round(seconds, 2) and results["eval_seconds"] > 0
  assert results["images_per_second"] == round(192 / seconds, 1)
  # windows are written late, all at the end
  assert 0 < results["productive_share"] <= 1
  assert set(results["eval"]) == {"base", "novel", "shifted"}
  scalars = RunFolder(pretrained).scalars()
  assert scalars["loss"][0] == [2, 4, 6, 8, 10, 12]
  assert scalars["validation_top1"][0] == [4, 8, 12]
  for split, scores in results["eval"].items():
    for prompt, score in scores.items():
      figures = {"images", "top1", "top1_interval", "top5", "macro_top1", "ece"}
      assert score.keys() - {"difference"} == figures
      assert ("difference" in score) == (prompt != "hand_written")
      assert scalars[f"test_top1/{split}/{prompt}"] == ([12], [score["top1"]])
  events = [path.read_bytes() for path in pretrained.glob("events.out.tfevents.*")]
  assert sum(b"test_top1/novel/prompt" in data for data in events) == 1
  prompt = load_prompt(pretrained / "prompt.npz")
  assert (prompt.context.shape[0], prompt.clip_model, prompt.config["k"]) == (
    4,
    "world",
    20,
  )


def test_its_figures_are_those_of_the_features(pretrained):
  """Of each split and prompt, by NumPy."""
  config, results = small_config(), RunFolder(pretrained).read_results()
  encoder, prompt = opening.open_encoder(config.clip), load_prompt(pretrained)
  splits = open_splits(
    config.data, config.eval.images, encoder, RunFolder(pretrained), None
  )
  for name, (_, split) in splits.items():
    texts = {"prompt": prompt, "hand_written": "a photo of a {}.", "class_name": "{}."}
    for label, one in texts.items():
      scores = split.features @ encoder.class_features(split.names, one).T
      own = np.take_along_axis(scores, split.labels[:, None], axis=1)
      place = (scores > own).sum(axis=1)
      found = results["eval"][name][label]
      assert found["images"] == len(place)
      assert found["top1"] == pytest.approx(np.mean(place == 0))
      assert found["top5"] == pytest.approx(np.mean(place < 5))
      of_classes = np.bincount(split.labels, place == 0) / np.bincount(split.labels)
      assert found["macro_top1"] == pytest.approx(of_classes.mean())


def test_its_prompt_has_one_name_in_plots_and_tables(pretrained, copy_of, drawn):
  """After the run's folder, as in the evaluation of its prompt."""
  folder = RunFolder(copy_of(pretrained, "demo"))
  finish(folder, read_json(folder.config), folder.read_results(), {})
  ticks = drawn[0].axes[0].get_yticklabels()
  assert [tick.get_text() for tick in ticks][:1] == prompt_labels(["x/demo/prompt.npz"])
  assert "| learned (demo) |" in (folder.path / "results.md").read_text()


def test_a_restart_has_its_features_and_the_selected_prompt(
  pretrained, copy_of, monkeypatch
):
  """The last four steps are taken again, and validated as the worst."""
  folder, scalars = copy_of(pretrained), RunFolder(pretrained).scalars()
  (folder / "results.json").unlink()
  shutil.rmtree(folder / "checkpoints" / "12")
  before = read_checkpoint(folder / "checkpoints" / "8").meta["seconds"]
  # A clock that is asked at the start and at the one checkpoint.
  clock = mock.Mock(side_effect=[50.0, 1050.0])
  monkeypatch.setattr(loop, "time", mock.Mock(monotonic=clock))
  monkeypatch.setattr(Encoder, "features_of_images", None)
  monkeypatch.setattr(PromptRun, "validation", lambda run: lambda state: WRONG)
  results = pretrain.run(small_config(**{"checkpoint.select": "best"}), str(folder))
  top1 = dict(zip(*scalars["validation_macro_top1"], strict=True))
  best = max((4, 8), key=lambda step: (top1[step], step))
  assert results["evaluated_step"] == best and results["steps"] == 12
  # Of all starts: twelve steps of 16 images.
  assert results["seconds"] == pytest.approx(before + 1000, abs=0.01)
  assert results["images_per_second"] == round(192 / (before + 1000), 1)
  state, found = (
    read_checkpoint(folder / "checkpoints" / str(best)).state,
    load_prompt(folder),
  )
  np.testing.assert_array_equal(found.context, state["params"]["context"])
  last = load_prompt(folder / "prompt_last.npz").context
  np.testing.assert_array_equal(last, load_prompt(pretrained).context)
  assert (last != found.context).any()
  for split, figures in RunFolder(pretrained).read_results()["eval"].items():
    assert results["eval"][split]["hand_written"] == figures["hand_written"]


def test_the_best_checkpoint_needs_validation_images(tmp_path, monkeypatch):
  config = small_config(**{"checkpoint.select": "best"})
  pretrain.check(config, str(tmp_path))
  monkeypatch.setattr(opening, "has_validation", lambda data: False)
  with pytest.raises(ConfigError, match="'last' for data without validation images"):
    pretrain.check(config, str(tmp_path))


def test_a_finished_run_does_nothing(pretrained):
  """The fixture holds that no file of it changes."""
  assert (
    pretrain.run(small_config(), str(pretrained))
    == RunFolder(pretrained).read_results()
  )


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_a_finished_run_whose_prompt_is_damaged_is_no_finished_run(
  pretrained, copy_of, how
):
  folder = copy_of(pretrained)
  damage(folder / "prompt.npz", how, np.random.default_rng(0))
  with pytest.raises(RunFolderError, match=r"prompt\.npz.*without .*results\.json"):
    pretrain.run(small_config(), str(folder))


@pytest.mark.parametrize(
  "error",
  [
    PermissionError("report.html"),
    PromptFileError("prompt.npz: x"),
    RunFolderError("plots: x"),
  ],
)
def test_results_that_cannot_be_written_are_an_error_that_says_what_is_left(
  tmp_path, error
):
  folder = RunFolder(tmp_path)
  with (
    pytest.raises(
      TrainingError, match="the training is done, its last checkpoint is in"
    ) as caught,
    writing_results(folder),
  ):
    raise error
  message = str(caught.value)
  assert (
    str(error) in message and str(folder.checkpoints) in message and "\n" not in message
  )


def test_another_config_is_refused(pretrained):
  with pytest.raises(ConfigError, match=r"config\.k: got 30, expected 20, with which"):
    pretrain.check(small_config(k=30), str(pretrained))
  with pytest.raises(
    ConfigError, match=r"config\.checkpoint\.select: got 'best', expected 'last'"
  ):
    pretrain.check(small_config(**{"checkpoint.select": "best"}), str(pretrained))
  pretrain.check(small_config(**{"log.every": 1}), str(pretrained))
  # Other devices may need them.
  pretrain.check(
    small_config(accumulate=2, **{"clip.memory_gib": 8.0}), str(pretrained)
  )
  assert "mesh.class_size" in resume.MAY_CHANGE


POSTERIOR = {
  "sampling.name": "posterior",
  "sampling.renew": 3,
  "sampling.exclude": "kin",
}
POSTERIOR |= {"sampling.ancestors_weight": 0.2}


def test_stopped_at_random_steps_it_goes_on_bit_for_bit(
  one_layer, tmp_path, monkeypatch
):
  """With a bank; tests/faults has uniform draws."""
  config = small_config(**{"clip.model": one_layer}, **POSTERIOR)
  taken, real, rng = [], Watch.step, random.Random(0)
  stops = [rng.randrange(5, 8), rng.randrange(9, 12)]

  def step(self, number, metrics):
    taken.append(number)
    real(self, number, metrics)
    if stops and number == stops[0]:
      raise KeyboardInterrupt

  statistics = []
  save = Checkpoints.save

  def recorded(self, number, state, meta, **others):
    statistics.append(meta["judge"])
    save(self, number, state, meta, **others)

  monkeypatch.setattr(Checkpoints, "save", recorded)
  whole = trained(config, tmp_path / "whole")
  of_whole = statistics[-1]
  monkeypatch.setattr(Watch, "step", step)
  while stops:
    with pytest.raises(KeyboardInterrupt):
      trained(config, tmp_path / "stopped")
    stops.pop(0)
  shutil.copytree(tmp_path / "stopped", tmp_path / "other")
  before = len(taken)
  found = trained(config, tmp_path / "stopped")
  # From the start, and then from the checkpoints of steps 4 and 8.
  assert taken[0] == 1 and 5 in taken[1:before] and taken[before:] == [9, 10, 11, 12]
  np.testing.assert_array_equal(found, whole)
  # The running mean of the loss is that of the whole run.
  assert of_whole["steps"] == 12 and statistics[-1] == of_whole
  folders = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
  assert folders[1].scalars()["loss"] == folders[0].scalars()["loss"]
  # The bank of the checkpoint decides: with another one the draws would differ.
  place, ones = (
    resume.place_bank,
    lambda state: state.replace(bank=np.ones_like(state.bank)),
  )
  monkeypatch.setattr(resume, "place_bank", lambda run, state: place(run, ones(state)))
  assert np.abs(trained(config, tmp_path / "other") - whole).max() > 1e-5


def test_class_specific_contexts_are_evaluated_on_their_classes_alone(
  one_layer, tmp_path
):
  changes = {
    "prompt.class_specific": True,
    "checkpoint.every": 2,
    "clip.model": one_layer,
  }
  results = pretrain.run(small_config(steps=2, **changes), str(tmp_path))
  assert load_prompt(tmp_path).context.shape[:2] == (300, 4)
  assert set(results["eval"]) == {"base"}


def test_each_process_reads_all_views_of_an_image(monkeypatch, tmp_path):
  monkeypatch.setattr(batches, "own_shard", lambda mesh: (0, 4))
  config = small_config(batch_size=8, **{"data.augment": "crop_flip", "data.views": 4})
  with pytest.raises(ConfigError, match="batch_size: got 8, expected a multiple of 16"):
    pretrain.check(config, str(tmp_path / "run"))
