"""The format classifier of export: opened by code without this package, extended, and
bad input."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from pomp_jax.clip.load import load_clip
from pomp_jax.config import ConfigError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import Classifier
from pomp_jax.files.prompt_file import load_prompt
from pomp_jax.rooms.certainty.classifier_export import (
  ClassifierFileError,
  read_classifier,
)
from pomp_jax.world import source
from tests.support.small_run import run_job, settings

TEXT = "a photo of a {}."
# Somebody else's code: features come from this package's tower, or an exported one.
_READ = """
import json, sys
import numpy as np
from safetensors import safe_open
assert not any(name.startswith("pomp_jax") for name in sys.modules)
with safe_open(sys.argv[1] + "/classifier.safetensors", "numpy") as file:
  rows, metadata = file.get_tensor("embeddings"), file.metadata()
names = open(sys.argv[1] + "/labels.txt", encoding="utf-8").read().splitlines()
assert names == json.loads(metadata["labels"])
features = np.load(sys.argv[2])
logits = float(metadata["logit_scale"]) * features @ rows.T
shares = np.exp(logits - logits.max(1, keepdims=True))
shares /= shares.sum(1, keepdims=True)
best = shares.argmax(1)
print(json.dumps([[names[i], float(row[i])] for i, row in zip(best, shares)]))
"""
_TOWER = """
import sys
import numpy as np, jax.export
assert not any(name.startswith("pomp_jax") for name in sys.modules)
tower = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert set(tower.platforms) == {"cpu", "cuda", "tpu"}
np.save(sys.argv[3], np.asarray(tower.call(np.load(sys.argv[2]))))
"""


@pytest.fixture(scope="module")
def exported(shared):
  """Folder of a calibrated text, its classifier, and one of the first 30 names."""

  def make(folder):
    fields = {"job": "calibrate", "calibrate.prompt": TEXT}
    fields |= {"data.n_classes": 40, "eval.images": 400}
    run_job(settings(**fields), folder / "run")
    run_job(export_of(folder / "run"), folder / "whole")
    names = json.loads((folder / "run/class_names.json").read_text())["names"]
    (folder / "first.txt").write_text("\n".join(names[:30]))
    (folder / "rest.txt").write_text("\n".join(names[30:]))
    run_job(export_of(folder / "run", names=folder / "first.txt"), folder / "first")

  return shared("exported_classifier", make)


@pytest.fixture(scope="module")
def encoder():
  return Encoder(load_clip("world"))


def export_of(prompt, names="", **changes):
  fields = {"job": "export", "export.format": "classifier"}
  fields |= {"export.prompt": str(prompt), "export.names": str(names)}
  return settings(**fields | changes)


def run_alone(code, *arguments):
  """Runs code in a process in which this package can't be imported from here."""
  command = [sys.executable, "-c", code, *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, cwd="/")
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_other_code_gets_names_and_probabilities(exported, encoder, tmp_path):
  images = source("base", n_images=6, n_classes=40).images(np.arange(6))
  np.save(tmp_path / "features.npy", encoder.image_features(images))
  answer = json.loads(run_alone(_READ, exported / "whole", tmp_path / "features.npy"))
  expected = Classifier(encoder, exported / "run").predict(images, top=1)
  for (name, share), ((own, own_share),) in zip(answer, expected, strict=True):
    assert name == own and share == pytest.approx(own_share, abs=1e-5)


def test_metadata(exported, encoder):
  stored = read_classifier(str(exported / "whole/classifier.safetensors"))
  calibration = load_prompt(exported / "run").calibration
  metadata = stored.metadata
  assert float(metadata["temperature"]) == calibration.temperature
  assert float(metadata["floor"]) == calibration.floor
  assert json.loads(metadata["calibration"])["classes"] == calibration.classes
  assert float(metadata["clip_logit_scale"]) == encoder.clip.logit_scale
  scale = encoder.clip.logit_scale / calibration.temperature
  assert float(metadata["logit_scale"]) == pytest.approx(scale)
  assert metadata["clip_digest"] == encoder.clip_digest
  assert np.linalg.norm(stored.rows, axis=1) == pytest.approx(1, abs=1e-5)
  # a list for which the temperature is not
  other = read_classifier(str(exported / "first/classifier.safetensors"))
  assert "temperature" not in other.metadata and "floor" not in other.metadata
  assert "other classes" in other.metadata["probabilities"]


def test_names_travel_with_every_export(exported, tmp_path):
  names = json.loads((exported / "run/class_names.json").read_text())["names"]
  found = json.loads((exported / "whole/class_names.json").read_text())["names"]
  assert found == names
  fields = {"job": "export", "export.prompt": str(exported / "run")}
  run_job(settings(**fields), tmp_path / "npz")
  assert Classifier("world", tmp_path / "npz").names == tuple(names)


def test_new_names_leave_the_other_rows_bit_for_bit(exported, tmp_path, monkeypatch):
  computed = []
  features = Encoder.class_features

  def noted(self, names, *given, **more):
    computed.append(tuple(names))
    return features(self, names, *given, **more)

  monkeypatch.setattr(Encoder, "class_features", noted)
  earlier = exported / "first/classifier.safetensors"
  results = run_job(
    export_of(
      exported / "run",
      names=exported / "rest.txt",
      **{"classifier.extend": str(earlier)},
    ),
    tmp_path / "run",
  )
  rest = (exported / "rest.txt").read_text().splitlines()
  assert {*computed} == {tuple(rest)} and results["added"] == len(rest) == 10
  path = str(tmp_path / "run/classifier.safetensors")
  found, first = read_classifier(path), read_classifier(str(earlier))
  assert found.rows[:30].tobytes() == first.rows.tobytes()
  assert found.names == (*first.names, *rest)
  whole = read_classifier(str(exported / "whole/classifier.safetensors"))
  np.testing.assert_allclose(found.rows, whole.rows, atol=1e-6)
  # the list is that of the calibration again
  assert found.metadata["temperature"] == whole.metadata["temperature"]
  names = json.loads((tmp_path / "run/class_names.json").read_text())["names"]
  assert tuple(names) == found.names


