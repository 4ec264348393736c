"""Files that can't be read, in every job that evaluates: counted, left out, told once."""

import json
import logging
import shutil

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.jobs import analyse, evaluate, predict, pretrain
from pomp_jax.train import setup
from tests.support.processes import run_in_processes
from tests.support.small_run import small_config

NAMES = load_class_list("eurosat").names
PER_CLASS = {"train": 2, "val": 3, "test": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder a class; of the images for validation one is damaged, of those for testing two."""
  root = tmp_path_factory.mktemp("images") / "eurosat"
  pixels = iter(world.source("train", images_per_class=1).images(np.arange(len(NAMES) * 10)))
  for name in NAMES:
    for split, count in PER_CLASS.items():
      (root / split / name).mkdir(parents=True)
      for number in range(count):
        Image.fromarray(next(pixels)).save(root / split / name / f"{number}.png")
  for file in (f"val/{NAMES[0]}/1.png", f"test/{NAMES[3]}/0.png", f"test/{NAMES[9]}/4.png"):
    (root / file).write_bytes(b"no image")
  return root


def config_of(images, **changes):
  settings = {
    "data.source": "folder",
    "data.root": str(images),
    "data.n_classes": 0,
    "data.max_corrupt": 0.05,
    "k": 4,
    "batch_size": 8,
    "steps": 4,
  }
  return small_config(**settings | changes)


def evaluate_config(images, job, **changes):
  settings = {
    "evaluate.suite": "base_to_new",
    "evaluate.source": "folder",
    "evaluate.root": str(images.parent),
    "evaluate.sets": "eurosat",
    "evaluate.prompts": "{}.",
    "analyse.prompts": "{}.",
    "data.max_corrupt": 0.05,
  }
  return small_config(job=job, **settings | changes)


def test_a_training_is_validated_and_tested_on_the_others(images, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("pomp_jax"), "propagate", True)
  caplog.set_level(logging.WARNING)
  results = pretrain.run(config_of(images), str(tmp_path / "run"))
  assert results["eval_unreadable"] == {"test": 2}
  top1 = results["top1"]["test"]
  assert top1 * 48 == pytest.approx(round(top1 * 48))
  told = [r.getMessage() for r in caplog.records if "can't be read" in r.getMessage()]
  assert [line.split(" images")[0] for line in told] == ["1 of 30", "2 of 50"]
  assert (tmp_path / "run/plots/predictions.png").exists()


def test_the_prompt_is_there_when_the_evaluation_fails(images, tmp_path, monkeypatch):
  """With more unreadable test images than allowed; when they are repaired, nothing is trained."""
  run = tmp_path / "run"
  broken = tmp_path / "eurosat"
  shutil.copytree(images, broken)
  config = config_of(broken, **{"data.max_corrupt": 0.02})
  with pytest.raises(CorruptDataError, match=r"2 of 50 images can't be read, 1 are allowed"):
    pretrain.run(config, str(run))
  prompt = load_prompt(run / "prompt.npz")
  assert not (run / "results.json").exists()
  shutil.copy(broken / "test" / NAMES[3] / "1.png", broken / "test" / NAMES[3] / "0.png")
  monkeypatch.setattr(setup.Run, "build_step", lambda job: pytest.fail("trains again"))
  results = pretrain.run(config, str(run))
  assert results["eval_unreadable"] == {"test": 1} and results["steps"] == 4
  np.testing.assert_array_equal(load_prompt(run / "prompt.npz").context, prompt.context)


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter"])
def test_methods_on_features(images, tmp_path, method):
  """Of the training images one is damaged as well."""
  broken = tmp_path / "eurosat"
  shutil.copytree(images, broken)
  (broken / "train" / NAMES[5] / "0.png").write_bytes(b"no image")
  config = config_of(broken, method=method, **{"probe.iterations": 20})
  results = pretrain.run(config, str(tmp_path / "run"))
  assert results["eval_unreadable"] == {"test": 2}
  # The classifier is there when the evaluation fails.
  (broken / "test" / NAMES[1] / "0.png").write_bytes(b"no image")
  with pytest.raises(CorruptDataError, match=r"3 of 50 images can't be read, 2 are allowed"):
    pretrain.run(config, str(tmp_path / "other"))
  assert (tmp_path / "other/classifier.npz").exists()
  assert not (tmp_path / "other/results.json").exists()


def test_analyse(images, tmp_path):
  config = evaluate_config(images, "analyse")
  results = analyse.run(config, str(tmp_path / "run"))
  sets = results["sets"]
  assert [(s["images"], s["unreadable"]) for s in sets.values()] == [(24, 1), (24, 1)]


def test_two_processes_leave_out_the_same(images, tmp_path):
  """Each decodes a part of a batch: what one can't read, both leave out."""
  config = evaluate_config(images, "evaluate", **{"evaluate.batch_size": 8})
  alone = evaluate.run(config, str(tmp_path / "alone"))
  probe = config_of(images, method="linear_probe", **{"probe.iterations": 20})
  jobs = [(config, [tmp_path / "both"] * 2), (probe, [tmp_path / "probe"] * 2)]
  run_in_processes(jobs, tmp_path / "jobs.json", count=2, devices=1)
  both = json.loads((tmp_path / "both/results.json").read_text())
  for results in (alone, both):
    assert [s["unreadable"] for s in results["sets"].values()] == [1, 1]
    assert [s["prompts"]["{}."]["images"] for s in results["sets"].values()] == [24, 24]
  assert both["accuracy"] == alone["accuracy"]
  assert json.loads((tmp_path / "probe/results.json").read_text())["eval_unreadable"]["test"] == 2


def test_predict_names_the_others(images, tmp_path, capsys, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("pomp_jax"), "propagate", True)
  caplog.set_level(logging.WARNING)
  folder = tmp_path / "images"
  shutil.copytree(images / "test" / NAMES[3], folder)
  (folder / "a\x1b[2Jb.png").write_bytes((folder / "1.png").read_bytes())
  (tmp_path / "names.txt").write_text("\n".join(NAMES))
  config = small_config(
    job="predict",
    **{
      "predict.images": str(folder),
      "predict.names": str(tmp_path / "names.txt"),
      "predict.prompt": "{}.",
    },
  )
  results = predict.run(config, str(tmp_path / "run"))
  assert list(results["images"]) == ["1.png", "2.png", "3.png", "4.png", "a\x1b[2Jb.png"]
  assert list(results["unreadable"]) == ["0.png"]
  assert results["unreadable"]["0.png"].startswith("not a readable image (none of BMP, ")
  (record,) = caplog.records
  assert "1 of 6 images can't be read; the first: 0.png: " in record.getMessage()
  printed = capsys.readouterr().out
  assert "a?[2Jb.png: " in printed and "\x1b" not in printed
  for file in folder.iterdir():
    file.write_bytes(b"no image")
  with pytest.raises(CorruptDataError, match="6 of 6 images can't be read"):
    predict.run(config, str(tmp_path / "other"))
  assert not (tmp_path / "other").exists()
