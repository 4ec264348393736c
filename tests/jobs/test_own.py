"""configs/own.py: what follows from one's own pictures, and a run on them."""

import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs, world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import own
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.jobs import pretrain


@pytest.fixture
def config_of(tmp_path):
  """A function: argument, classes and images of a class -> the config of files by name alone."""

  def config(argument="", n_classes=5, images=10):
    root = tmp_path / "pictures"
    for label in range(n_classes):
      (root / f"kind {label:04}").mkdir(parents=True)
      for image in range(images):
        (root / f"kind {label:04}/{image}.jpg").touch()
    config = unpack(own.get_config(f"root={root},clip=world,{argument}"))
    validate(config)
    return config

  return config


@pytest.mark.parametrize(
  ("n_classes", "images", "expected"),
  [
    # 7 of 10 are left to train with: 70 / 32 are 2 steps an epoch, of which 200 are the most.
    (10, 10, {"negatives": "all", "batch_size": 32, "epochs": 200, "checkpoint.every": 40}),
    (1001, 20, {"negatives": "sampled", "k": 1000, "batch_size": 256, "epochs": 19}),
  ],
)
def test_what_follows_from_the_pictures(config_of, n_classes, images, expected):
  config = config_of("", n_classes, images)
  assert config.flat().items() >= (expected | {"data.augment": "none"}).items()
  assert inputs.n_training_classes(config.data) == n_classes
  assert inputs.evaluation_splits(config.data) == ("test",)


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("epochs=3,batch_size=8,lr=0.5", {"epochs": 3, "batch_size": 8, "optim.lr": 0.5}),
    # Features of pictures that stay the same are computed once.
    ("", {"data.features": "once"}),
    ("method=vpt_deep", {"data.features": "online"}),
    ("data.augment=crop_flip", {"data.features": "online"}),
    ("data.augment=crop_flip,data.view_epochs=3,features=once", {"data.features": "once"}),
  ],
)
def test_what_is_given_counts_more(config_of, argument, expected):
  assert config_of(argument).flat().items() >= expected.items()


@pytest.mark.parametrize("argument", ["", "root=nowhere"])
def test_no_pictures_is_one_line(argument):
  with pytest.raises(ConfigError, match="data.root: .* expected a folder with a folder a cla"):
    own.get_config(argument)


def test_a_run_on_pictures_of_the_world(tmp_path):
  names = world.class_names("base")[:6]
  source = world.source("train", images_per_class=5)
  for row, image in enumerate(source.images(np.arange(30))):
    folder = tmp_path / "pictures" / names[row // 5]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{row}.jpg", quality=95)
  for field, some in (("base", names[:4]), ("novel", names[4:])):
    (tmp_path / f"{field}.txt").write_text("\n".join(some))
  lists = f"base={tmp_path / 'base.txt'},novel={tmp_path / 'novel.txt'}"
  argument = f"root={tmp_path / 'pictures'},clip=world,{lists},steps=3,batch_size=8"
  config = unpack(own.get_config(argument))
  validate(config)
  pretrain.check(config, str(tmp_path / "run"))
  pretrain.run(config, str(tmp_path / "run"))
  results = RunFolder(tmp_path / "run").read_results()
  assert list(results["eval"]) == ["base", "novel"]
  assert results["eval_classes"] == {"base": 4, "novel": 2}
  assert results["k"] == results["n_classes"] == 4
  # Of five pictures one tests and one validates.
  [features] = (tmp_path / "run/training_features").glob("block-*.npy")
  assert np.load(features).shape[:2] == (4 * 3, 1)
