"""Features of a file: open_clip's, dumped by the script; jobs on them do what they
do on images."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from docs.scripts import dump_open_clip as script
from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.data.folder import classes_in, open_folder
from pomp_jax.data.source import SourceError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import image_splits, opening
from pomp_jax.files.features import DamagedFeaturesError, FeatureStoreError
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.rooms.data_sets.feature_folder import open_split, read_header
from pomp_jax.train import batches
from tests.support.checks import assert_close
from tests.support.data_files import NAMES
from tests.support.openai_clip import VIT, small_open_clip, write_merges, write_settings
from tests.support.small_run import run_job, small_config

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
BAD = 10  # daisy/2.jpg


def _opened(folder, size):
  return open_folder(folder, classes_in(folder)).replace(image_size=size)


@pytest.fixture(scope="module")
def dumped(shared, cut_pictures, one_layer):
  """Features of the world's CLIP, as a folder."""

  def write(out):
    encoder, of_splits = (
      opening.open_encoder(small_config(**{"clip.model": one_layer}).clip),
      {},
    )
    for split, folder in FOLDERS.items():
      source = _opened(cut_pictures / folder, encoder.clip.image_size)
      good = np.setdiff1d(np.arange(len(source)), [BAD] if split == "train" else [])
      features = np.full(
        (len(source), encoder.clip.config.projection_dim), np.nan, np.float32
      )
      features[good] = encoder.image_features(source.images(good), unit=False)
      given = source.labels, source.keys.tolist(), np.array_split(features, 3)
      of_splits[split] = script.write_split(
        out, split, *given, features.shape[1], "float32"
      )
    header = {"format_version": 1, "clip_model": one_layer, "width": features.shape[1]}
    header |= {"names": sorted(NAMES), "splits": of_splits}
    script.write_header(out, header)

  return shared("dumped", write)


@pytest.fixture(scope="module")
def config_of(cut_pictures, dumped, one_layer):
  """A function: whether on the file, changes -> config of 12 steps over 4 epochs."""

  def config(on_file, **changes):
    data = {
      "data.source": "folder",
      "data.root": str(cut_pictures),
      "data.features": "stored",
    }
    if on_file:
      data |= {
        "data.source": "features",
        "data.root": str(dumped),
        "data.features": "file",
      }
    settings = {"clip.model": one_layer, "k": 4, "batch_size": 8, "data.n_classes": 0}
    settings |= {"data.max_corrupt": 0.05, "checkpoint.every": 4, "eval.images": 0}
    return small_config(**data | settings | changes)

  return config


