"""configs/own.py: what follows from one's own pictures, and a run on them."""

from collections.abc import Sequence
import dataclasses
import json
import logging
import pathlib
import shutil

import numpy as np
from PIL import Image, ImageOps
import pytest

from pomp_jax import world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import evaluate, own, predict
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.source import SourceError
from pomp_jax.errors import InputError
from pomp_jax.evaluate import image_splits, opening
from pomp_jax.evaluate import predict as job
from pomp_jax.evaluate.classifier import Classifier
from pomp_jax.files.features import FeatureStoreError
from pomp_jax.files.prompt_file import load_prompt, save_prompt
from pomp_jax.train import pretrain
from tests.support.data_files import write_world
from tests.support.small_run import run_job


@pytest.fixture
def config_of(tmp_path):
  """A function: argument, classes and images of a class -> the config of files by
  name alone."""

  def config(argument="", n_classes=5, images=10):
    for label in range(n_classes):
      (tmp_path / f"kind {label:04}").mkdir()
      for image in range(images):
        (tmp_path / f"kind {label:04}/{image}.jpg").touch()
    config = unpack(own.get_config(f"root={tmp_path},clip=world,{argument}".strip(",")))
    validate(config)
    return config

  return config


@pytest.mark.parametrize(
  ("pictures", "expected"),
  [
    # 7 of 10 are left to train with: 70 / 32 are 2 steps an epoch, of which 200 are the
    # most.
    (
      (10, 10),
      {"negatives": "all", "batch_size": 32, "epochs": 200, "checkpoint.every": 40},
    ),
    ((1001, 20), {"negatives": "sampled", "k": 1000, "batch_size": 256, "epochs": 19}),
    # Features of pictures that stay the same are computed once.
    (
      (5, 10),
      {"data.features": "stored", "data.upright": True, "data.max_corrupt": 0.05},
    ),
    ((5, 10), {"prompt.init": "best", "prompt.m": 0, "optim.average": "ema"}),
    ((5, 10), {"consistency_squared": -1.0, "anchors": "best"}),
    # One picture a class leaves none to choose words by.
    ((5, 1), {"prompt.init": "", "prompt.m": 4, "optim.average": "none"}),
  ],
)
def test_what_follows_from_the_pictures(config_of, pictures, expected):
  assert config_of("", *pictures).flat().items() >= expected.items()


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("epochs=3,batch_size=8,lr=0.5", {"epochs": 3, "batch_size": 8, "optim.lr": 0.5}),
    # 35 pictures to train on are one step of 32, or four of 8: ten checkpoints a run,
    # if it can.
    ("epochs=50", {"epochs": 50, "checkpoint.every": 5}),
    ("epochs=50,batch_size=8", {"checkpoint.every": 20}),
    ("steps=300", {"checkpoint.every": 30}),
    ("epochs=50,checkpoint.every=7", {"checkpoint.every": 7}),
    ("method=vpt_deep", {"data.features": "online", "prompt.init": ""}),
    ("m=8", {"prompt.m": 8, "prompt.init": "", "checkpoint.select": "last"}),
    ("data.augment=crop_flip", {"data.features": "online"}),
    (
      "data.augment=crop_flip,data.view_epochs=3,features=stored",
      {"data.features": "stored"},
    ),
  ],
)
def test_what_is_given_counts_more(config_of, argument, expected):
  assert config_of(argument).flat().items() >= expected.items()


@pytest.mark.parametrize("argument", ["", "root=nowhere"])
def test_no_pictures_is_one_line(argument):
  with pytest.raises(
    ConfigError, match="data.root: .* expected a folder with a folder a cla"
  ):
    own.get_config(argument)


