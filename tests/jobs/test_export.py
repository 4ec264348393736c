"""The export job: files for other programs, from the embedded world's CLIP."""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax import world
from pomp_jax.clip import load_clip, text_tower
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.class_lists import VocabularyError, load_categories, load_class_list
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import export
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from tests.support.clips import PLAIN_TOWER, encode_texts
from tests.support.small_run import small_config

CATEGORIES = [
  {"id": 7, "name": "teal_leaf", "synonyms": ["teal_leaf"]},
  {"id": 2, "name": "red_star", "synonyms": ["red_star", "crimson_star"]},
  {"id": 40, "name": "blue_ring_(shape)", "synonyms": ["blue_ring_(shape)"]},
]
_UPLOAD = {"hub": "hf:me/a", "license": "mit", "format": "npz"}
NAMES = ["red star", "teal leaf", "blue ring (shape)"]


@pytest.fixture(scope="module")
def encoder():
  return Encoder(load_clip(str(world.CLIP_PATH)))


@pytest.fixture
def files(tmp_path, encoder):
  """A prompt that fits, and the same names as annotations and as text."""
  context = np.random.default_rng(0).normal(0, 0.02, (4, encoder.clip.text_width))
  save_prompt(tmp_path / "prompt.npz", Prompt(context.astype(np.float32), "world"))
  (tmp_path / "names.json").write_text(json.dumps({"categories": CATEGORIES}))
  (tmp_path / "names.txt").write_text("\n".join(NAMES))
  return tmp_path


def settings(files, **changes):
  changes = {"prompt": str(files / "prompt.npz"), "names": str(files / "names.json")} | changes
  fields = {f"export.{name}": value for name, value in changes.items()}
  return small_config(job="export", **fields)


def checked(files, **changes):
  config = settings(files, **changes)
  before = sorted(files.rglob("*"))
  validate(config)
  export.check(config, str(files / "run"))
  assert sorted(files.rglob("*")) == before
  return config


def run(files, **changes):
  """The written file, and the results."""
  export.run(checked(files, **changes), str(files / "run"))
  results = json.loads((files / "run" / "results.json").read_text())
  path = files / "run" / results["output"]
  assert path.stat().st_size == results["bytes"]
  return path, results


@pytest.mark.parametrize(
  ("kind", "name"),
  [("npz", "prompt.npz"), ("safetensors", "prompt.safetensors"), ("pth", "prompt.pth.tar")],
)
def test_prompts(files, kind, name, capsys):
  path, results = run(files, format=kind, names="")
  before, after = load_prompt(files / "prompt.npz"), load_prompt(path)
  assert path.name == name
  assert (results["clip_model"], results["shape"]) == ("world", list(before.context.shape))
  np.testing.assert_array_equal(after.context, before.context)
  assert (after.clip_model, after.position) == (before.clip_model, before.position)
  assert str(path) in capsys.readouterr().out
  if kind == "pth":
    checkpoint = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(checkpoint["state_dict"]["ctx"].numpy(), before.context)


def test_a_torch_checkpoint_needs_torch(files, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)  # to import it is an ImportError now
  with pytest.raises(PromptFileError, match=r"pip install 'pomp-jax\[torch\]'"):
    checked(files, format="pth", names="")


def test_detic_has_a_row_a_category_in_the_order_of_ids(files, encoder):
  path, results = run(files, format="detic", names=str(files / "names.json"))
  found = np.load(path, allow_pickle=False)
  expected = encoder.class_features(NAMES, load_prompt(files / "prompt.npz"))
  assert (path.name, found.dtype) == ("class_features.npy", np.float16)
  assert results["shape"] == list(found.shape)
  norms = np.linalg.norm(found.astype(np.float32), axis=-1, keepdims=True)
  np.testing.assert_allclose(found / norms, expected, atol=1e-3)
  assert np.all(np.abs(norms - 1) > 0.05)


@pytest.mark.parametrize(
  ("file", "content"),
  [
    ("list.json", NAMES),
    ("annotations.json", {"categories": CATEGORIES}),
    ("names", {"categories": CATEGORIES}),
  ],
)
def test_names_are_read_as_predict_reads_them(files, file, content):
  """But a file of annotations without a suffix, which only export takes."""
  path = files / file
  path.write_text(json.dumps(content))
  checked(files, format="detic", names=str(path))
  assert tuple(category.name for category in load_categories(path)) == tuple(NAMES)
  if path.suffix:
    assert load_class_list(path).names == tuple(NAMES)


def test_detic_with_synonyms_under_a_template(files, encoder):
  path, _ = run(files, format="detic", prompt="a {}", synonyms=True)
  texts = [f"a {name}" for name in (*NAMES, "crimson star")]
  tower = text_tower(PLAIN_TOWER, encoder.clip.config.text_config)
  expected = np.array(encode_texts(encoder.clip, texts, tower))
  expected[0] = (expected[0] + expected[3]) / 2
  np.testing.assert_allclose(np.load(path), expected[:3], rtol=2**-10, atol=1e-3)


def test_open_clip_has_a_column_a_class(files, encoder):
  expected = encoder.class_features(NAMES, load_prompt(files / "prompt.npz")).T
  path, results = run(files, format="open_clip")
  np.testing.assert_allclose(np.load(path), expected, atol=1e-6)
  assert results["shape"] == list(expected.shape)
  path, _ = run(files, format="open_clip", output="weights.safetensors")
  found = safetensors.torch.load_file(path)["classifier"].numpy()
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture
def bad_files(files):
  """Names and prompts beside `files` that can't be exported as they are."""
  (files / "twice.json").write_text('["star", "star"]')
  save_prompt(files / "wide.pth", Prompt(np.zeros((4, 7), np.float32), "other"))
  width = load_prompt(files / "prompt.npz").context.shape[-1]
  save_prompt(files / "each.safetensors", Prompt(np.zeros((2, 4, width), np.float32), "world"))
  return files


@pytest.mark.parametrize(
  ("changes", "error", "part"),
  [
    ({"format": "onnx"}, ConfigError, "config.export.format: got 'onnx'"),
    ({"names": ""}, ConfigError, "config.export.names"),
    (_UPLOAD | {"hub": "me/a"}, ConfigError, "config.export.hub"),
    (_UPLOAD | {"license": ""}, ConfigError, "config.export.license"),
    (_UPLOAD | {"license": "The MIT licence"}, ConfigError, "config.export.license"),
    (_UPLOAD | {"format": "pth"}, ConfigError, "config.export.format"),
    (_UPLOAD | {"output": "a.npz"}, ConfigError, "config.export.output"),
    ({"output": "../p.npz"}, ConfigError, "config.export.output: got '../p.npz'"),
    ({"output": "p.pt", "format": "open_clip"}, ConfigError, "ends with .npy or .safetensors"),
    ({"names": "HERE/names.txt", "synonyms": True}, ConfigError, "has no synonyms"),
    ({"names": "HERE/twice.json"}, VocabularyError, "repeats name 1"),
    ({"prompt": "HERE/wide.pth"}, PromptFileError, "has width 7"),
    ({"prompt": "HERE/each.safetensors"}, PromptFileError, "specific, one for each of its 2"),
  ],
)
def test_bad_input_is_one_line(bad_files, changes, error, part):
  here = lambda value: value.replace("HERE", str(bad_files)) if isinstance(value, str) else value
  changes = {field: here(value) for field, value in changes.items()}
  with pytest.raises(error, match=r"^[^\n]*$") as caught:
    checked(bad_files, **{"format": "detic"} | changes)
  assert part in str(caught.value)