@pytest.fixture(scope="module")
def on_images(config_of, tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  return RunFolder(folder), run_job(config_of(False), folder)


@pytest.mark.slow("15 s: open_clip, and a CLIP's towers compiled for its widths")
def test_the_script_dumps_what_our_image_tower_computes(cut_pictures, tmp_path, capsys):
  torch.manual_seed(0)
  model, clip_folder = small_open_clip(VIT, quick_gelu=True), tmp_path / "clip"
  clip_folder.mkdir()
  state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
  safetensors.torch.save_file(state, clip_folder / "open_clip_model.safetensors")
  write_settings(clip_folder, VIT, quick_gelu=True)
  write_merges(clip_folder)
  clip = load_clip(str(clip_folder))
  arguments = [
    "--model",
    f"local-dir:{clip_folder}",
    "--clip",
    clip.name,
    "--device",
    "cpu",
  ]
  arguments += ["--data", str(cut_pictures), "--workers", "0", "--batch-size", "7"]
  for dtype, tolerance in (("float32", 1e-4), ("float16", 2e-3)):
    out = tmp_path / dtype
    script.main([*arguments, "--out", str(out), "--dtype", dtype])
    assert "daisy/2.jpg: can't be read" in capsys.readouterr().err
    settings = small_config(**{"data.source": "features", "data.root": str(out)}).data
    for split, folder in FOLDERS.items():
      expected = _opened(cut_pictures / folder, clip.image_size)
      # As by a worker process.
      found = pickle.loads(pickle.dumps(open_split(settings, split)))
      assert found.names == expected.names and (found.keys == expected.keys).all()
      np.testing.assert_array_equal(found.labels, expected.labels)
      rows = found.features(np.arange(len(found)))
      bad = [BAD] if split == "train" else []
      assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == bad
      good = np.setdiff1d(np.arange(len(found)), bad)
      features = Encoder(clip).image_features(expected.images(good), unit=False)
      assert_close(rows[good], features, tolerance)
      opening.check_features(found, clip.name, clip.config)
  # Without an image tower here.
  data = {"data.source": "features", "data.features": "file", "data.root": str(out)}
  clip_alone = {"clip.model": clip.name, "clip.image_tower": False, "data.n_classes": 0}
  run_job(
    small_config(k=4, batch_size=8, steps=2, **data, **clip_alone), tmp_path / "run"
  )
  # What is complete stays, and what is not in features.json is dumped again.
  header = json.loads((out / "features.json").read_text())
  again = header | {"splits": {"train": header["splits"]["train"]}}
  (out / "features.json").write_text(json.dumps(again))
  for split in ("train", "test"):
    (out / f"{split}.npy").unlink()
  script.main([*arguments, "--out", str(out)])
  assert json.loads((out / "features.json").read_text())["splits"] == header["splits"]
  assert (out / "test.npy").exists() and not (out / "train.npy").exists()
  with pytest.raises(SystemExit, match="another model"):
    script.main([*arguments, "--out", str(out), "--clip", "other"])


def test_a_training_is_that_on_the_images(on_images, config_of, tmp_path, monkeypatch):
  expected, results = on_images
  monkeypatch.setattr(Encoder, "image_features", None)
  monkeypatch.setattr(Encoder, "features_of_images", None)
  # After the checkpoint of step 8; the next start takes the rest.
  send = batches.on_devices
  monkeypatch.setattr(
    batches, "on_devices", lambda *given: itertools.islice(send(*given), 9)
  )
  config = config_of(True)
  with pytest.raises(StopIteration):
    run_job(config, tmp_path)
  monkeypatch.setattr(batches, "on_devices", send)
  found = run_job(config, tmp_path)
  run = RunFolder(tmp_path)
  contexts = [load_prompt(one.prompt).context for one in (run, expected)]
  np.testing.assert_allclose(*contexts, rtol=0, atol=1e-6)
  assert np.abs(contexts[0]).max() > 1e-2
  assert _figures(found) == _figures(results)
  assert "daisy/2.jpg" in found["unreadable"]["train"][0] and not run.features.exists()
  assert (
    not (run.plots / "predictions.png").exists() and (run.path / "report.html").exists()
  )


def test_runs_know_their_own_features(config_of, dumped, copy_of, tmp_path):
  root = copy_of(dumped)
  config = config_of(True, **{"steps": 4, "eval.images": 6, "data.root": str(root)})
  evaluation = config_of(True, job="evaluate", **{"data.root": str(root)})
  run_job(config, tmp_path / "run")
  (tmp_path / "run" / "results.json").unlink()
  before = run_job(evaluation, tmp_path / "evaluation")["accuracy"]
  header = _header(root)
  for split in ("train", "test"):
    rows, labels = np.load(root / f"{split}.npy"), np.load(root / f"{split}_labels.npy")
    given = labels, (root / f"{split}_keys.txt").read_text().splitlines(), [-rows]
    header["splits"][split] = script.write_split(
      root, split, *given, rows.shape[1], "float32"
    )
  script.write_header(root, header)
  image_splits.forget_sources()
  with pytest.raises(
    FeatureStoreError, match="training_images.json: images is .*features"
  ):
    run_job(config, tmp_path / "run")
  assert run_job(evaluation, tmp_path / "evaluation")["accuracy"] != before


def _more(changes):
  return pytest.param(changes, marks=pytest.mark.slow("15 s a job, on both folders"))


@pytest.mark.parametrize(
  "changes",
  [
    {"job": "evaluate", "evaluate.prompts": "hand_written;a {}."},
    {"job": "analyse", "analyse.prompts": "hand_written"},
    {"method": "zero_shot"},
    {
      "method": "linear_probe",
      "probe.iterations": 5,
      "data.classes": "base",
      "data.shots": 2,
    },
    {"method": "tip_adapter_f", "tip.epochs": 2},
    {"method": "cocoop", "steps": 2, "batch_size": 4, "eval.images": 6},
    # These three train or read as pretrain and evaluate do.
    _more({"job": "repeat", "repeat.seeds": "3", "steps": 2, "eval.images": 6}),
    _more({"job": "ablate", "ablate.grid": "k=3|4", "steps": 2, "eval.images": 6}),
    _more(
      {"job": "gradient_bias", "gradient_bias.images": 8, "gradient_bias.k": "3"}
      | {"gradient_bias.rows": 64, "gradient_bias.samplers": "uniform"}
    ),
  ],
  ids=lambda changes: changes.get("job", changes.get("method")),
)
def test_jobs_find_what_they_find_on_images(config_of, tmp_path, monkeypatch, changes):
  expected = _figures(run_job(config_of(False, **changes), tmp_path / "images"))
  monkeypatch.setattr(Encoder, "image_features", None)
  monkeypatch.setattr(Encoder, "features_of_images", None)
  assert _figures(run_job(config_of(True, **changes), tmp_path / "file")) == expected


def test_own_sets_of_a_file(config_of, cut_pictures, dumped, tmp_path):
  """Beside the pictures themselves, under another list of names, of which one has no
  image."""
  names = [*sorted(NAMES, reverse=True), "zebra"]
  sets = [
    {"name": reader, "reader": reader, "root": str(root), "names": names}
    for reader, root in (("folder", cut_pictures), ("features", dumped))
  ]
  config = config_of(False, job="evaluate", **{"evaluate.own_sets": tuple(sets)})
  found = run_job(config, tmp_path)["sets"]
  assert _figures(found["features"]) == _figures(found["folder"])
  assert found["features"]["missing_classes"] == 1
  alone = config_of(True, job="evaluate", **{"evaluate.own_sets": tuple(sets)})
  with pytest.raises(ConfigError, match="clip.image_tower: got False"):
    run_job(alone.replace({"clip.image_tower": False}), tmp_path)


def _figures(results):
  """Accuracies and the like, rounded, by their place."""
  skipped = {
    "seconds",
    "eval_seconds",
    "memory_mib",
    "images_per_second",
    "seconds_of_last_start",
  }
  skipped |= {"unreadable", "step_times", "loss", "productive_share"}

  def flat(value, place):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
      # A set is named after its folder.
      where = (*place, str(key).replace("dumped", "cut_pictures"))
      if isinstance(item, dict | list | tuple) and key not in skipped:
        yield from flat(item, where)
      elif isinstance(item, float | int) and key not in skipped:
        yield where, pytest.approx(item, rel=1e-3, abs=1e-4)

  return dict(flat(results, ()))


def _header(root):
  header = json.loads((root / "features.json").read_text())
  del header["checksum"]
  return header


def _with_header(**changes):
  return lambda root: script.write_header(root, _header(root) | changes)


def test_no_flipped_bit_becomes_another_name(dumped, copy_of):
  """Without a checksum, as earlier scripts wrote the file, it is taken as it is."""
  path = copy_of(dumped) / "features.json"
  content, whole, noticed = path.read_bytes(), read_header(path.parent), 0
  bits = np.random.default_rng(0).permutation(8 * len(content))[:400].tolist()
  for bit in bits:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
      assert read_header(path.parent) == whole, bit
    except (SourceError, VocabularyError) as error:
      assert str(path) in str(error)
      noticed += 1
  assert noticed > 0.9 * len(bits)
  path.write_text(json.dumps(_header(dumped)))
  assert read_header(path.parent) == whole


def _write(name, content):
  return lambda root: (root / name).write_bytes(content)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      _with_header(clip_model="open_clip:ViT-L-14/dfn2b"),
      "features.json: clip_model: got 'open_",
    ),
    (
      _with_header(width=65),
      r"train.npy: got float32 \[24, 128\], expected .*\[24, 65\]",
    ),
    (_with_header(width=True), "features.json: width: got True"),
    (
      _with_header(format_version=2),
      "features.json: format_version: got 2, expected 1",
    ),
    (_with_header(names=["a", 1]), "features.json: names: got"),
    (_with_header(names=["a", "a"]), "features.json: names: name 2"),
    (_with_header(names=["a", "b"]), r"train_labels.npy: labels outside 0\.\.1"),
    (_with_header(splits={"val": "0"}), "features.json: splits: got"),
    (_with_header(splits={}), "features.json: splits: got {}"),
    (
      _with_header(splits={"test": "0"}),
      r"features \S*: no training images \(found test\)",
    ),
    (
      _with_header(splits={"train": "0"}),
      "features.json: splits.train: got '0', expected",
    ),
    (_write("features.json", b"[" * 100_000), "features.json: not JSON"),
    (_write("features.json", b"[]"), "features.json: format_version: got None"),
    (lambda root: (root / "train_keys.txt").unlink(), "train_keys.txt: can't be read"),
    (
      lambda root: np.save(root / "test.npy", [{}]),
      "test.npy: can't be read .*Python objects",
    ),
    (
      _write("test.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("),
      "test.npy: can't be read",
    ),
    (_write("validation.npy", b""), "validation.npy: can't be read"),
    (
      lambda root: np.save(root / "test.npy", np.zeros((18, 64))),
      "test.npy: got float64",
    ),
  ],
)
def test_a_file_that_cannot_be_is_one_line(
  config_of, dumped, copy_of, tmp_path, change, message
):
  root = copy_of(dumped)
  change(root)
  with pytest.raises((SourceError, VocabularyError), match=message) as error:
    run_job(config_of(True, **{"data.root": str(root)}), tmp_path / "run")
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_damaged_row_is_one_line_when_it_is_read(
  config_of, dumped, copy_of, tmp_path
):
  root = copy_of(dumped)
  content = bytearray((root / "test.npy").read_bytes())
  content[-1] ^= 1
  (root / "test.npy").write_bytes(content)
  with pytest.raises(DamagedFeaturesError, match="test.npy: row 17 changed after"):
    config = config_of(True, method="linear_probe", **{"data.root": str(root)})
    run_job(config.replace({"probe.iterations": 1}), tmp_path / "run")