def test_a_run_on_pictures_of_the_world(tmp_path, caplog):
  """Five of each class, the last one of the first class unreadable."""
  names, pictures, run = (
    world.class_names("base")[:6],
    tmp_path / "pictures",
    tmp_path / "run",
  )
  write_world(pictures, "train", 5, names, ".jpg")
  skipped = pictures / names[0] / "4.jpg"
  skipped.write_bytes(b"no image")
  for field, some in (("base", names[:4]), ("novel", names[4:])):
    (tmp_path / f"{field}.txt").write_text("\n".join(some))
  lists = f"base={tmp_path / 'base.txt'},novel={tmp_path / 'novel.txt'}"
  argument = (
    f"root={pictures},clip=world,{lists},steps=3,batch_size=8,data.max_corrupt="
  )
  # A picture that can't be read is named before anything is written.
  few, config = (unpack(own.get_config(f"{argument}{share}")) for share in (0.0, 0.1))
  with pytest.raises(SourceError, match=r"1 of .* images .* 0 are allowed .*/4\.jpg"):
    pretrain.check(few, str(run))
  assert not run.exists()
  # One is skipped, and named in the log, the results and the report.
  caplog.clear()
  pretrain.check(config, str(run))
  assert [f"{skipped}" in line and "skipped" in line for line in caplog.messages] == [
    True
  ]
  results = pretrain.run(config, str(run))
  assert list(results["eval"]) == ["base", "novel"]
  assert results["eval_classes"] == {"base": 4, "novel": 2}
  assert results["k"] == results["n_classes"] == 4
  assert list(results["unreadable"].values()) == [[str(skipped)]]
  assert results["unreadable_images"] + sum(results["eval_unreadable"].values()) == 1
  report = (run / "report.html").read_text()
  for text in (str(skipped), "Accuracy of classes", "Difference to words: "):
    assert text in report
  assert (run / "plots/confusions_novel.png").exists()
  # Of five pictures one tests and one validates.
  [description] = run.glob("features/training/*/zarr.json")
  assert json.loads(description.read_text())["shape"][:2] == [4 * 3, 1]
  # How many may be unreadable is no part of the run. Other pictures are another run.
  pretrain.check(config.replace({"data.max_corrupt": 0.5}), str(run))
  (run / "results.json").unlink()
  (pictures / names[0] / "more.jpg").write_bytes(
    (pictures / names[0] / "0.jpg").read_bytes()
  )
  image_splits.forget_sources()
  with pytest.raises(
    FeatureStoreError, match="images were added, removed or renamed; .*--workdir"
  ):
    pretrain.run(config, str(run))


def write_phone_pictures(root: pathlib.Path, names: Sequence[str]) -> None:
  """Pictures as people have them: train/ and test/, all turned by EXIF, with what goes
  wrong.

  The last class has one picture. Of the first, a test picture is one of the training,
  and one of the training is HEIC. A class has a folder without a picture.
  """
  for split, count in (("train", 5), ("test", 2)):
    for name in names if split == "train" else names[:-1]:
      source = world.source(
        split if split == "train" else "base", images_per_class=count
      )
      first = source.names.index(name) * count
      (root / split / name).mkdir(parents=True)
      n_pictures = 1 if name == names[-1] else count
      for number, pixels in enumerate(source.images(first + np.arange(n_pictures))):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
        picture.save(root / split / name / f"{number}.jpg", exif=exif, quality=95)
  shutil.copy(
    root / "train" / names[0] / "1.jpg", root / "test" / names[0] / "again.jpg"
  )
  (root / "train" / names[0] / "2.HEIC").write_bytes(
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
  )
  for split in ("train", "test"):
    (root / split / "nothing here").mkdir()


PHONE_NAMES = world.class_names("base")[:5]


@pytest.fixture(scope="module")
def phone(shared):
  """A folder with pictures/ and run/, a finished run of `own` on them, and its log."""

  def make(folder):
    write_phone_pictures(folder / "pictures", PHONE_NAMES)
    argument = f"root={folder / 'pictures'},clip=world,steps=3,batch_size=8"
    argument += ",prompt.candidates={}.;a photo of a {}."
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("pomp_jax").addHandler(handler)
    try:
      run_job(unpack(own.get_config(argument)), folder / "run")
    finally:
      logging.getLogger("pomp_jax").removeHandler(handler)
    (folder / "log.txt").write_text("\n".join(lines))

  return shared("phone", make)


def test_pictures_of_a_phone_are_named_where_they_are_left_out(phone):
  """Log, results and report name the duplicate, the empty class, the HEIC, the
  untested class."""
  pictures, results = (
    phone / "pictures",
    json.loads((phone / "run/results.json").read_text()),
  )
  assert results["left_out"] == {
    "classes_without_pictures": ["nothing here"],
    "classes_without_test_pictures": {"test": [PHONE_NAMES[-1]]},
    "duplicates": {
      "test": {
        str(pictures / f"test/{PHONE_NAMES[0]}/again.jpg"): str(
          pictures / f"train/{PHONE_NAMES[0]}/1.jpg"
        )
      }
    },
    "not_read": [str(pictures / f"train/{PHONE_NAMES[0]}/2.HEIC")],
  }
  assert results["eval_images"] == {"test": 8}
  assert results["eval_classes"] == {"test": 5}
  log, report = (phone / "log.txt").read_text(), (phone / "run/report.html").read_text()
  for text in ("again.jpg", "nothing here", "2.HEIC"):
    assert text in log and text in report
  assert "data.duplicates=keep" in log


def test_duplicates_are_kept_on_demand(phone):
  data = unpack(own.get_config(f"root={phone / 'pictures'},clip=world")).data
  counts = {}
  for kept in ("drop", "keep"):
    source = opening.open_source(dataclasses.replace(data, duplicates=kept), "test")
    counts[kept] = len(source)
  assert counts == {"drop": 8, "keep": 9}


