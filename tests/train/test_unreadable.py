"""Files that can't be read, in every job that evaluates: counted, left out, told
once."""

import logging
import pathlib
import shutil

import numpy as np
import pytest

from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.skipped_images import CorruptDataError
from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import image_splits, opening, predict
from pomp_jax.evaluate.ranking import evaluate
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train import pretrain
from pomp_jax.train.results import figures_of_splits, open_splits
from pomp_jax.train.training import PromptRun
from pomp_jax.train.watch import Watch
from tests.support.data_files import write_unreadable_set
from tests.support.small_run import small_config

NAMES = load_class_list("eurosat").names


@pytest.fixture(scope="module")
def images(shared):
  """A folder a class; of the images for validation one is damaged, of those for
  testing two."""
  return (
    shared("unreadable", lambda folder: write_unreadable_set(folder / "eurosat"))
    / "eurosat"
  )


@pytest.fixture(scope="module")
def config_of(one_layer):
  """A function: folder of the images, changes -> config of four steps."""
  settings = {"clip.model": one_layer, "data.source": "folder", "data.n_classes": 0}
  settings |= {"data.max_corrupt": 0.05, "k": 4, "batch_size": 8, "steps": 4}
  return lambda images, **more: small_config(
    **settings | {"data.root": str(images)} | more
  )


def test_each_unreadable_picture_is_named_before_the_run(config_of, images, caplog):
  """Of training, validation and test, and in which of them are too many."""
  opening.check_readable(config_of(images, **{"data.max_corrupt": 0.1}).data, 0)
  named = [
    line.split(": can't be read")[0]
    for line in caplog.messages
    if "can't be read" in line
  ]
  expected = {file for file in images.glob("*/*/*") if file.read_bytes() == b"no image"}
  assert set(named) == {str(file) for file in expected} and len(named) == 3
  # 1 of 30 images for validation is too much, 2 of 50 test images as well.
  for share, message in (
    (0.038, "2 of 50 images"),
    (0.03, "1 of 30 images|2 of 50 images"),
  ):
    with pytest.raises(SourceError, match=message):
      opening.check_readable(config_of(images, **{"data.max_corrupt": share}).data, 0)


def test_a_large_folder_is_not_decoded_before_the_run(
  config_of, images, caplog, monkeypatch
):
  monkeypatch.setattr(image_splits, "_MOST_DECODED", 99)  # there are 100
  opening.check_readable(config_of(images, **{"data.max_corrupt": 0.0}).data, 0)
  assert caplog.messages == []


def test_a_failed_evaluation_leaves_the_prompt(
  config_of, images, tmp_path, caplog, monkeypatch
):
  """With more unreadable test images than allowed; when they are repaired, nothing
  is trained."""
  run, broken = tmp_path / "run", shutil.copytree(images, tmp_path / "eurosat")
  config = config_of(broken, **{"data.max_corrupt": 0.02})
  with pytest.raises(
    CorruptDataError, match=r"2 of 50 images can't be read, 1 are allowed"
  ):
    pretrain.run(config, str(run))
  prompt = load_prompt(run / "prompt.npz")
  assert not (run / "results.json").exists()
  shutil.copy(
    broken / "test" / NAMES[3] / "1.png", broken / "test" / NAMES[3] / "0.png"
  )
  monkeypatch.setattr(PromptRun, "build_step", lambda run: pytest.fail("trains again"))
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


def test_a_resumed_run_remembers_what_it_could_not_read(
  config_of, images, tmp_path, monkeypatch
):
  """The picture is repaired while the run is stopped, so only the checkpoint knows."""
  broken = shutil.copytree(images, tmp_path / "eurosat")
  picture = broken / "train" / NAMES[4] / "1.png"
  content = picture.read_bytes()
  picture.write_bytes(b"no image")
  fields = {"data.max_corrupt": 0.1, "steps": 6, "checkpoint.every": 3}
  config = config_of(broken, **fields)

  def stop(self, number, metrics):
    if number == 4:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Watch, "step", stop)
    with pytest.raises(KeyboardInterrupt):
      pretrain.run(config, str(tmp_path / "run"))
  picture.write_bytes(content)
  results = pretrain.run(config, str(tmp_path / "run"))
  assert results["unreadable_images"] == 1
  assert results["unreadable"]["train"] == [str(picture)]


