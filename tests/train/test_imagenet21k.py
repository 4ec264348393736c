"""A small ImageNet-21K, all the way: records, features, prompt, figures."""

import logging

import numpy as np
import pytest

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.config.fields import Data
from pomp_jax.data import class_lists
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.evaluate import Classifier, opening
from pomp_jax.files.run_folder import RunFolder
from tests.support.command_line import handlers_kept, run_main
from tests.support.pictures import encode, natural_image
from tests.support.small_run import run_job, settings

CLASSES = load_class_list("imagenet21k")
# Classes with names that the world's CLIP has positions for, in the order of ids.
_SHORT = [c for c, name in enumerate(CLASSES.names) if len(name) < 9]
SYNSETS = [CLASSES.synsets[c] for c in _SHORT[::30][:6]]


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    (
      {"input": "nowhere"},
      ConfigError,
      "input: got 'nowhere', expected a file or folder that ex",
    ),
    (
      {"dataset": "food"},
      ConfigError,
      "dataset: got 'food', expected one of imagenet21k, fgvc",
    ),
    (
      {"dataset": "coop_dtd", "names": "dtd"},
      ConfigError,
      "names: got 'dtd', expected '' for o",
    ),
  ],
)
def test_what_can_not_be_prepared(tmp_path, changes, error, message):
  fields = {"dataset": "imagenet21k", "input": str(tmp_path)} | changes
  config = settings(
    job="prepare", **{f"prepare.{name}": value for name, value in fields.items()}
  )
  with pytest.raises(error, match=rf"prepare\.{message}"):
    run_job(config, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def training_of(records):
  """From stored features of the records: two views in two epochs, batches of four."""
  data = {
    "source": "tfds",
    "root": str(records),
    "dataset": "imagenet21k",
    "features": "stored",
  }
  data |= {"augment": "recipe", "views": 2, "view_epochs": 2}
  fields = {f"data.{name}": value for name, value in data.items()}
  return settings(k=4, batch_size=4, epochs=2, **fields, **{"eval.images": 0})


def test_from_pictures_to_figures(tmp_path, monkeypatch, capsys, caplog):
  """Of folders as the processed release has them, by the command lines of the docs.

  Classes of the list without images are told.
  """
  records, n_validation, synsets = tmp_path / "records", 2, SYNSETS
  chosen = [CLASSES.synsets.index(synset) for synset in synsets]
  for c, synset in enumerate(synsets):
    # The last class has training images alone.
    counts = {
      "imagenet21k_train": 1,
      "imagenet21k_val": n_validation * (synset != synsets[-1]),
    }
    for split, n_images in counts.items():
      for i in range(n_images):
        file = tmp_path / "images" / split / synset / f"{synset}_{i}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(natural_image(10 * c + i, 48, 64)))

  def evaluate(name, more="", *fields):
    """Exit status, errors, what is missing by the log, and the set's results if
    there are any."""
    caplog.clear()
    argument = f"suite=imagenet21k,root={records},source=tfds,clip=world{more}"
    status, lines = run_main(
      capsys, f"--config=evaluate:{argument}", f"--workdir={tmp_path}/{name}", *fields
    )
    errors = [line for line in lines if line.startswith("error: ")]
    missing = [text for text in caplog.messages if text.startswith("missing: ")]
    [of_set] = (RunFolder(tmp_path / name).read_results() or {"sets": {"": None}})[
      "sets"
    ].values()
    return status, errors, missing, of_set

  def check(of_set, listed, chosen, template):
    """One of the chosen classes has no image. The accuracy is the classifier's."""
    data = Data(source="tfds", root=str(records), dataset="imagenet21k")
    source, names = (
      opening.open_source(data, "validation"),
      [CLASSES.names[c] for c in chosen],
    )
    truth = np.array(source.names)[source.labels]
    kept = np.flatnonzero(np.isin(truth, names))
    images = source.replace(image_size=load_clip("world").image_size).images(kept)
    found = Classifier("world", template, names).predict(images, top=1)
    top1 = np.mean(
      [best == own for ((best, _),), own in zip(found, truth[kept], strict=True)]
    )
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

    run_job(training_of(records), tmp_path / "train")
    results = RunFolder(tmp_path / "train").read_results()
    assert (results["n_classes"], results["steps"]) == (6, 2 * (2 * 6 // 4))

    prompts = f"--config.evaluate.prompts={tmp_path / 'train'};hand_written"
    status, errors, (line,), of_set = evaluate("run", ",sets=imagenet21k", prompts)
    assert (status, errors, len(of_set["prompts"])) == (0, [], 2)
    check(of_set, 21_841, chosen, CLASSES.template)
    assert (
      "imagenet21k: 21836 of the 21841 classes" in line
      and "6 classes are told apart" in line
    )
    assert (
      "imagenet21k: 21836 of the 21841 classes"
      in (tmp_path / "run/results.md").read_text()
    )
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
    assert (status, errors) == (
      0,
      [],
    ) and "imagenet21k_p_w21: 1 of the 5 classes" in line
    check(of_set, 5, chosen[1:], listed.template)
    # A sample says nothing of what the set lacks.
    status, _, missing, of_set = evaluate("sample", ",images=2")
    assert (status, missing, of_set["missing_classes"]) == (0, [], None)