def test_an_empty_class_is_an_answer_where_a_list_names_it(phone, tmp_path):
  listed = tmp_path / "names.txt"
  listed.write_text("\n".join((*PHONE_NAMES, "nothing here")))
  config = unpack(
    own.get_config(f"root={phone / 'pictures'},clip=world,names={listed}")
  )
  assert "nothing here" in opening.open_source(config.data, "test").names


def test_a_run_knows_its_classes_and_how_pictures_are_turned(phone, tmp_path):
  """`Classifier` and `predict` without names, on a picture that lies on its side."""
  run, picture = phone / "run", phone / f"pictures/test/{PHONE_NAMES[1]}/0.jpg"
  classifier = Classifier("world", run)
  assert classifier.names == tuple(sorted(PHONE_NAMES))
  assert classifier.upright
  upright = np.asarray(ImageOps.exif_transpose(Image.open(picture)))
  expected = classifier.probabilities(upright)
  np.testing.assert_allclose(classifier.probabilities(picture), expected, atol=1e-6)
  np.testing.assert_allclose(
    classifier.probabilities(Image.open(picture)), expected, atol=1e-6
  )
  unturned = Classifier(classifier._encoder, run / "prompt.npz", upright=False)
  assert np.abs(unturned.probabilities(picture) - expected).max() > 0.01
  # The job, with what follows from the prompt.
  shutil.copytree(picture.parent, tmp_path / "new")
  shutil.copy(phone / f"pictures/train/{PHONE_NAMES[0]}/2.HEIC", tmp_path / "new")
  config = unpack(predict.get_config(f"prompt={run},images={tmp_path / 'new'}"))
  results = run_job(config, tmp_path / "names")
  assert results["upright"] and results["names"] == str(run / "class_names.json")
  best = {row["name"]: row["probability"] for row in results["images"]["0.jpg"]}
  for name, probability in zip(classifier.names, expected, strict=True):
    assert best[name] == pytest.approx(probability, abs=1e-5)
  assert "JPEG" in results["unreadable"]["2.HEIC"]


def test_a_rule_that_contradicts_the_training_is_said(phone, tmp_path, caplog):
  run, picture = phone / "run", phone / f"pictures/test/{PHONE_NAMES[1]}/0.jpg"
  for upright in (False, True):
    caplog.clear()
    argument = f"prompt={run},images={picture},data.upright={upright}"
    job.check(unpack(predict.get_config(argument)), str(tmp_path / "new"))
    lines = [message for message in caplog.messages if "data.upright" in message]
    assert [f"{run}" in line or "'run'" in line for line in lines] == [True] * (
      not upright
    )


def test_an_evaluation_turns_pictures_as_the_trainings_where_these_agree(
  phone, tmp_path
):
  unturned = load_prompt(phone / "run/prompt.npz")
  data = unturned.config["data"] | {"upright": False}
  unturned = dataclasses.replace(unturned, config=unturned.config | {"data": data})
  save_prompt(tmp_path / "other.npz", unturned)
  for prompts, upright in (
    (f"hand_written;{phone / 'run'}", True),
    (f"{tmp_path / 'other.npz'}", False),
    (f"{phone / 'run'};{tmp_path / 'other.npz'}", False),
    ("hand_written", False),
    (f"{phone / 'run'},data.upright=false", False),
  ):
    assert evaluate.get_config(f"prompts={prompts}").data.upright is upright


def test_a_copy_of_the_prompt_alone_needs_names(phone, tmp_path):
  shutil.copy(phone / "run/prompt.npz", tmp_path)
  with pytest.raises(
    VocabularyError, match=r"^names: [^\n]*prompt\.npz[^\n]*class_names\.json"
  ):
    Classifier("world", tmp_path / "prompt.npz")
  images = phone / "pictures/test"
  config = unpack(
    predict.get_config(f"prompt={tmp_path / 'prompt.npz'},images={images}")
  )
  with pytest.raises(
    ConfigError, match=r"^config\.predict\.names: [^\n]*class_names\.json"
  ):
    validate(config)


@pytest.mark.parametrize("name", ["a\x1bb", "x " * 105 + "many"])
def test_a_name_that_no_text_holds_is_found_before_anything_is_written(tmp_path, name):
  for place, folder in enumerate(("cup", "plate", name)):
    write_pictures(tmp_path / "pictures" / folder, 10 * place)
  config = unpack(own.get_config(f"root={tmp_path / 'pictures'},clip=world"))
  with pytest.raises(InputError, match=r" tokens |U\+001B"):
    pretrain.check(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def write_pictures(folder: pathlib.Path, first: int) -> None:
  """Writes ten pictures that differ from those of another `first`."""
  folder.mkdir(parents=True)
  for number in range(10):
    Image.new("RGB", (16, 16), (first + number, 0, 0)).save(folder / f"{number}.png")
