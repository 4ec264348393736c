"""The job calibrate: what it writes, who uses it, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import roc_auc_score

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.errors import InputError
from pomp_jax.evaluate import Classifier
from pomp_jax.evaluate.calibrated import CalibrationError
from pomp_jax.files.calibration import classes_digest
from pomp_jax.files.prompt_file import PromptFileError, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.world import source
from tests.support.data_files import write_folder
from tests.support.small_run import run_job, settings

TEXT = "a photo of a {}."


def config_of(prompt=TEXT, **changes):
  fields = {"job": "calibrate", "calibrate.prompt": str(prompt)}
  fields |= {"data.n_classes": 40, "eval.images": 400}
  fields |= {"calibrate.test": "base", "calibrate.unknown": "novel"}
  return settings(**fields | changes)


@pytest.fixture(scope="module")
def calibrated(shared):
  """The folder of a calibrated hand-written text, and its results."""
  folder = shared("calibrated", lambda folder: run_job(config_of(), folder / "run"))
  return folder / "run", RunFolder(folder / "run").read_results()


@pytest.fixture(scope="module")
def encoder():
  return Encoder(load_clip("world"))


def test_the_prompt_file_holds_what_was_fitted(calibrated, encoder):
  folder, results = calibrated
  prompt = load_prompt(folder)
  stored = prompt.calibration
  names = json.loads((folder / "class_names.json").read_text())["names"]
  assert prompt.sentences.templates == (TEXT,)
  assert stored.temperature == results["temperature"]
  assert (stored.n_images, stored.n_classes) == (200, 40)
  assert stored.classes == classes_digest(names) and len(names) == 40
  assert (stored.clip_model, stored.clip) == ("world", encoder.clip_digest)
  assert (stored.floor, stored.error) == (results["floor"], 0.05)
  assert dataclasses.asdict(stored.sets) | {"of_class": {}} == results["sets"]
  assert stored.n_right == round(results["after"]["top1"] * 200)


def test_figures_of_the_test_split_are_those_of_float64(calibrated, encoder):
  folder, results = calibrated
  names = RunFolder(folder).path / "class_names.json"
  images = source("base", n_images=400, n_classes=40)
  assert list(images.names) == json.loads(names.read_text())["names"]
  features = encoder.image_features(images.images(np.arange(400))).astype(np.float64)
  rows = encoder.class_features(images.names, TEXT).astype(np.float64)
  logits = encoder.clip.logit_scale * features @ rows.T
  test, stored = results["test"], load_prompt(folder).calibration
  right = logits.argmax(1) == images.labels
  for label, temperature in (("before", 1.0), ("after", stored.temperature)):
    confidence = scipy.special.softmax(logits / temperature, axis=1).max(1)
    figures = test[label]
    assert figures["top1"] == pytest.approx(right.mean())
    assert figures["mean_confidence"] == pytest.approx(confidence.mean(), abs=1e-5)
  probabilities = scipy.special.softmax(logits / stored.temperature, axis=1)
  refused = probabilities.max(1)[right] < stored.floor
  assert test["floor"]["refused_right"]["share"] == pytest.approx(refused.mean())
  inside = probabilities >= 1 - stored.sets.threshold
  covered = inside[np.arange(400), images.labels].mean()
  assert test["sets"]["covered"]["share"] == pytest.approx(covered)
  assert test["sets"]["mean_size"] == pytest.approx(inside.sum(1).mean())
  assert results["unknown"]["unknown_images"] == 400


def test_figures_of_unknown_images_are_those_of_float64(calibrated, encoder):
  """Known and unknown images under the known names, in that order."""
  folder, results = calibrated
  stored = load_prompt(folder).calibration
  names = json.loads((folder / "class_names.json").read_text())["names"]
  rows = encoder.class_features(names, TEXT).astype(np.float64)
  factor = encoder.clip.logit_scale / stored.temperature
  likeliest = []
  for split in ("base", "novel"):
    images = source(split, n_images=400, n_classes=40).images(np.arange(400))
    features = encoder.image_features(images).astype(np.float64)
    likeliest.append(scipy.special.softmax(factor * features @ rows.T, axis=1).max(1))
  known, unknown = likeliest
  figures = results["unknown"]
  refused = (unknown < stored.floor).mean()
  assert figures["refused"]["share"] == pytest.approx(refused)
  assert refused > (known < stored.floor).mean() + 0.1
  area = roc_auc_score(np.repeat([1, 0], 400), np.concatenate(likeliest))
  # In float32 probabilities near 1 are equal, which counts half.
  assert figures["scores"]["calibrated"]["auroc"] == pytest.approx(area, abs=0.005)


def test_each_field_changes_what_it_names(calibrated, tmp_path):
  """A run with another value of every field beside the one with defaults."""
  before = calibrated[1]
  changes = {"calibrate.error": 0.2, "calibrate.coverage": 0.8}
  changes |= {"calibrate.sets": "raps", "calibrate.test": "", "calibrate.unknown": ""}
  after = run_job(config_of("{}.", **changes), tmp_path / "run")
  assert load_prompt(tmp_path / "run").sentences.templates == ("{}.",)
  assert (before["error"], after["error"]) == (0.05, 0.2)
  # More right answers may be refused.
  assert after["floor"] > before["floor"]
  assert (before["sets"]["kind"], after["sets"]["kind"]) == ("pooled", "raps")
  assert (before["sets"]["coverage"], after["sets"]["coverage"]) == (0.9, 0.8)
  assert before["test"]["split"] == "base" and "test" not in after
  assert before["unknown"]["split"] == "novel" and "unknown" not in after


def test_the_report_says_what_is_promised(calibrated):
  folder, results = calibrated
  text = (folder / "report.html").read_text()
  assert f"Temperature {results['temperature']:.3g}" in text
  assert "AUROC" in text and "They say nothing of another camera" in text


def test_a_classifier_uses_the_temperature_and_says_so(calibrated, encoder):
  folder, results = calibrated
  images = source("base", n_images=4, n_classes=40).images(np.arange(4))
  calibrated_one = Classifier(encoder, folder)
  plain = Classifier(encoder, folder, calibration="never")
  temperature = results["temperature"]
  expected = scipy.special.softmax(
    np.log(plain.probabilities(images).astype(np.float64)) / temperature, axis=1
  )
  np.testing.assert_allclose(calibrated_one.probabilities(images), expected, atol=1e-5)
  assert f"temperature {temperature:.3g}" in calibrated_one.scale.note
  assert "200 validation images" in calibrated_one.scale.note
  assert plain.scale.note == "not calibrated"


def test_other_classes_have_no_temperature(calibrated, encoder, caplog):
  folder, _ = calibrated
  names = ["red star", "teal leaf"]
  other = Classifier(encoder, folder, names)
  assert other.scale.calibration is None
  assert other.scale.logit_scale == encoder.clip.logit_scale
  assert "another list of 40 classes" in caplog.text
  with pytest.raises(CalibrationError, match="another list of 40 classes"):
    Classifier(encoder, folder, names, calibration="required")
  with pytest.raises(CalibrationError, match="has no temperature"):
    Classifier(encoder, TEXT, names, calibration="required")


def test_a_temperature_of_another_clip(calibrated, encoder):
  folder, _ = calibrated
  scale = encoder.clip.params["logit_scale"] + np.float32(0.5)
  params = dict(encoder.clip.params) | {"logit_scale": scale}
  other = dataclasses.replace(encoder.clip, name="other", params=params)
  with pytest.raises(CalibrationError) as refused:
    Classifier(other, folder)
  line = str(refused.value)
  assert "'world'" in line and "'other'" in line and "\n" not in line
  Classifier(other, folder, calibration="never")


def test_other_formats_carry_it(calibrated, tmp_path):
  prompt = dataclasses.replace(
    load_prompt(calibrated[0]),
    sentences=None,
    context=np.ones((2, 64), np.float32),
  )
  for name in ("a.npz", "a.safetensors", "a.pth.tar"):
    save_prompt(tmp_path / name, prompt)
    assert load_prompt(tmp_path / name).calibration == prompt.calibration
  content = (tmp_path / "a.safetensors").read_bytes()
  damaged = content.replace(b'\\"n_images\\": 200', b'\\"n_images\\": 201')
  assert damaged != content
  (tmp_path / "b.safetensors").write_bytes(damaged)
  with pytest.raises(PromptFileError, match="crc32"):
    load_prompt(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
  "changes",
  [
    {"temperature": 0},
    {"temperature": "1"},
    {"floor": 2.0},
    {"sets": {"kind": "other"}},
    {"more": 1},
    {"n_images": -1},
  ],
)
def test_a_damaged_calibration_is_one_line(calibrated, tmp_path, changes):
  with np.load(calibrated[0] / "prompt.npz") as file:
    arrays = dict(file)
  stored = json.loads(str(arrays["calibration"])) | changes
  arrays["calibration"] = np.array(json.dumps(stored))
  np.savez(tmp_path / "prompt.npz", **arrays)
  with pytest.raises(PromptFileError, match=r"prompt\.npz: calibration is"):
    load_prompt(tmp_path / "prompt.npz")


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"calibrate.prompt": ""}, "calibrate.prompt"),
    ({"calibrate.prompt": "outputs:imagenet"}, "calibrate.prompt"),
    ({"calibrate.error": 0.0}, "calibrate.error"),
    ({"calibrate.sets": "all"}, "calibrate.sets"),
    ({"calibrate.test": "elsewhere"}, "calibrate.test"),
    ({"calibrate.test": "novel"}, "calibrate.test"),
    ({"calibrate.unknown": "base"}, "calibrate.unknown"),
    ({"eval.images": 30, "data.n_classes": 10}, "eval.images"),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, changes, field):
  with pytest.raises(ConfigError) as refused:
    run_job(config_of(**changes), tmp_path / "run")
  assert refused.value.field == field
  assert not (tmp_path / "run").exists()


def test_a_floor_without_validation_images(tmp_path):
  for split in ("train", "test"):
    write_folder(tmp_path / "pictures" / split, ("daisy", "rose"), 3)
  changes = {"data.source": "folder", "data.root": str(tmp_path / "pictures")}
  changes |= {"data.validation_share": 0.0}
  changes |= {"calibrate.test": "", "calibrate.unknown": "", "data.n_classes": 0}
  with pytest.raises(InputError, match="validation"):
    run_job(config_of(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()
