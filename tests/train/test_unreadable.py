"""Files that can't be read, in every job that evaluates: counted, left out, told once."""

import shutil

import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.loader import CorruptDataError
from pomp_jax.evaluate import predict
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.rooms.analysis import analyse
from pomp_jax.train import pretrain, setup
from tests.support.data_files import write_unreadable_set
from tests.support.small_run import small_config

NAMES = load_class_list("eurosat").names


@pytest.fixture(scope="module")
def images(shared):
  """A folder a class; of the images for validation one is damaged, of those for testing two."""
  return shared("unreadable", lambda folder: write_unreadable_set(folder / "eurosat")) / "eurosat"


@pytest.fixture(scope="module")
def config_of(one_layer):
  """A function: folder of the images, changes -> config of four steps."""
  settings = {"clip.model": one_layer, "data.source": "folder", "data.n_classes": 0}
  settings |= {"data.max_corrupt": 0.05, "k": 4, "batch_size": 8, "steps": 4}
  return lambda images, **more: small_config(**settings | {"data.root": str(images)} | more)


def test_a_failed_evaluation_leaves_the_prompt(config_of, images, tmp_path, caplog, monkeypatch):
  """With more unreadable test images than allowed; when they are repaired, nothing is trained."""
  run, broken = tmp_path / "run", shutil.copytree(images, tmp_path / "eurosat")
  config = config_of(broken, **{"data.max_corrupt": 0.02})
  with pytest.raises(CorruptDataError, match=r"2 of 50 images can't be read, 1 are allowed"):
    pretrain.run(config, str(run))
  prompt = load_prompt(run / "prompt.npz")
  assert not (run / "results.json").exists()
  shutil.copy(broken / "test" / NAMES[3] / "1.png", broken / "test" / NAMES[3] / "0.png")
  monkeypatch.setattr(setup.PromptRun, "build_step", lambda run: pytest.fail("trains again"))
  results = pretrain.run(config, str(run))
  # Validated and tested on the readable ones alone.
  assert results["eval_unreadable"] == {"test": 1} and results["steps"] == 4
  top1 = results["top1"]["test"]
  assert top1 * 49 == pytest.approx(round(top1 * 49))
  np.testing.assert_array_equal(load_prompt(run / "prompt.npz").context, prompt.context)
  told = [message for message in caplog.messages if "can't be read" in message]
  assert [line.split(" images")[0] for line in told[:2]] == ["1 of 30", "1 of 50"]
  assert results["unreadable"]["test"][0] in told[2]
  assert (run / "plots/predictions.png").exists()


def test_methods_on_features(config_of, images, tmp_path):
  broken = shutil.copytree(images, tmp_path / "eurosat")
  (broken / "train" / NAMES[5] / "0.png").write_bytes(b"no image")
  config = config_of(broken, method="linear_probe", **{"probe.iterations": 20})
  results = pretrain.run(config, str(tmp_path / "run"))
  assert results["eval_unreadable"] == {"test": 2}
  # The classifier is there when the evaluation fails.
  (broken / "test" / NAMES[1] / "0.png").write_bytes(b"no image")
  with pytest.raises(CorruptDataError, match=r"3 of 50 images can't be read, 2 are allowed"):
    pretrain.run(config, str(tmp_path / "other"))
  assert (tmp_path / "other/classifier.npz").exists()
  assert not (tmp_path / "other/results.json").exists()


def test_analyse(config_of, images, tmp_path):
  settings = {"evaluate.suite": "base_to_new", "evaluate.source": "folder"}
  settings |= {"evaluate.root": str(images.parent), "evaluate.sets": "eurosat"}
  config = config_of(images, job="analyse", **settings, **{"analyse.prompts": "{}."})
  sets = analyse.run(config, str(tmp_path))["sets"].values()
  assert [(found["images"], found["unreadable"]) for found in sets] == [(24, 1), (24, 1)]


def test_predict_names_the_others(one_layer, images, tmp_path, capsys, caplog):
  folder = shutil.copytree(images / "test" / NAMES[3], tmp_path / "images")
  (folder / "a\x1b[2Jb.png").write_bytes((folder / "1.png").read_bytes())
  (tmp_path / "names.txt").write_text("\n".join(NAMES))
  fields = {"predict.images": str(folder), "predict.names": str(tmp_path / "names.txt")}
  fields |= {"clip.model": one_layer, "predict.prompt": "{}."}
  config = small_config(job="predict", **fields)
  results = predict.run(config, str(tmp_path / "run"))
  assert list(results["images"]) == ["1.png", "2.png", "3.png", "4.png", "a\x1b[2Jb.png"]
  assert list(results["unreadable"]) == ["0.png"]
  assert results["unreadable"]["0.png"].startswith("not a readable image (none of BMP, ")
  (message,) = caplog.messages
  assert "1 of 6 images can't be read; the first: 0.png: " in message
  printed = capsys.readouterr().out
  assert "a?[2Jb.png: " in printed and "\x1b" not in printed
  for file in folder.iterdir():
    file.write_bytes(b"no image")
  with pytest.raises(CorruptDataError, match="6 of 6 images can't be read"):
    predict.run(config, str(tmp_path / "other"))
