"""The rehearsal: its config beside the recipe's, its archive, and its phases at a small size."""

import importlib
import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image
import pytest

from pomp_jax import world
from pomp_jax.config import ConfigError, unpack, validate
from pomp_jax.configs import imagenet21k_fall11_vit_b16, rehearsal
from pomp_jax.data.class_lists import load_class_list
from pomp_jax.data.prepare import Selection, build, open_input
from pomp_jax.data.tfds import open_tfds
from tests import rehearsal as driver
from tests.support.world_archive import write_archive

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
  (tmp_path / "records").mkdir()
  (tmp_path / "features").mkdir()
  (tmp_path / "train").mkdir()
  for name in ("names.json", "names.txt", "fall11_whole.tar", "train/prompt.npz"):
    (tmp_path / name).touch()
  config = unpack(rehearsal.get_config(f"{phase},folder={tmp_path}"))
  validate(config)
  recipe = unpack(imagenet21k_fall11_vit_b16.get_config()).flat()
  assert {f for f, value in config.flat().items() if value != recipe[f]} == CHANGED | OWN[phase]


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


@pytest.mark.long
def test_every_phase_at_a_small_size(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["rehearsal", str(tmp_path), "--classes=40"])
  driver.main()
  rows = json.loads((tmp_path / "phases.json").read_bytes())
  assert list(rows) == list(driver.Rehearsal(tmp_path, 40).phases())
  assert [row["images"] for row in rows.values()][:3] == [840, 840, 3200]
  assert rows["train, until SIGTERM"]["images"] + rows["train, resumed"]["images"] == 3200
  assert all(row["cpu"] > 0 and row["memory"] >= row["largest"] > 0 for row in rows.values())
  results = json.loads((tmp_path / "train" / "results.json").read_bytes())
  assert (results["steps"], results["n_classes"]) == (80, 40)
  assert {"open_clip", "pth"} == {path.name[7:] for path in tmp_path.glob("export_*")}
  # A second call runs nothing, and prints the same table.
  printed = capsys.readouterr().out
  driver.main()
  assert printed.endswith(again := capsys.readouterr().out)
  assert "80 steps" in again and "prompt.npz: top-1" in again


def test_a_phase_that_was_interrupted_is_marked_and_measured_again(tmp_path, monkeypatch, capsys):
  runs = []

  def phase(name):
    def run():
      runs.append(name)
      if runs == ["a", "b"]:
        raise KeyboardInterrupt
      return 12

    return run

  phases = {name: (1, phase(name)) for name in "abc"}
  monkeypatch.setattr(driver.Rehearsal, "phases", lambda self: phases)
  monkeypatch.setattr(driver, "outcome", lambda folder: "done")
  monkeypatch.setattr("sys.argv", ["rehearsal", str(tmp_path)])
  with pytest.raises(KeyboardInterrupt):
    driver.main()
  capsys.readouterr()
  driver.main()
  assert runs == ["a", "b", "b", "c"]
  lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
  assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b (last of 2 starts)", "| c"]
  assert all(line.split(" | ")[2] == "12" for line in lines[2:])


def test_the_docstring_has_every_phase():
  text = importlib.import_module("pomp_jax.configs.rehearsal").__doc__
  assert all(f"configs/rehearsal.py:{phase} " in text for phase in rehearsal.PHASES)
