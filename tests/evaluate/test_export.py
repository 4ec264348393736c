"""The export job, and prompts that a folder or the hub holds instead of a file."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import safetensors.torch

from pomp_jax import world
from pomp_jax.clip.load import load_clip
from pomp_jax.clip.text import text_tower
from pomp_jax.config import ConfigError, validate
from pomp_jax.data.class_lists import VocabularyError
from pomp_jax.encoder import Encoder
from pomp_jax.evaluate import export
from pomp_jax.evaluate.classifier import open_prompt
from pomp_jax.evaluate.named_prompts import read_prompts
from pomp_jax.files.prompt_file import Prompt, PromptFileError, load_prompt, save_prompt
from pomp_jax.files.run_folder import RunFolder
from pomp_jax.train.initial_context import initial_context
from tests.support.clips import PLAIN_TOWER, encode_texts
from tests.support.oracles import unit
from tests.support.small_run import small_config

CATEGORIES = [
  {"id": 7, "name": "teal_leaf", "synonyms": ["teal_leaf"]},
  {"id": 2, "name": "red_star", "synonyms": ["red_star", "crimson_star", "teal_leaf"]},
  {"id": 40, "name": "blue_ring_(shape)", "synonyms": ["blue_ring_(shape)"]},
]
UPLOAD = {"hub": "hf:me/a", "license": "mit", "format": "npz"}
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


def checked(files, **changes):
  changes = {
    "prompt": str(files / "prompt.npz"),
    "names": str(files / "names.json"),
  } | changes
  fields = {f"export.{name}": value for name, value in changes.items()}
  config, before = small_config(job="export", **fields), sorted(files.rglob("*"))
  validate(config)
  export.check(config, str(files / "run"))
  assert sorted(files.rglob("*")) == before
  return config


def run(files, **changes):
  """The written file, and the results."""
  export.run(checked(files, **changes), str(files / "run"))
  results = RunFolder(files / "run").read_results()
  path = files / "run" / results["output"]
  assert path.stat().st_size == results["bytes"]
  return path, results


@pytest.mark.parametrize(
  ("kind", "end"), [("npz", "npz"), ("safetensors", "safetensors"), ("pth", "pth.tar")]
)
def test_prompts(files, kind, end, capsys):
  path, results = run(files, format=kind, names="")
  before, after = load_prompt(files / "prompt.npz"), load_prompt(path)
  assert path.name == f"prompt.{end}"
  assert (results["clip_model"], results["shape"]) == (
    "world",
    list(before.context.shape),
  )
  np.testing.assert_array_equal(after.context, before.context)
  assert (after.clip_model, after.position) == (before.clip_model, before.position)
  assert str(path) in capsys.readouterr().out


def test_a_torch_checkpoint_needs_torch(files, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)  # to import it is an ImportError now
  with pytest.raises(PromptFileError, match=r"pip install 'pomp-jax\[torch\]'"):
    checked(files, format="pth", names="")


def test_detic_has_a_row_a_category_in_the_order_of_ids(files, encoder):
  path, results = run(files, format="detic")
  found = np.load(path, allow_pickle=False)
  expected = encoder.class_features(NAMES, load_prompt(files / "prompt.npz"))
  assert (path.name, found.dtype) == ("class_features.npy", np.float16)
  assert results["shape"] == list(found.shape)
  norms = np.linalg.norm(found.astype(np.float32), axis=-1, keepdims=True)
  np.testing.assert_allclose(found / norms, expected, atol=1e-3)
  assert np.all(np.abs(norms - 1) > 0.05)


@pytest.mark.parametrize("kind", ["detic", "open_clip"])
def test_synonyms_are_means_of_features_in_open_clips_format_of_unit_ones(
  files, encoder, kind
):
  """Of the red star's three names one is another category's too."""
  path, _ = run(files, format=kind, prompt="a {}", synonyms=True)
  texts = [f"a {name}" for name in (*NAMES, "crimson star")]
  tower = text_tower(PLAIN_TOWER, encoder.clip.config.text_config)
  expected = np.array(encode_texts(encoder.clip, texts, tower))
  expected = unit(expected) if kind == "open_clip" else expected
  expected[0] = (expected[0] + expected[1] + expected[3]) / 3
  expected = unit(expected[:3]).T if kind == "open_clip" else expected[:3]
  np.testing.assert_allclose(np.load(path), expected, rtol=2**-10, atol=1e-3)


def test_open_clip_has_a_column_a_class(files, encoder):
  expected = encoder.class_features(NAMES, load_prompt(files / "prompt.npz")).T
  path, results = run(files, format="open_clip")
  np.testing.assert_allclose(np.load(path), expected, atol=1e-6)
  assert results["shape"] == list(expected.shape)
  names = str(files / "names.txt")
  path, _ = run(files, format="open_clip", output="weights.safetensors", names=names)
  found = safetensors.torch.load_file(path)["classifier"].numpy()
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_run_has_names_of_its_own_and_says_how_pictures_are_turned(files):
  """A `.safetensors` holds the rule; a `.npy` can't, so the results do."""
  folder = RunFolder(files / "own")
  folder.create()
  config = {"data": {"source": "folder", "upright": False}}
  prompt = dataclasses.replace(load_prompt(files / "prompt.npz"), config=config)
  save_prompt(folder.prompt, prompt)
  folder.write_classes(NAMES)
  own = {"prompt": str(folder.path), "names": "", "format": "open_clip"}
  path, results = run(files, **own, output="weights.safetensors")
  with safetensors.safe_open(str(path), framework="numpy") as file:
    assert json.loads(file.metadata()["names"]) == NAMES
    assert file.metadata()["upright"] == "false"
  assert (results["upright"], results["names"]) == (False, str(folder.class_names))
  _, results = run(files, format="detic")
  assert results["upright"]


