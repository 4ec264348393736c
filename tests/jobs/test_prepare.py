"""A fake ImageNet-21K, as distributed, into records; then a source of the main job."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from pomp_jax import inputs, world
from pomp_jax.config import ConfigError, validate
from pomp_jax.config.fields import Data
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.source import SourceError
from pomp_jax.jobs import prepare
from tests.support.data_files import tar_bytes
from tests.support.small_run import settings

CLASSES = load_class_list("imagenet21k_p")


@pytest.fixture
def archive(tmp_path):
  """A tar of 8 synsets' tars, 5 JPEGs each, one of which is cut short."""
  pictures = world.source("train", images_per_class=1).images(np.arange(40))
  synsets = {}
  for c, synset in enumerate(CLASSES.synsets[50:58]):
    images = {}
    for i in range(5):
      buffer = io.BytesIO()
      Image.fromarray(pictures[5 * c + i]).save(buffer, "JPEG")
      images[f"{synset}_{i}.JPEG"] = buffer.getvalue()[: -30 if (c, i) == (3, 0) else None]
    synsets[f"{synset}.tar"] = tar_bytes(images)
  path = tmp_path / "fall11_whole.tar"
  path.write_bytes(tar_bytes(synsets))
  return path


def prepare_config(**changes):
  config = settings(job="prepare", **{f"prepare.{name}": value for name, value in changes.items()})
  validate(config)
  return config


def test_from_the_archive_to_the_main_job(archive, tmp_path, caplog):
  out = tmp_path / "records"
  config = prepare_config(
    dataset="imagenet21k", input=str(archive), names="imagenet21k_p", shots=2, held_out=1, workers=1
  )
  prepare.check(config, str(out))
  assert not out.exists()
  with caplog.at_level("INFO", "pomp_jax"):
    report = prepare.run(config, str(out))
  assert "train: 16 images of 8 classes in 1 shards" in caplog.text
  assert report == json.loads((out / "imagenet21k/1.0.0/report.json").read_text())
  assert report["splits"]["validation"]["images"] == 8
  data = Data(source="tfds", root=str(out), dataset="imagenet21k")
  assert inputs.n_training_classes(data) == 8
  train = inputs.open_source(data, "train")
  assert train.names == CLASSES.names[50:58]
  validation = inputs.open_source(data, "validation")
  assert set(train.keys).isdisjoint(validation.keys)
  assert train.sized(40).images(np.arange(16)).shape == (16, 40, 40, 3)
  # Its label space can be the whole of a class list's too, in which most have no image.
  data = dataclasses.replace(data, names="imagenet21k_p")
  with pytest.raises(SourceError, match="11221"):
    inputs.n_training_classes(data)


def test_what_can_not_be(archive, tmp_path):
  for changes, message in (
    ({"input": "nowhere"}, "prepare.input: got 'nowhere', expected a file or folder that exists"),
    ({"input": str(archive), "workers": -1}, "prepare.workers: got -1, expected 0 or more"),
    ({"input": str(archive), "held_out": -1}, "prepare.held_out: got -1, expected 0 or more"),
  ):
    with pytest.raises(ConfigError, match=message):
      prepare_config(dataset="imagenet21k", **changes)
  for changes, message in (
    (
      {"dataset": "food"},
      "prepare.dataset: got 'food', expected one of imagenet21k, fgvc_aircraft",
    ),
    (
      {"dataset": "coop_dtd", "names": "dtd"},
      "prepare.names: got 'dtd', expected '' for other sets",
    ),
  ):
    with pytest.raises(ConfigError, match=message):
      prepare.check(prepare_config(input=str(archive), **changes), str(tmp_path / "out"))
  config = prepare_config(dataset="imagenet21k", input=str(archive), names="food101")
  with pytest.raises(SourceError, match="prepare.names"):
    prepare.run(config, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
