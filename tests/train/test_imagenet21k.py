"""A small ImageNet-21K as it is distributed, all the way: records, features, prompt, figures."""

import logging

import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Data
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.evaluate import Classifier, inputs
from pomp_jax.files.run_folder import RunFolder, read_json
from pomp_jax.rooms.benchmark.synthetic_images import encode, natural_image
from tests.support.command_line import handlers_kept, run_main
from tests.support.data_files import tar_bytes
from tests.support.small_run import run_job, settings

CLASSES = load_class_list("imagenet21k")
# Classes with names that the world's CLIP has positions for, in the order of ids.
_SHORT = [c for c, name in enumerate(CLASSES.names) if len(name) < 9]
SYNSETS = [CLASSES.synsets[c] for c in _SHORT[::30][:40]]
N_IMAGES = 4  # a class
# Two of the four images of three classes: empty, no image, cut off.
DAMAGES = {7: lambda jpeg: b"", 20: lambda jpeg: b"<html>404</html>", 31: lambda jpeg: jpeg[:400]}


def write_archive(path):
  """Writes a tar of a tar a synset."""
  different, tars = [encode(natural_image(seed, 48, 64)) for seed in range(20)], {}
  for c, synset in enumerate(SYNSETS):
    files = {f"{synset}_{i}.JPEG": different[(c + 7 * i) % 20] for i in range(N_IMAGES)}
    for name in list(files)[::2] if c in DAMAGES else ():
      files[name] = DAMAGES[c](files[name])
    tars[f"{synset}.tar"] = tar_bytes(files)
  path.write_bytes(tar_bytes(tars))
  return path


def grouped(group, **fields):
  return {f"{group}.{name}": value for name, value in fields.items()}


def prepare(workdir, **changes):
  """Makes records of two shots and one held-out image a class."""
  fields = {"dataset": "imagenet21k", "shots": 2, "held_out": 1, "workers": 1} | changes
  return run_job(settings(job="prepare", **grouped("prepare", **fields)), workdir)


@pytest.fixture(scope="module")
def whole(shared):
  """Folders of the archive's records, a training from stored features, and an evaluation."""

  def make(folder):
    prepare(folder / "records", input=str(write_archive(folder / "fall11_whole.tar")))
    source = {"source": "tfds", "root": str(folder / "records")}
    views = {"augment": "recipe", "views": 2, "view_epochs": 2, "features": "stored"}
    data = grouped("data", dataset="imagenet21k", **views, **source)
    train = {"eval.images": 40, "k": 10, "batch_size": 16, "epochs": 2}
    train |= {"optim.lr": 0.05, "optim.warmup": 0.0, "checkpoint.every": 10}
    run_job(settings(**data | train), folder / "train")
    sets = {"suite": "imagenet21k", "sets": "imagenet21k"}
    prompts = f"{folder / 'train' / 'prompt.npz'};hand_written"
    fields = grouped("evaluate", prompts=prompts, **sets, **source)
    run_job(settings(job="evaluate", **fields), folder / "evaluate")

  return shared("imagenet21k", make)


def test_the_whole_way_in_one_process(whole):
  report = read_json(whole / "records/imagenet21k/1.0.0/report.json")
  counts = {split: found["images"] for split, found in report["splits"].items()}
  assert counts == {"train": 2 * 40 - 3, "validation": 40}
  assert report["n_unreadable"] == 2 * len(DAMAGES)
  train, evaluation = (RunFolder(whole / name).read_results() for name in ("train", "evaluate"))
  [stored] = (whole / "train" / "features" / "training").glob("*/zarr.json")
  assert read_json(stored)["shape"][:2] == [77, 4]
  # Two epochs of two views of 77 images.
  assert (train["n_classes"], train["steps"]) == (40, 2 * (2 * 77 // 16))
  figures = evaluation["sets"]["imagenet21k"]["prompts"]
  assert [(found["classes"], found["images"]) for found in figures.values()] == [(40, 40)] * 2


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"input": "nowhere"}, ConfigError, "input: got 'nowhere', expected a file or folder that ex"),
    ({"dataset": "food"}, ConfigError, "dataset: got 'food', expected one of imagenet21k, fgvc"),
    ({"dataset": "coop_dtd", "names": "dtd"}, ConfigError, "names: got 'dtd', expected '' for o"),
  ],
)
def test_what_can_not_be_prepared(whole, tmp_path, changes, error, message):
  fields = {"input": str(whole / "fall11_whole.tar")} | changes
  with pytest.raises(error, match=rf"prepare\.{message}"):
    prepare(tmp_path / "out", **fields)
  assert not (tmp_path / "out").exists()