@pytest.mark.parametrize(
  ("changes", "error", "part"),
  [
    ({"names": ""}, ConfigError, "config.export.names"),
    (UPLOAD | {"hub": "me/a"}, ConfigError, "config.export.hub"),
    (UPLOAD | {"license": ""}, ConfigError, "config.export.license"),
    (UPLOAD | {"license": "The MIT licence"}, ConfigError, "config.export.license"),
    (UPLOAD | {"format": "pth"}, ConfigError, "config.export.format"),
    (UPLOAD | {"output": "a.npz"}, ConfigError, "config.export.output"),
    ({"output": "../p.npz"}, ConfigError, "config.export.output: got '../p.npz'"),
    (
      {"output": "p.pt", "format": "open_clip"},
      ConfigError,
      "ends with .npy or .safetensors",
    ),
    ({"names": "HERE/names.txt", "synonyms": True}, ConfigError, "has no synonyms"),
    (
      {"prompt": "HERE/each.safetensors", "synonyms": True},
      ConfigError,
      "config.export.synonyms: got True, expected False, as the prompt is class-specific",
    ),
    ({"prompt": "HERE/rows.npy", "synonyms": True}, ConfigError, "is class-specific"),
    # One part of a mixture is enough.
    (
      {"prompt": "0.5*HERE/rows.npy + 0.5*{}.", "synonyms": True},
      ConfigError,
      "is class-specific",
    ),
    ({"names": "HERE/twice.json"}, VocabularyError, "repeats name 1"),
    ({"prompt": "HERE/wide.pth"}, PromptFileError, "has width 7"),
    (
      {"prompt": "HERE/each.safetensors"},
      PromptFileError,
      "specific, one for each of its 2",
    ),
  ],
)
def test_bad_input_is_one_line(files, changes, error, part):
  np.save(files / "rows.npy", np.eye(3, 128, dtype=np.float32))
  (files / "twice.json").write_text('["star", "star"]')
  save_prompt(files / "wide.pth", Prompt(np.zeros((4, 7), np.float32), "other"))
  save_prompt(
    files / "each.safetensors", Prompt(np.zeros((2, 4, 64), np.float32), "world")
  )
  here = lambda value: (
    value.replace("HERE", str(files)) if isinstance(value, str) else value
  )
  changes = {field: here(value) for field, value in changes.items()}
  with pytest.raises(error, match=r"^[^\n]*$") as caught:
    checked(files, **{"format": "detic"} | changes)
  assert part in str(caught.value)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_every_reader_of_prompt_files(hub, files, place):
  hub.files["me/a"] = {"prompt.npz": (files / "prompt.npz").read_bytes()}
  name, label = ("hf:me/a", "hf:me/a") if place == "hub" else (str(files), files.name)
  (named,) = read_prompts((name,), "evaluate.prompts")
  assert named.label == label
  expected = load_prompt(files / "prompt.npz").context
  for found in (load_prompt(name), open_prompt(name), named.prompt):
    np.testing.assert_array_equal(found.context, expected)
  config = small_config(**{"prompt.init": name, "prompt.m": 4})
  found = initial_context(config.prompt, load_clip("world"), 300)
  np.testing.assert_array_equal(found, expected)
  for job in ("export", "predict"):
    fields = {
      f"{job}.prompt": name,
      f"{job}.names": "imagenet1k",
      "predict.images": str(files),
    }
    validate(small_config(job=job, **fields))


def test_a_folder_without_a_prompt_is_an_error_and_no_words(tmp_path):
  config = small_config(**{"prompt.init": str(tmp_path), "prompt.m": 4})
  with pytest.raises(PromptFileError, match=r"prompt\.npz"):
    initial_context(config.prompt, load_clip("world"), 300)