def test_answers_that_change_with_new_names(exported, encoder, tmp_path, capsys):
  """Those of two classifiers, each with its own names, in NumPy."""
  (tmp_path / "pictures/some").mkdir(parents=True)
  pixels = source("base", n_images=40, n_classes=40).images(np.arange(40))
  for i, one in enumerate(pixels):
    Image.fromarray(one).save(tmp_path / f"pictures/some/{i:02}.png")
  (tmp_path / "pictures/broken.png").write_bytes(b"no picture")
  changes = {
    "classifier.extend": str(exported / "first/classifier.safetensors"),
    "classifier.images": str(tmp_path / "pictures"),
  }
  config = export_of(exported / "run", names=exported / "rest.txt", **changes)
  answers = run_job(config, tmp_path / "run")["answers"]
  assert (answers["images"], answers["unreadable"]) == (40, 1)
  prompt = exported / "run"
  before = Classifier(encoder, prompt, exported / "first.txt").predict(pixels, top=1)
  after = Classifier(encoder, prompt).predict(pixels, top=1)
  expected = {
    f"some/{i:02}.png": (old, new)
    for i, (((old, _),), ((new, _),)) in enumerate(zip(before, after, strict=True))
    if old != new
  }
  found = {one["file"]: (one["before"], one["after"]) for one in answers["changes"]}
  assert found == expected and 0 < len(found) == answers["changed"] < 40
  gains = [one["cosine_after"] - one["cosine_before"] for one in answers["changes"]]
  assert gains == sorted(gains, reverse=True) and gains[-1] > 0
  assert f"answers that change: {len(found)} of 40 pictures" in capsys.readouterr().out


def test_a_stablehlo_tower_without_this_package(exported, encoder, tmp_path):
  pytest.importorskip("flatbuffers")
  changes = {"classifier.image_tower": "stablehlo"}
  run_job(export_of(exported / "run", **changes), tmp_path / "run")
  pixels = source("base", n_images=7).images(np.arange(7))
  np.save(tmp_path / "pixels.npy", pixels)
  tower = tmp_path / "run/image_tower.stablehlo"
  out = tmp_path / "features.npy"
  run_alone(_TOWER, tower, tmp_path / "pixels.npy", out)
  np.testing.assert_allclose(
    np.load(out), encoder.image_features(pixels), atol=1e-4, rtol=0
  )
  # A picture is the tower's input as the file says.
  told = json.loads((tmp_path / "run/preprocessing.json").read_text())
  assert told["size"] == 40 and told["interpolation"] == "bicubic"
  assert told["input"] == "uint8 [B,40,40,3]"


@pytest.mark.parametrize(
  ("changes", "error", "line"),
  [
    ({"export.names": ""}, ConfigError, "export.names"),
    ({"classifier.extend": "nowhere"}, ConfigError, "classifier.extend"),
    ({"classifier.image_tower": "torch"}, ConfigError, "classifier.image_tower"),
    ({"classifier.images": "EXPORTED"}, ConfigError, "classifier.images"),
    ({"classifier.extend": "EXPORTED/first.txt"}, ClassifierFileError, "first.txt"),
    (
      {"classifier.extend": "EXPORTED/first/classifier.safetensors"},
      ConfigError,
      "export.names",
    ),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
  exported, tmp_path, changes, error, line
):
  changes = {
    name: value.replace("EXPORTED", str(exported)) for name, value in changes.items()
  }
  config = export_of(TEXT, names=exported / "first.txt", **changes)
  with pytest.raises(error) as refused:
    run_job(config, tmp_path / "run")
  assert line in str(refused.value) and "\n" not in str(refused.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["prompt", "rows"])
def test_an_earlier_classifier_of_another_prompt_or_damaged(exported, tmp_path, change):
  earlier = read_classifier(str(exported / "first/classifier.safetensors"))
  rows = earlier.rows.copy()
  prompt = exported / "run"
  if change == "rows":
    rows[3] *= -1
  else:
    prompt = "the {}"
  path = tmp_path / "earlier.safetensors"
  path.write_bytes(safetensors.numpy.save({"embeddings": rows}, earlier.metadata))
  config = export_of(
    prompt, names=exported / "rest.txt", **{"classifier.extend": str(path)}
  )
  line = "damaged" if change == "rows" else "prompt_digest"
  with pytest.raises(ClassifierFileError, match=line):
    run_job(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_picture_of_a_file_end_to_end(exported, encoder, tmp_path):
  """Pillow alone prepares the picture, as preprocessing.json says."""
  pixels = source("base", n_images=3, n_classes=40).images(np.arange(3))[2]
  Image.fromarray(pixels).resize((100, 80)).save(tmp_path / "a.png")
  picture = Image.open(tmp_path / "a.png").convert("RGB")
  picture = picture.resize((50, 40), Image.Resampling.BICUBIC).crop((5, 0, 45, 40))
  own = encoder.image_features(np.asarray(picture)[None])
  np.save(tmp_path / "features.npy", own)
  (answer,) = json.loads(
    run_alone(_READ, exported / "whole", tmp_path / "features.npy")
  )
  classifier = Classifier(encoder, exported / "run")
  ((name, share),) = classifier.predict(str(tmp_path / "a.png"), top=1)
  assert answer[0] == name and answer[1] == pytest.approx(share, abs=1e-4)