def test_classes_of_the_list_without_images_are_told(tmp_path, monkeypatch, capsys, caplog):
  """Of folders as the processed release has them, by the command lines of the docs."""
  records, n_validation, synsets = tmp_path / "records", 2, SYNSETS[:6]
  chosen = [CLASSES.synsets.index(synset) for synset in synsets]
  for c, synset in enumerate(synsets):
    # The last class has training images alone.
    counts = {"imagenet21k_train": 1, "imagenet21k_val": n_validation * (synset != synsets[-1])}
    for split, n_images in counts.items():
      for i in range(n_images):
        file = tmp_path / "images" / split / synset / f"{synset}_{i}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(natural_image(10 * c + i, 48, 64)))

  def evaluate(name, more=""):
    """Exit status, errors, what is missing by the log, and the set's results if there are any."""
    caplog.clear()
    argument = f"suite=imagenet21k,root={records},source=tfds,clip=world{more}"
    status, lines = run_main(
      capsys, f"--config=evaluate:{argument}", f"--workdir={tmp_path}/{name}"
    )
    errors = [line for line in lines if line.startswith("error: ")]
    missing = [text for text in caplog.messages if text.startswith("missing: ")]
    [of_set] = (RunFolder(tmp_path / name).read_results() or {"sets": {"": None}})["sets"].values()
    return status, errors, missing, of_set

  def check(of_set, listed, chosen, template):
    """One of the chosen classes has no image. The accuracy is the classifier's."""
    data = Data(source="tfds", root=str(records), dataset="imagenet21k")
    source, names = inputs.open_source(data, "validation"), [CLASSES.names[c] for c in chosen]
    truth = np.array(source.names)[source.labels]
    kept = np.flatnonzero(np.isin(truth, names))
    images = source.replace(image_size=load_clip("world").image_size).images(kept)
    found = Classifier("world", template, names).predict(images, top=1)
    top1 = np.mean([best == own for ((best, _),), own in zip(found, truth[kept], strict=True)])
    n_there = len(chosen) - 1
    figures = of_set["prompts"]["hand_written"] | {"missing": of_set["missing_classes"]}
    expected = {"top1": pytest.approx(top1), "images": n_there * n_validation}
    expected |= {"classes": len(chosen), "classes_with_images": n_there}
    assert figures.items() >= (expected | {"missing": listed - n_there}).items()
    assert of_set["listed_classes"] == listed

  with handlers_kept():
    config = ("--config=imagenet21k_fall11_vit_b16", "--config.job=prepare")
    fields = (f"--config.prepare.input={tmp_path}/images", "--config.prepare.workers=1")
    status, lines = run_main(capsys, *config, f"--workdir={records}", *fields)
    assert status == 0, lines
    logger = logging.getLogger("pomp_jax.evaluate.evaluate")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])

    status, errors, (line,), of_set = evaluate("run", ",sets=imagenet21k")
    assert (status, errors) == (0, [])
    check(of_set, 21_841, chosen, CLASSES.template)
    assert "imagenet21k: 21836 of the 21841 classes" in line and "6 classes are told apart" in line
    assert "imagenet21k: 21836 of the 21841 classes" in (tmp_path / "run/results.md").read_text()
    # The list of the published figures has to be there as a whole.
    status, (line,), _, _ = evaluate("whole")
    assert status == 2 and "of the list's 10450 classes are missing" in line
    assert not (tmp_path / "whole").exists()

    # The suite's own set takes the records of its list.
    packaged, listed = class_lists._packaged, CLASSES.subset(chosen[1:])
    monkeypatch.setattr(
      class_lists,
      "_packaged",
      lambda name: listed if name == "imagenet21k_p_w21" else packaged(name),
    )
    status, errors, (line,), of_set = evaluate("own")
    assert (status, errors) == (0, []) and "imagenet21k_p_w21: 1 of the 5 classes" in line
    check(of_set, 5, chosen[1:], listed.template)
    # A sample says nothing of what the set lacks.
    status, _, missing, of_set = evaluate("sample", ",images=2")
    assert (status, missing, of_set["missing_classes"]) == (0, [], None)
