"""Image towers and class vectors in programs of others: onnxruntime, open_clip, and the
arithmetic of DL Streamer's reader."""

import json
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import safetensors.torch

from pomp_jax.clip.load import load_clip
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import Classifier
from pomp_jax.rooms.certainty.classifier_export import tower_bytes
from pomp_jax.world import source
from tests.clip.test_image_towers import ORIGINALS, small_model, write_checkpoint
from tests.support.clips import write_random_clip
from tests.support.openai_clip import (
  RESNET,
  VIT,
  small_open_clip,
  write_merges,
  write_settings,
)
from tests.support.processes import ROOT
from tests.support.small_run import run_job, settings

TEXT = "a photo of a {}."
# Somebody else's program: a picture in, a name and a probability out.
_ONNX = """
import sys
import numpy as np, onnxruntime
from PIL import Image
from safetensors import safe_open
folder, path = sys.argv[1:]
with safe_open(folder + "/classifier.safetensors", "numpy") as file:
  rows, facts = file.get_tensor("embeddings"), file.metadata()
names = open(folder + "/labels.txt", encoding="utf-8").read().splitlines()
tower = onnxruntime.InferenceSession(folder + "/image_tower.onnx")
picture = Image.open(path).convert("RGB").resize((40, 40), Image.BICUBIC)
pixels = np.asarray(picture)[None]
(features,) = tower.run(None, {tower.get_inputs()[0].name: pixels})
logits = float(facts["logit_scale"]) * features @ rows.T
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
assert not any(name.startswith(("pomp_jax", "jax")) for name in sys.modules)
print(names[shares.argmax()], shares.max(), sep="|")
"""


@pytest.fixture(scope="module")
def world():
  return Encoder(load_clip("world"))


def write_open_clip(folder, vision):
  """A random CLIP in the layout of open_clip's repositories."""
  folder.mkdir()
  model = small_open_clip(vision)
  state = {name: x.contiguous().clone() for name, x in model.state_dict().items()}
  safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
  write_settings(folder, vision, quick_gelu=True)
  write_merges(folder)


def write_tower(folder, kind, monkeypatch):
  """A random CLIP with a tower of this kind."""
  if kind == "resnet":
    write_open_clip(folder, RESNET)
  elif kind == "siglip":
    folder.mkdir()
    original = ORIGINALS["siglip_b"]
    write_checkpoint(original, small_model(original, monkeypatch), folder)
  else:
    write_random_clip(folder)


def run_alone(code, *arguments):
  """Runs code in a process in which this package can't be imported from here."""
  command = [sys.executable, "-c", code, *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, cwd="/")
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow("imports jax2onnx, which takes 15 s")
@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip"])
def test_an_onnx_tower_of_each_kind(kind, tmp_path, monkeypatch):
  pytest.importorskip("jax2onnx")
  runtime = pytest.importorskip("onnxruntime")
  write_tower(tmp_path / "clip", kind, monkeypatch)
  encoder = Encoder(load_clip(str(tmp_path / "clip")))
  session = runtime.InferenceSession(tower_bytes(encoder, "onnx"))
  size = encoder.clip.image_size
  rng = np.random.default_rng(0)
  for n_images in (1, 3, 5):
    pixels = rng.integers(0, 256, (n_images, size, size, 3), dtype=np.uint8)
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    expected = encoder.image_features(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-2 or n_images == 1


@pytest.mark.slow("imports jax2onnx, which takes 15 s")
def test_a_picture_to_a_name_by_onnxruntime_alone(world, tmp_path):
  pytest.importorskip("jax2onnx")
  pytest.importorskip("onnxruntime")
  _export(tmp_path, **{"classifier.image_tower": "onnx"})
  picture = tmp_path / "a.png"
  Image.fromarray(source("base", n_images=3).images(np.arange(3))[2]).save(picture)
  name, share = run_alone(_ONNX, tmp_path / "run", picture).split("|")
  classifier = Classifier(world, TEXT, tmp_path / "names.txt")
  ((expected, probability),) = classifier.predict(str(picture), top=1)
  assert name == expected and float(share) == pytest.approx(probability, abs=1e-4)


def test_the_arithmetic_of_dl_streamers_reader(world, tmp_path):
  """Pull request 920: a header of JSON, one tensor, softmax(logit_scale * cosine)."""
  _export(tmp_path)
  content = (tmp_path / "run/classifier.safetensors").read_bytes()
  (length,) = struct.unpack("<Q", content[:8])
  header = json.loads(content[8 : 8 + length])
  facts = header.pop("__metadata__")
  ((name, tensor),) = header.items()
  assert name == "embeddings" and tensor["dtype"] == "F32"
  start, end = tensor["data_offsets"]
  data = content[8 + length + start : 8 + length + end]
  rows = np.frombuffer(data, "<f4").reshape(tensor["shape"]).astype(np.float64)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  labels = (tmp_path / "run/labels.txt").read_text().splitlines()
  assert len(labels) == len(rows)
  pixels = source("base", n_images=3).images(np.arange(3))
  features = world.image_features(pixels, unit=False).astype(np.float64)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  logits = float(facts["logit_scale"]) * features @ rows.T
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  expected = Classifier(world, TEXT, labels).probabilities(pixels)
  np.testing.assert_allclose(shares, expected, atol=1e-5)


@pytest.mark.slow("imports open_clip in a process of its own: 5 s")
def test_the_example_of_open_clip(tmp_path):
  """The five lines of docs/how-to/certainty.md, in a process of their own."""
  write_open_clip(tmp_path / "clip", VIT)
  names = ["cat", "dog", "star", "teddy bear"]
  (tmp_path / "names.txt").write_text("\n".join(names))
  fields = {"job": "export", "export.format": "open_clip", "export.prompt": TEXT}
  fields |= {"export.names": str(tmp_path / "names.txt")}
  fields |= {"clip.model": str(tmp_path / "clip")}
  run_job(settings(**fields), tmp_path / "weights")
  picture = tmp_path / "picture.png"
  pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(picture)
  page = pathlib.Path(ROOT, "docs/how-to/certainty.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  (lines,) = [block for block in blocks if "open_clip." in block]
  assert len(lines.splitlines()) == 5
  lines = lines.replace('"runs/', f'"{tmp_path}/').replace("local-dir:runs", "LOCAL")
  lines = lines.replace("LOCAL", f"local-dir:{tmp_path}")
  lines = lines.replace('"picture.png"', f'"{picture}"')
  imports = "import numpy as np, open_clip, torch\nfrom PIL import Image\n"
  label, share = run_alone(imports + lines).split()[-2:]
  classifier = Classifier(str(tmp_path / "clip"), TEXT, names)
  ((name, probability),) = classifier.predict(str(picture), top=1)
  assert names[int(label)] == name
  assert float(share) == pytest.approx(probability, abs=1e-4)


def _export(folder, **changes):
  """A classifier of 40 names in `folder/run`."""
  names = source("base", n_images=40, n_classes=40).names
  (folder / "names.txt").write_text("\n".join(names))
  fields = {"job": "export", "export.format": "classifier", "export.prompt": TEXT}
  fields |= {"export.names": str(folder / "names.txt")}
  run_job(settings(**fields | changes), folder / "run")
