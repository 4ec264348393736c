"""configs/own.py: what follows from one's own pictures, and a run on them."""

import json

import pytest

from pomp_jax import world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import own
from pomp_jax.data.source import SourceError
from pomp_jax.evaluate import stored
from pomp_jax.files.features import FeatureStoreError
from pomp_jax.rooms.benchmark import dry_run
from pomp_jax.train import pretrain
from tests.support.data_files import write_world


@pytest.fixture
def config_of(tmp_path):
  """A function: argument, classes and images of a class -> the config of files by name alone."""

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
    # 7 of 10 are left to train with: 70 / 32 are 2 steps an epoch, of which 200 are the most.
    ((10, 10), {"negatives": "all", "batch_size": 32, "epochs": 200, "checkpoint.every": 40}),
    ((1001, 20), {"negatives": "sampled", "k": 1000, "batch_size": 256, "epochs": 19}),
    # Features of pictures that stay the same are computed once.
    ((5, 10), {"data.features": "stored", "data.upright": True, "data.max_corrupt": 0.05}),
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
    # 35 pictures to train on are one step of 32, or four of 8: ten checkpoints a run, if it can.
    ("epochs=50", {"epochs": 50, "checkpoint.every": 5}),
    ("epochs=50,batch_size=8", {"checkpoint.every": 20}),
    ("steps=300", {"checkpoint.every": 30}),
    ("epochs=50,checkpoint.every=7", {"checkpoint.every": 7}),
    ("method=vpt_deep", {"data.features": "online", "prompt.init": ""}),
    ("m=8", {"prompt.m": 8, "prompt.init": "", "checkpoint.select": "last"}),
    ("data.augment=crop_flip", {"data.features": "online"}),
    ("data.augment=crop_flip,data.view_epochs=3,features=stored", {"data.features": "stored"}),
  ],
)
def test_what_is_given_counts_more(config_of, argument, expected):
  assert config_of(argument).flat().items() >= expected.items()


@pytest.mark.parametrize("argument", ["", "root=nowhere"])
def test_no_pictures_is_one_line(argument):
  with pytest.raises(ConfigError, match="data.root: .* expected a folder with a folder a cla"):
    own.get_config(argument)


def test_a_run_on_pictures_of_the_world(tmp_path, caplog):
  """Five of each class, the last one of the first class unreadable."""
  names, pictures, run = world.class_names("base")[:6], tmp_path / "pictures", tmp_path / "run"
  write_world(pictures, "train", 5, names, ".jpg")
  skipped = pictures / names[0] / "4.jpg"
  skipped.write_bytes(b"no image")
  for field, some in (("base", names[:4]), ("novel", names[4:])):
    (tmp_path / f"{field}.txt").write_text("\n".join(some))
  lists = f"base={tmp_path / 'base.txt'},novel={tmp_path / 'novel.txt'}"
  argument = f"root={pictures},clip=world,{lists},steps=3,batch_size=8,data.max_corrupt="
  # A picture that can't be read is named before anything is written, and in the dry run.
  few, config = (unpack(own.get_config(f"{argument}{share}")) for share in (0.0, 0.1))
  for checks in (pretrain, dry_run):
    with pytest.raises(SourceError, match=r"1 of .* images .* 0 are allowed .*/4\.jpg"):
      checks.check(few.replace({"dry_run": checks is dry_run}), str(run))
  assert not run.exists()
  # One is skipped, and named in the log, the results and the report.
  caplog.clear()
  pretrain.check(config, str(run))
  assert [f"{skipped}" in line and "skipped" in line for line in caplog.messages] == [True]
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
  (pictures / names[0] / "more.jpg").write_bytes((pictures / names[0] / "0.jpg").read_bytes())
  for function in (stored._open_split, stored._divided):
    function.cache_clear()
  with pytest.raises(FeatureStoreError, match="images were added, removed or renamed; .*--workdir"):
    pretrain.run(config, str(run))
