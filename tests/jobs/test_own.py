"""configs/own.py: what follows from one's own pictures, and a run on them."""

import json

import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs, world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import own
from pomp_jax.jobs import pretrain


def listing(folder, n_classes, images):
  """Files by name alone: the config opens no image."""
  for label in range(n_classes):
    (folder / f"kind {label:04}").mkdir(parents=True)
    for image in range(images):
      (folder / f"kind {label:04}/{image}.jpg").touch()
  return folder


@pytest.mark.parametrize(
  ("n_classes", "images", "expected"),
  [
    # 7 of 10 are left to train with: 70 / 32 are 2 steps an epoch, of which 200 are the most.
    (10, 10, {"negatives": "all", "batch_size": 32, "epochs": 200, "checkpoint.every": 40}),
    (100, 10, {"negatives": "all", "batch_size": 32, "epochs": 48, "checkpoint.every": 100}),
    (1000, 10, {"negatives": "all", "batch_size": 32, "epochs": 5, "checkpoint.every": 109}),
    (1001, 20, {"negatives": "sampled", "k": 1000, "batch_size": 256, "epochs": 19}),
  ],
)
def test_what_follows_from_the_pictures(tmp_path, n_classes, images, expected):
  root = listing(tmp_path / "pictures", n_classes, images)
  config = unpack(own.get_config(f"root={root},clip=world"))
  validate(config)
  found = config.flat()
  assert {name: found[name] for name in expected} == expected
  assert config.data.augment == "none"
  assert inputs.n_training_classes(config.data) == n_classes
  assert inputs.evaluation_splits(config.data) == ("test",)


def test_what_is_given_counts_more(tmp_path):
  root = listing(tmp_path / "pictures", 5, 10)
  config = unpack(own.get_config(f"root={root},epochs=3,batch_size=8,negatives=sampled,k=4,lr=0.5"))
  assert (config.epochs, config.batch_size, config.negatives, config.k) == (3, 8, "sampled", 4)
  assert config.optim.lr == 0.5
  config = unpack(own.get_config(f"root={root},cache=FEATURES,features=cached"))
  assert (config.data.feature_cache, config.data.features) == ("FEATURES", "cached")
  base = tmp_path / "base.txt"
  base.write_text("kind 0001\nkind 0003\n")
  config = unpack(own.get_config(f"root={root},base={base}"))
  assert inputs.n_training_classes(config.data) == 2
  assert inputs.evaluation_splits(config.data) == ("base", "novel")


@pytest.mark.parametrize(
  ("argument", "features"),
  [
    ("", "once"),
    ("method=cocoop", "once"),
    ("method=vpt_deep", "online"),
    ("data.augment=crop_flip", "online"),
    ("data.augment=crop_flip,data.view_epochs=3,features=once", "once"),
    ("features=online", "online"),
  ],
)
def test_features_of_pictures_that_stay_the_same_are_computed_once(tmp_path, argument, features):
  root = listing(tmp_path / "pictures", 5, 10)
  config = unpack(own.get_config(f"root={root},clip=world,{argument}"))
  validate(config)
  assert config.data.features == features


@pytest.mark.parametrize("argument", ["", "root=nowhere"])
def test_no_pictures_is_one_line(argument):
  with pytest.raises(ConfigError, match="data.root: .* expected a folder with a folder a cla"):
    own.get_config(argument)


def test_a_run_on_pictures_of_the_world(tmp_path):
  names = world.class_names("base")[:6]
  source = world.source("train", images_per_class=5)
  for label, name in enumerate(names):
    (tmp_path / "pictures" / name).mkdir(parents=True)
    for row, image in enumerate(source.images(np.arange(5 * label, 5 * label + 5))):
      Image.fromarray(image).save(tmp_path / "pictures" / name / f"{row}.jpg", quality=95)
  for field, some in (("base", names[:4]), ("novel", names[4:])):
    (tmp_path / f"{field}.txt").write_text("\n".join(some))
  lists = f"base={tmp_path / 'base.txt'},novel={tmp_path / 'novel.txt'}"
  config = unpack(
    own.get_config(f"root={tmp_path / 'pictures'},clip=world,{lists},steps=3,batch_size=8")
  )
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))
  pretrain.run(config, str(tmp_path / "run"))
  results = json.loads((tmp_path / "run/results.json").read_text())
  assert list(results["eval"]) == ["base", "novel"]
  assert results["eval_classes"] == {"base": 4, "novel": 2}
  assert results["k"] == results["n_classes"] == 4
  # Of five pictures one tests and one validates.
  [features] = (tmp_path / "run/training_features").glob("block-*.npy")
  assert np.load(features).shape[:2] == (4 * 3, 1)