def test_another_width_than_the_clips(dumped, config_of, one_layer):
  source = opening.open_source(config_of(True).data, "test")
  clip = opening.clip_config(one_layer)
  # A dry run has random weights.
  opening.check_features(source, f"synthetic:{one_layer}", clip)
  with pytest.raises(SourceError, match="width: got 128, expected 65"):
    opening.check_features(
      source, one_layer, dataclasses.replace(clip, projection_dim=65)
    )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data.source": "world", "data.root": ""},
      "data.features: got 'file', expected 'online' or",
    ),
    (
      {"data.features": "stored"},
      "data.features: got 'stored', expected 'file' where data.source",
    ),
    (
      {"data.augment": "recipe"},
      "data.augment: got 'recipe', expected 'none' where data.features",
    ),
    ({"data.views": 2}, "data.views: got 2"),
    (
      {"data.source": "world", "data.root": "", "clip.image_tower": False},
      "clip.image_tower: got False, expected True",
    ),
    ({"job": "predict", "clip.image_tower": False}, "clip.image_tower: got False"),
    ({"data.upright": True}, "data.upright: got True"),
    ({"data.root": "", "dry_run": True}, "data.root: got ''"),
    (
      {"method": "vpt_shallow"},
      "data.features: got 'file', expected 'online' where method=",
    ),
  ],
)
def test_settings_that_cannot_be(config_of, changes, message):
  with pytest.raises(ConfigError, match=message):
    validate(config_of(True, **changes))
