"""The evaluation of a small ImageNet-21K that `prepare` made, by the command lines of the docs."""

import json
import logging

import numpy as np
import pytest

from pomp_jax import inputs
from pomp_jax.clip import load_clip
from pomp_jax.config.fields import Data
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.synthetic import encode, natural_image
from pomp_jax.inference import Classifier
from tests.support.command_line import handlers_kept, run_main

EVERY = load_class_list("imagenet21k")
# Names that the world's CLIP has positions for, in the order of their ids.
CHOSEN = [c for c, name in enumerate(EVERY.names) if len(name) < 9][::500][:6]
SYNSETS = [EVERY.synsets[c] for c in CHOSEN]
N_VALIDATION = 2  # of a class, but for the last, which has training images alone


@pytest.fixture(autouse=True)
def as_before():
  with handlers_kept():
    yield


@pytest.fixture
def records(tmp_path, capsys):
  """Records of six synsets, made of folders as the processed release has them."""
  for c, synset in enumerate(SYNSETS):
    counts = {"imagenet21k_train": 1, "imagenet21k_val": N_VALIDATION * (c < len(SYNSETS) - 1)}
    for split, n_images in counts.items():
      for i in range(n_images):
        file = tmp_path / "images" / split / synset / f"{synset}_{i}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(natural_image(10 * c + i, 48, 64)))
  status, lines = run_main(
    capsys,
    "--config=imagenet21k_fall11_vit_b16",
    "--config.job=prepare",
    f"--workdir={tmp_path}/records",
    f"--config.prepare.input={tmp_path}/images",
    "--config.prepare.workers=1",
  )
  assert status == 0, lines
  return tmp_path / "records"


@pytest.fixture
def evaluate(records, capsys, caplog):
  """Evaluates the suite: exit status, errors, what is missing by the log."""
  logger = logging.getLogger("pomp_jax.jobs.evaluate")
  logger.addHandler(caplog.handler)

  def run(workdir, sets=""):
    caplog.clear()
    argument = f"suite=imagenet21k,root={records},source=tfds,clip=world{sets}"
    status, lines = run_main(capsys, f"--config=evaluate:{argument}", f"--workdir={workdir}")
    errors = [line for line in lines if line.startswith("error: ")]
    return status, errors, [text for text in caplog.messages if text.startswith("missing: ")]

  yield run
  logger.removeHandler(caplog.handler)


def top1(records, classes, template):
  """By the classifier, on the validation images of some classes: the accuracy, and their number."""
  data = Data(source="tfds", root=str(records), dataset="imagenet21k")
  source = inputs.open_source(data, "validation").sized(load_clip("world").image_size)
  names = [EVERY.names[c] for c in classes]
  kept = np.flatnonzero(np.isin(np.array(source.names)[source.labels], names))
  found = Classifier("world", template, names).predict(source.images(kept), top=1)
  truth = np.array(source.names)[source.labels[kept]]
  return np.mean([best == name for ((best, _),), name in zip(found, truth, strict=True)]), len(kept)


def test_classes_of_the_list_without_images_are_told(evaluate, records, tmp_path):
  status, errors, missing = evaluate(tmp_path / "run", ",sets=imagenet21k")
  assert (status, errors) == (0, [])
  results = json.loads((tmp_path / "run/results.json").read_text())
  of_set = results["sets"]["imagenet21k"]
  assert (of_set["listed_classes"], of_set["missing_classes"]) == (21_841, 21_841 - 5)
  figures = of_set["prompts"]["hand_written"]
  assert (figures["classes"], figures["classes_with_images"]) == (6, 5)
  expected, n_images = top1(records, CHOSEN, EVERY.template)
  assert (figures["top1"], figures["images"]) == (pytest.approx(expected), n_images)
  assert n_images == 5 * N_VALIDATION
  (line,) = missing
  assert "imagenet21k: 21836 of the 21841 classes" in line and "6 classes are told apart" in line
  assert "imagenet21k: 21836 of the 21841 classes" in (tmp_path / "run/results.md").read_text()
  # The list of the published figures has to be there as a whole.
  status, (line,), _ = evaluate(tmp_path / "whole")
  assert status == 2
  assert "of the list's 10450 classes are missing" in line
  assert not (tmp_path / "whole").exists()


def test_the_suites_own_set_takes_the_records_of_its_list(evaluate, records, tmp_path, monkeypatch):
  packaged = class_lists._packaged
  listed = EVERY.subset(CHOSEN[1:])
  monkeypatch.setattr(
    class_lists, "_packaged", lambda name: listed if name == "imagenet21k_p_w21" else packaged(name)
  )
  status, errors, missing = evaluate(tmp_path / "run")
  assert (status, errors) == (0, [])
  results = json.loads((tmp_path / "run/results.json").read_text())
  of_set = results["sets"]["imagenet21k_p_w21"]
  assert (of_set["listed_classes"], of_set["missing_classes"]) == (5, 1)
  figures = of_set["prompts"]["hand_written"]
  expected, n_images = top1(records, CHOSEN[1:], listed.template)
  assert (figures["top1"], figures["images"]) == (pytest.approx(expected), n_images)
  assert n_images == 4 * N_VALIDATION
  assert len(missing) == 1 and "imagenet21k_p_w21: 1 of the 5 classes" in missing[0]
  # A sample says nothing of what the set lacks.
  status, _, missing = evaluate(tmp_path / "sample", ",images=2")
  results = json.loads((tmp_path / "sample/results.json").read_text())
  assert results["sets"]["imagenet21k_p_w21"]["missing_classes"] is None
  assert (status, missing) == (0, [])
