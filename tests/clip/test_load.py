"""What loading accepts, what it turns the weights into, and what it says of anything
else."""

import copy
import dataclasses
import itertools
import json
import shutil

from flax import serialization
import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from pomp_jax.clip.architecture import ClipError
from pomp_jax.clip.load import load_clip
from pomp_jax.clip.weights import open_weights
from tests.support.clips import error_of
from tests.support.prompt_files import refusal

WEIGHTS = "flax_model.msgpack"


@pytest.fixture
def folder(small, tmp_path):
  """A copy of a good CLIP, to be damaged."""
  shutil.copytree(small.folder, tmp_path / "clip")
  return tmp_path / "clip"


def _config(**settings):
  """As the next four, a function that damages the CLIP in a folder."""

  def damage(folder):
    config = json.loads((folder / "config.json").read_text())
    for key, value in settings.items():
      part, _, field = key.partition("__")
      config[part] = {**config[part], field: value} if field else value
    (folder / "config.json").write_text(json.dumps(config))

  return damage


def _weights(change):
  def damage(folder):
    file = folder / WEIGHTS
    weights = serialization.msgpack_restore(file.read_bytes())
    file.write_bytes(serialization.msgpack_serialize(change(weights)))

  return damage


def _text(name, text):
  return lambda folder: (folder / name).write_text(text)


def _file(change):
  return lambda folder: (folder / WEIGHTS).write_bytes(
    change((folder / WEIGHTS).read_bytes())
  )


def _only(*names):
  def damage(folder):
    for file in folder.iterdir():
      if file.name not in names:
        file.unlink()

  return damage


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_huggingfaces_tree_in_float32_on_the_host(folder, dtype):
  _weights(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))(folder)
  expected = serialization.msgpack_restore((folder / WEIGHTS).read_bytes())
  params = load_clip(str(folder)).params
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  for found, leaf in zip(
    jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
  ):
    assert type(found) is np.ndarray and found.dtype == np.float32
    np.testing.assert_array_equal(found, leaf)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize(
  ("field", "value", "matters"),
  [
    ("transformers_version", "9.0", False),
    ("layer_norm_eps", 0.25, True),
    ("num_attention_heads", 1, True),
    ("hidden_act", "gelu", True),
  ],
)
def test_settings_hold_what_the_towers_read_and_no_version(
  small, part, field, value, matters
):
  """An update of transformers would otherwise invalidate cached features."""
  config = small.clip.config
  changed = copy.deepcopy(getattr(config, part))
  setattr(changed, field, value)
  other = dataclasses.replace(config, **{part: changed})
  assert (other.settings() != config.settings()) == matters
  assert (other.text_settings() != config.text_settings()) == (
    matters and part == "text_config"
  )


@pytest.mark.parametrize(
  "damage, found",
  [
    (shutil.rmtree, "no such file or folder"),
    (_only(), "no CLIP's weights there"),
    (_config(model_type="bert"), "'bert'"),
    *((_text("config.json", text), "config.json") for text in ("", "{", "[]", "null")),
    (_text("config.json", "[" * 100_000), "config.json"),
    *((_file(lambda content, n=n: content[:n]), WEIGHTS) for n in (0, 100, 20_000, -1)),
    (_file(lambda _: b"\xc1 not msgpack" * 50), WEIGHTS),
    (lambda folder: (folder / WEIGHTS).unlink(), "no CLIP's weights there"),
    (_config(text_config__hidden_size=64), "shape"),
    (_config(vision_config__hidden_act="swish"), "'swish', expected quick_gelu, gelu"),
    (_config(vision_config__num_attention_heads=5), "got 5, expected a divisor of 48"),
    (
      _weights(lambda tree: {k: v for k, v in tree.items() if k != "logit_scale"}),
      "logit_scale",
    ),
    (_only("config.json", WEIGHTS), "tokenizer"),
    *(
      (_text("preprocessor_config.json", text), "preprocessor_config.json")
      for text in ("{", "[]", '{"image_mean": [0.5]}', '{"image_std": "wide"}')
    ),
  ],
)
def test_damaged_folders(folder, damage, found):
  damage(folder)
  assert found in error_of(folder, [load_clip])


STATE = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}


def _refusal(path, name=None) -> str:
  def read(path):
    with open_weights(path) as weights:
      weights.read(name)

  return refusal(path, read, ClipError)


def test_files_that_are_something_else(tmp_path):
  assert "No such file" in _refusal(tmp_path / "none.pt")
  path = tmp_path / "a.safetensors"
  path.write_text("<html>you need to log in</html>")
  assert "neither a whole safetensors file nor a torch archive" in _refusal(path)
  torch.save(STATE, path, _use_new_zipfile_serialization=False)
  assert "torch 1.6 or newer" in _refusal(path)
  torch.save([1, 2], path)
  assert "a list without tensors" in _refusal(path)
  safetensors.torch.save_file({"a": torch.arange(3)}, path)
  assert "a is of type I64; accepted: F64, F32, F16, BF16" in _refusal(path, "a")
  torch.save({"a": torch.arange(3)}, path)
  assert "a is of type int64" in _refusal(path, "a")


@pytest.mark.parametrize(
  "text, found",
  [
    ("{", "no index"),
    ('{"weight_map": 3}', "no index"),
    ('{"weight_map": {"a": 3}}', "no index"),
    ('{"weight_map": {"a": "../a.safetensors"}}', "no file name"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "no file name"),
    ('{"weight_map": {"a": "b.safetensors"}}', "the shard b.safetensors is missing"),
  ],
)
def test_indices_that_are_none(tmp_path, text, found):
  (tmp_path / "model.safetensors.index.json").write_text(text)
  assert found in _refusal(tmp_path / "model.safetensors.index.json")


def test_a_truncated_shard_and_one_of_something_else(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "b.safetensors")}))
  shard = tmp_path / "b.safetensors"
  safetensors.torch.save_file({"a.weight": STATE["a.weight"]}, shard)
  assert "a.bias is not in b.safetensors" in _refusal(index)
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(
    ClipError, match="b.safetensors: the file is not a whole safetensors"
  ):
    open_weights(index).__enter__()


def test_settings_tell_the_four_ways_of_resizing_apart():
  clip = load_clip("world")
  ways = itertools.product((False, True), repeat=2)
  settings = [
    dataclasses.replace(clip, squash=squash, bilinear=bilinear).settings
    for squash, bilinear in ways
  ]
  assert len(set(settings)) == 4 and settings[0] == clip.settings
