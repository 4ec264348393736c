"""The rehearsal: its config beside the recipe's, its archive, and all phases at a small size."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image
import pytest

from docs.studies.world_archive import write_archive
from pomp_jax import world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import imagenet21k_fall11_vit_b16, rehearsal
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.prepare import Selection, build, open_input
from pomp_jax.data.tfds import open_tfds

# Fields that differ from the recipe in every phase, as the config's docstring says.
CHANGED = {
  "clip.model",
  "clip.dtype",
  "data.names",
  "data.views",
  "data.view_epochs",
  "data.feature_cache",
  "checkpoint.every",
  "eval.images",
  "prepare.input",
  "evaluate.prompts",
  "evaluate.images",
  "export.prompt",
  "export.format",
  "export.names",
}
OWN = {
  "prepare": {"job"},
  "cache": {"job", "data.root"},
  "train": {"data.root", "data.features"},
  "evaluate": {"job", "data.root"},
  "export": {"job", "data.root"},
}


@pytest.mark.parametrize("phase", rehearsal.PHASES)
def test_a_phase_is_the_recipe_but_for_these_fields(phase, tmp_path):
  for name in ("records", "features", "train"):
    (tmp_path / name).mkdir()
  for name in ("names.json", "names.txt", "fall11_whole.tar", "train/prompt.npz"):
    (tmp_path / name).touch()
  config = unpack(rehearsal.get_config(f"{phase},folder={tmp_path}"))
  validate(config)
  recipe = unpack(imagenet21k_fall11_vit_b16.get_config()).flat()
  assert {f for f, value in config.flat().items() if value != recipe[f]} == CHANGED | OWN[phase]
  assert f"configs/rehearsal.py:{phase} " in rehearsal.__doc__


def test_arguments_behind_the_phase():
  config = unpack(rehearsal.get_config("train,classes=400,folder=D,accumulate=4,fresh=2"))
  assert (config.k, config.batch_size, config.checkpoint.every) == (200, 400, 16)
  assert (config.eval.images, config.accumulate, config.data.view_epochs) == (2000, 4, 2)
  assert config.data.feature_cache == "D/features"


@pytest.mark.parametrize(
  "argument, field",
  [("", "job"), ("pretrain", "job"), ("train,classes=7", "classes"), ("train,classe=9", "classe")],
)
def test_a_wrong_argument_is_named(argument, field):
  with pytest.raises(ConfigError) as caught:
    rehearsal.get_config(argument)
  assert caught.value.field == field


@pytest.mark.slow("a process renders the archive of docs/studies")
def test_the_archive_holds_the_worlds_classes_under_wordnet_ids(tmp_path):
  n_classes, n_images = 3, 4
  assert write_archive(tmp_path, n_classes, n_images, workers=1) == 12
  drawn = world.source("train", images_per_class=n_images, n_classes=n_classes)
  table = json.loads((tmp_path / "names.json").read_text())
  assert [row["name"] for row in table] == list(drawn.names)
  assert (tmp_path / "names.txt").read_text().splitlines() == list(drawn.names)
  archive = tmp_path / "fall11_whole.tar"
  with tarfile.open(archive) as tar:
    assert tar.getnames() == [f"{row['synset']}.tar" for row in table]
  assert {row["synset"] for row in table} <= set(load_class_list("imagenet21k").synsets)
  # Back through the job's own way: records, and labels by id.
  report = build(open_input("imagenet21k", archive), tmp_path / "records", Selection(3, 1, 1))
  assert {name: split["images"] for name, split in report["splits"].items()} == {
    "train": 9,
    "validation": 3,
  }
  classes = load_class_list(tmp_path / "names.json")
  source = open_tfds("imagenet21k", "train", root=tmp_path / "records", classes=classes)
  assert source.names == drawn.names
  for i, (key, label) in enumerate(zip(source.keys.tolist(), source.labels.tolist(), strict=True)):
    synset, _, number = pathlib.PurePath(key).stem.rpartition("_")
    assert table[label]["synset"] == synset.rpartition("/")[2]
    expected = drawn.images(np.array([n_images * label + int(number)]))[0]
    found = np.asarray(Image.open(io.BytesIO(source.encoded(i))))
    assert np.abs(found.astype(int) - expected).mean() < 6  # JPEG, of noisy pictures


@pytest.mark.slow("all phases, in two processes")
def test_every_phase_at_a_small_size(tmp_path, monkeypatch, capsys):
  from docs.studies import rehearsal as driver  # needs psutil

  monkeypatch.setattr("sys.argv", ["rehearsal", str(tmp_path), "--classes=40"])
  driver.main()
  rows = json.loads((tmp_path / "phases.json").read_bytes())
  assert [row["images"] for row in rows.values()][:3] == [840, 840, 3200]
  assert rows["train, until SIGTERM"]["images"] + rows["train, resumed"]["images"] == 3200
  assert {"open_clip", "pth"} == {path.name[7:] for path in tmp_path.glob("export_*")}
  assert "80 steps" in capsys.readouterr().out