def test_a_part_of_the_images_names_its_own_unreadable_ones(
  config_of, images, tmp_path
):
  """35 of the 50 test images: their places in the part are not those in the split."""
  config = config_of(images, **{"eval.images": 35, "data.max_corrupt": 0.1})
  encoder = opening.open_encoder(config.clip)
  splits = open_splits(config.data, 35, encoder, RunFolder(tmp_path), None)
  source, split = splits["test"]
  files = [pathlib.Path(source.where(index)) for index in range(35)]
  whole = sorted((images / "test").glob("*/*"))
  damaged = [file for file in files if file.read_bytes() == b"no image"]
  assert damaged and all(files.index(file) != whole.index(file) for file in damaged)
  scores = evaluate(encoder, {"test": split}, {"prompt": "{}."}, "prompt")["test"][
    "prompt"
  ]
  scores = {"test": {"prompt": scores.figures() | scores.by_class()}}
  found, _ = figures_of_splits(splits, scores, "prompt", "prompt")
  assert found["unreadable"] == {"test": [str(file) for file in damaged]}
  n_readable = 35 - len(damaged)
  assert found["eval_images"] == {"test": n_readable}
  assert found["eval"]["test"]["prompt"]["images"] == n_readable
  assert found["eval_unreadable"] == {"test": len(damaged)}
  assert found["eval_classes"] == {"test": 10}
  readable = [file for file in files if file not in damaged]
  assert [NAMES[label] for label in split.labels] == [
    file.parent.name for file in readable
  ]
  sized = encoder.sized(source)
  pixels = np.stack([sized.image(files.index(file)) for file in readable])
  np.testing.assert_allclose(split.features, encoder.image_features(pixels), atol=1e-6)


def test_methods_on_features(config_of, images, tmp_path):
  broken = shutil.copytree(images, tmp_path / "eurosat")
  (broken / "train" / NAMES[5] / "0.png").write_bytes(b"no image")
  config = config_of(broken, method="linear_probe", **{"probe.iterations": 20})
  results = pretrain.run(config, str(tmp_path / "run"))
  assert results["eval_unreadable"] == {"test": 2}
  # The classifier is there when the evaluation fails.
  (broken / "test" / NAMES[1] / "0.png").write_bytes(b"no image")
  with pytest.raises(
    CorruptDataError, match=r"3 of 50 images can't be read, 2 are allowed"
  ):
    pretrain.run(config, str(tmp_path / "other"))
  assert (tmp_path / "other/classifier.npz").exists()
  assert not (tmp_path / "other/results.json").exists()


def test_predict_names_the_others(one_layer, images, tmp_path, capsys, caplog):
  folder = shutil.copytree(images / "test" / NAMES[3], tmp_path / "images")
  (folder / "a\x1b[2Jb.png").write_bytes((folder / "1.png").read_bytes())
  (tmp_path / "names.txt").write_text("\n".join(NAMES))
  fields = {"predict.images": str(folder), "predict.names": str(tmp_path / "names.txt")}
  fields |= {"clip.model": one_layer, "predict.prompt": "{}."}
  config = small_config(job="predict", **fields)
  results = predict.run(config, str(tmp_path / "run"))
  assert list(results["images"]) == [
    "1.png",
    "2.png",
    "3.png",
    "4.png",
    "a\x1b[2Jb.png",
  ]
  assert list(results["unreadable"]) == ["0.png"]
  assert results["unreadable"]["0.png"].startswith(
    "not a readable image (none of BMP, "
  )
  (message,) = [
    record.getMessage()
    for record in caplog.records
    if record.levelno >= logging.WARNING
  ]
  assert "1 of 6 images can't be read; the first: 0.png: " in message
  printed = capsys.readouterr().out
  assert "a?[2Jb.png: " in printed and "\x1b" not in printed
  for file in folder.iterdir():
    file.write_bytes(b"no image")
  with pytest.raises(CorruptDataError, match="6 of 6 images can't be read"):
    predict.run(config, str(tmp_path / "other"))
